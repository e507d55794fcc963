"""Consume, transform, produce, while the processor and the store are killed again and again.

    python -m tests.store.exactly_once DIRECTORY --messages 1000000 --kill-every 3 --seed 1 [--without-transactions]

Numbers are published to a durable topic; a processor reads them in a group and publishes a result for each, with
transactions; both it and the store get SIGKILL at random moments. In the end all results are compared with those of a
run without faults: the same bytes in the same order. Prints one JSON object; exits 1 if they differ.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from zfabric import Config, Node, TransactionFailed
from zfabric.store import StoredBatch, open_log
from zfabric.wire.batch import parse_batch

CONFIG = Config(mdns=False, heartbeat_interval_s=0.3, peer_timeout_s=1.5)
KEYS = 1000
UNSAFE_S = 0.5
"Between outputs and position, where these are two commits: a kill finds it, as it comes when outputs are seen."


def result(number: int) -> dict[str, int]:
    """What the processor makes of a number."""
    return {"of": number, "is": number * 7919 % 1_000_003}


def expected(count: int) -> bytes:
    """The digest of all results of a run without faults."""
    digest = blake2b(digest_size=16)
    for number in range(count):
        digest.update(msgspec.msgpack.encode(result(number)))
    return digest.digest()


# -- the children ----------------------------------------------------------------------------------


async def keep(fabric: str, directory: str) -> None:
    """Be the store."""
    from zfabric.store import Store

    async with Store(directory, fabric=fabric, config=CONFIG) as store:
        print("open", flush=True)
        await store.wait()


async def process(fabric: str, *, transactions: bool) -> None:
    """Be the processor."""
    async with Node("processor", fabric=fabric, config=CONFIG) as node:
        numbers = node.subscribe(
            "numbers", group="sums", member="processor", start="earliest", delivery="exactly-once", buffer_bytes=1 << 20
        )
        unsafe = None if transactions else node.publisher("results", durable=True)
        async for batch in numbers.batches():
            if unsafe is not None:
                await unsafe.publish_many([result(message.value) for message in batch])
                await unsafe.flush()
                await asyncio.sleep(UNSAFE_S)
                continue
            try:
                async with numbers.transaction() as tx:
                    for message in batch:
                        await tx.publish("results", result(message.value), key=message.key)
            except TransactionFailed as failure:
                print(failure, file=sys.stderr, flush=True)


# -- the parent ------------------------------------------------------------------------------------


class Child:
    """A process that can be killed and started again."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self.deaths = 0
        self.start()

    def start(self) -> None:
        """Start it."""
        command = [sys.executable, "-m", "tests.store.exactly_once", *self._arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        """SIGKILL."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self.deaths += 1

    def end(self) -> None:
        """SIGKILL, for the last time."""
        self._process.kill()
        self._process.wait()


async def publish(fabric: str, count: int) -> None:
    """Publish the numbers; returns when all are stored."""
    async with Node("source", fabric=fabric, config=CONFIG) as node:
        numbers = node.publisher("numbers", durable=True, without_store="buffer")
        await numbers.wait_for(stores=1, timeout=30)
        for number in range(count):
            await numbers.publish(number, key=number % KEYS)
        await numbers.flush()


class Killer:
    """Decides when which child dies: every few seconds, or so often in the whole run."""

    def __init__(self, options: argparse.Namespace, children: list[Child]) -> None:
        self._random = random.Random(options.seed)
        self._children = children
        self._every = options.kill_every
        self._steps = [options.messages * step // (options.kills + 1) for step in range(options.kills, 0, -1)]
        self._next = time.monotonic() + self._every

    def look(self, seen: int) -> None:
        """So many results are there: is it time?"""
        if self._steps and seen >= self._steps[-1]:
            self._steps.pop()
            self._kill(self._children[len(self._steps) % 2])
        if self._every and time.monotonic() >= self._next:
            self._kill(self._random.choice(self._children))
            self._next = time.monotonic() + self._random.uniform(0.5, 1.5) * self._every

    def _kill(self, child: Child) -> None:
        child.kill()
        child.start()


async def watch(fabric: str, count: int, timeout: float, killer: Killer) -> None:
    """Let children be killed until as many results are there as there should be."""
    deadline = time.monotonic() + timeout
    async with Node("watcher", fabric=fabric, config=CONFIG) as node:
        results = node.subscribe("results", group="watchers", start="earliest", buffer_bytes=1 << 18)
        batches = results.batches()
        seen = 0
        while seen < count:
            reading = asyncio.ensure_future(anext(batches))
            while not reading.done():
                await asyncio.wait([reading], timeout=0.05)
                killer.look(seen)
                if time.monotonic() >= deadline:
                    reading.cancel()
                    return
            seen = max(seen, *(message.position.offset + 1 for message in reading.result() if message.position))


def outputs(directory: str) -> Iterator[bytes]:
    """The results in the log, in order, as they were encoded."""
    with open_log(directory) as log:
        offset = 0
        while items := log.read("results", offset, 1 << 22):
            for item in items:
                assert isinstance(item, StoredBatch), item
                batch = parse_batch(item.frames, messages_max=1 << 20, buffers_max=1024, topic_bytes_max=255)
                for value in msgspec.msgpack.decode(batch.body):
                    yield msgspec.msgpack.encode(value)
                offset = item.next


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole experiment."""
    fabric = f"exactly-{uuid.uuid4().hex[:8]}"
    store = Child(options.directory, "--role", "keep", "--fabric", fabric)
    mode = ["--without-transactions"] if options.without_transactions else []
    children = [store]
    started = time.monotonic()
    try:
        asyncio.run(publish(fabric, options.messages))
        published = time.monotonic()
        children.append(Child(options.directory, "--role", "process", "--fabric", fabric, *mode))
        asyncio.run(watch(fabric, options.messages, options.timeout, Killer(options, children)))
        done = time.monotonic()
    finally:
        for child in children:
            child.end()
    digest, count = blake2b(digest_size=16), 0
    for each in outputs(options.directory):
        digest.update(each)
        count += 1
    return {
        "messages": options.messages,
        "results": count,
        "equal": digest.digest() == expected(options.messages),
        "store_kills": store.deaths,
        "processor_kills": children[1].deaths,
        "publish_s": round(published - started, 1),
        "process_s": round(done - published, 1),
    }


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory")
    parser.add_argument("--role", default="run", choices=("run", "keep", "process"))
    parser.add_argument("--fabric", default="")
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--kill-every", type=float, default=3.0, help="seconds; 0 for never")
    parser.add_argument("--kills", type=int, default=0, help="so many, by progress, in turn")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=240.0)
    parser.add_argument("--without-transactions", action="store_true")
    options = parser.parse_args()
    if options.role == "keep":
        asyncio.run(keep(options.fabric, options.directory))
    elif options.role == "process":
        asyncio.run(process(options.fabric, transactions=not options.without_transactions))
    else:
        Path(options.directory).mkdir(parents=True, exist_ok=True)
        told = run(options)
        print(json.dumps(told))
        return 0 if told["equal"] else 1
    return 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
