"""`python -m zfabric.examples.wordcount`: 4 workers count words; one is killed on the way, and another one joins.

The result must be that of a single loop, and the exit code tells whether it is.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from contextlib import aclosing

from zfabric.examples.wordcount.pipeline import count, files, pipeline, read

from zfabric import Node

__all__ = ["main"]

WORKERS = 4


async def start_worker(fabric: str) -> Process:
    """Another process."""
    command = [sys.executable, "-m", "zfabric.examples.wordcount.worker", fabric]
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE)
    assert process.stdout is not None
    await process.stdout.readline()
    return process


async def run(paths: list[str]) -> Counter[str]:
    """Count with workers; kill one when a quarter is done, start another when half is done."""
    fabric = f"wordcount-{secrets.token_hex(4)}"
    workers = list(await asyncio.gather(*(start_worker(fabric) for _ in range(WORKERS))))
    words: Counter[str] = Counter()
    try:
        async with Node("wordcount", fabric=fabric) as node:
            await node.wait_for_peers(WORKERS, timeout=20)
            done = 0
            async with aclosing(pipeline.run(node, paths, ordered=False, in_flight=100)) as counts:
                async for some in counts:
                    words.update(some)
                    done += 1
                    if done == len(paths) // 4:
                        workers[0].kill()
                        print(f"killed a worker after {done} files")
                    if done == len(paths) // 2:
                        workers.append(await start_worker(fabric))
                        print(f"another one joined after {done} files")
    finally:
        for worker in workers:
            if worker.returncode is None:
                worker.terminate()
            await worker.wait()
    return words


def main() -> int:
    """Count twice and compare."""
    parser = argparse.ArgumentParser(prog="python -m zfabric.examples.wordcount", description=__doc__)
    parser.add_argument("--files", type=int, help="only so many files")
    paths = files(parser.parse_args().files)
    begun = time.perf_counter()
    words = asyncio.run(run(paths))
    took = time.perf_counter() - begun
    alone: Counter[str] = Counter()
    for path in paths:
        alone.update(count(read(path)))
    print(f"{sum(words.values()):,} words, {len(words):,} different, in {len(paths):,} files; {took:.1f} s")
    print("the most frequent:", ", ".join(word for word, _ in words.most_common(8)))
    print("equal to a single loop" if words == alone else "NOT equal to a single loop")
    return 0 if words == alone else 1


if __name__ == "__main__":
    sys.exit(main())
