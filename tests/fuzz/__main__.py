"""`python -m tests.fuzz TARGET --runs N`: millions of inputs for one parser, or `all`.

With atheris (`pip install atheris`) coverage guides the mutations; without it, and with --plain, our own loop mutates
golden inputs. Ends with 1 at the first input that makes a parser do what it must not do, and prints it.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType

from tests.fuzz.targets import TARGETS, Target

TOKENS = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\xc1", b"\xc4", b"\xdd\xff\xff\xff\xff", b"\xdf\x7f\xff\xff\xff")
LENGTH_MAX = 4096
CORPUS = Path("build/fuzz")
WATCHED = ("zfabric.", "tomllib.", "msgpack.")
"Whose coverage guides atheris: all there is takes minutes to instrument."


def mutate(data: bytes, rng: random.Random, seeds: tuple[bytes, ...]) -> bytes:
    """A few random changes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(changed) + 1)
        kind = rng.randrange(7)
        if kind == 0 and changed:
            changed[at % len(changed)] ^= 1 << rng.randrange(8)
        elif kind == 1 and changed:
            changed[at % len(changed)] = rng.randrange(256)
        elif kind == 2:
            changed[at:at] = rng.randbytes(rng.randrange(8))
        elif kind == 3:
            del changed[at : at + rng.randrange(1, 16)]
        elif kind == 4:
            changed[at:at] = rng.choice(TOKENS) * rng.choice((1, 1, 1, 200))
        elif kind == 5:
            other = rng.choice(seeds) if seeds else b""
            start = rng.randrange(len(other) + 1)
            changed[at:at] = other[start : start + rng.randrange(64)]
        else:
            changed[at : at + 8] = changed[at : at + 8] * 2
    return bytes(changed[:LENGTH_MAX])


def own_loop(name: str, target: Target, runs: int, seed: int) -> int:
    """Mutate seeds and what came of them; returns the exit code."""
    rng = random.Random(f"{name} {seed}")
    pool = [b"", *target.seeds]
    began = time.perf_counter()
    for number in range(runs):
        data = mutate(rng.choice(pool), rng, target.seeds)
        try:
            target.run(data)
        except Exception as error:  # noqa: BLE001 - this is what we are looking for
            print(f"{name}: input {number} of seed {seed}: {type(error).__name__}: {error}\n{data!r}")
            return 1
        if rng.random() < 0.002:
            pool.append(data)
            if len(pool) > 500:
                del pool[1 + len(target.seeds)]
    print(f"{name}: {runs:,} inputs in {time.perf_counter() - began:.0f} s, none broke it", flush=True)
    return 0


def with_atheris(name: str, target: Target, runs: int) -> None:
    """Guided by coverage, from the golden inputs and what earlier runs kept in `build/fuzz`; never returns."""
    import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]

    CORPUS.joinpath(name).mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        target.run(seed)  # so that what is imported late is there
        CORPUS.joinpath(name, f"seed-{number}").write_bytes(seed)
    for each in gc.get_objects():
        if isinstance(each, FunctionType) and (each.__module__ or "").startswith(WATCHED):
            atheris.instrument_func(each)
    options = [f"-runs={runs}", f"-max_len={LENGTH_MAX}", "-len_control=0", "-verbosity=0", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={CORPUS}/{name}-", str(CORPUS / name)], target.run)
    atheris.Fuzz()


def main() -> int:
    """Fuzz."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=[*TARGETS, "all"])
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="without atheris")
    options = parser.parse_args()
    if options.target != "all" and not options.plain and find_spec("atheris") is not None:
        with_atheris(options.target, TARGETS[options.target], options.runs)
    names = list(TARGETS) if options.target == "all" else [options.target]
    return max(own_loop(name, TARGETS[name], options.runs, options.seed) for name in names)


if __name__ == "__main__":
    sys.exit(main())
