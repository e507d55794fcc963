"""`python -m zfabric.testing.simulate --seeds 2000`: run simulations, and stop at the first that breaks a rule.

The exit code is 0 if all rules held, 2 for bad options, else the code of the violated rule: see `sim_truth.RULES`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from zfabric.testing.sim_truth import RULES
from zfabric.testing.simulator import Outcome, simulate

__all__ = ["main", "outcomes"]

SHARE = 25
"Seeds that a process takes at a time."


def _some(seeds: list[int]) -> list[Outcome]:
    return [simulate(seed) for seed in seeds]


def outcomes(seeds: range, processes: int) -> Iterator[Outcome]:
    """The outcome of every seed, in order."""
    shares = [list(seeds[first : first + SHARE]) for first in range(0, len(seeds), SHARE)]
    if processes == 1:
        for share in shares:
            yield from _some(share)
        return
    with ProcessPoolExecutor(processes) as pool:
        try:
            for some in pool.map(_some, shares):
                yield from some
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m zfabric.testing.simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds (default: %(default)s)")
    parser.add_argument("--start", type=int, default=0, help="the first of them (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="run this one only, and show its trace")
    parser.add_argument("--processes", type=int, default=1, help="processes to share the work (default: %(default)s)")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first failure")
    parser.add_argument("--verbose", action="store_true", help="a line for every seed")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.processes < 1:
        parser.error("--seeds and --processes must be at least 1")
    return options


def _line(outcome: Outcome) -> str:
    faults = " ".join(f"{name}={count}" for name, count in sorted(outcome.faults.items()))
    return (
        f"seed {outcome.seed}: {outcome.rule or 'ok'} {outcome.virtual_s:.1f} s {outcome.steps} steps, "
        f"{outcome.published} published, {outcome.delivered} delivered, {outcome.announced} announced lost, "
        f"{outcome.confirmed} flushes; {faults} {outcome.digest}"
    )


def _show_one(seed: int) -> int:
    outcome = simulate(seed, trace=True)
    sys.stdout.write("\n".join([*outcome.trace, _line(outcome), outcome.report()]) + "\n")
    return 0 if outcome.violation is None else RULES[outcome.violation.rule][0]


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; returns the exit code."""
    options = _options(arguments)
    if options.seed is not None:
        return _show_one(options.seed)
    began = time.monotonic()
    totals: Counter[str] = Counter()
    code = done = 0
    for outcome in outcomes(range(options.start, options.start + options.seeds), options.processes):
        done += 1
        totals.update(outcome.faults)
        totals.update(published=outcome.published, delivered=outcome.delivered, announced=outcome.announced)
        totals.update(lost_batches=outcome.lost_batches, virtual_s=round(outcome.virtual_s))
        if options.verbose:
            sys.stdout.write(_line(outcome) + "\n")
        if outcome.violation is not None:
            sys.stdout.write(outcome.report() + "\n")
            sys.stdout.flush()
            code = code or RULES[outcome.violation.rule][0]
            if not options.keep_going:
                break
    seconds = time.monotonic() - began
    what = ", ".join(f"{name} {count}" for name, count in sorted(totals.items()))
    sys.stdout.write(f"{done} seeds in {seconds:.1f} s ({seconds / done * 1000:.0f} ms each): {what}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
