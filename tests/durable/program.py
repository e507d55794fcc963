"""A store, publisher or reader in a process of its own, which writes all that it does to a history file.

    python -m tests.durable.program store|publish|read|share|push|work FABRIC HISTORY ARGUMENT

ARGUMENT is the store's directory, or the publisher's name and outbox file, joined by a colon. SIGTERM ends it in order.
Members of a group and workers note the time: one clock for all processes of a machine.
$TEST_HANDICAP names a mechanism that is switched off. $TEST_POWER: a store loses power after so many writes.
$TEST_DEFAULTS: the default Config. $TEST_VIA is the address of a proxy to connect through; the history begins with the
endpoints that the proxy has to serve.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic_ns
from typing import Any

from tests.durable.power import fail_after
from tests.faults.options import Options
from tests.faults.program import FaultyMachine
from tests.store.disk import DiskFile
from zfabric import Config, Node, NotStored, TransactionFailed
from zfabric.protocol.peers import PeerRecord
from zfabric.store import Append, Store, rules
from zfabric.store.keeper import Keeper
from zfabric.store.ledger import Ledger
from zfabric.store.log import Appended, Commit, Position
from zfabric.store.queue import DurableQueue
from zfabric.store.service import StoreService
from zfabric.wire.batch import Batch
from zfabric.wire.store_records import Write, Written

__all__ = ["CONFIG", "ENDPOINTS", "LANES", "RESULTS", "TOPIC"]

TOPIC = "orders"
RESULTS = "results"
"What the group makes of them."
ENDPOINTS = "endpoints"
"First word of the first line behind a proxy."
CONFIG = Config(
    mdns=False,
    heartbeat_interval_s=0.2,
    peer_timeout_s=1.0,
    handshake_timeout_s=0.5,
    reconnect_interval_s=0.05,
    reconnect_interval_s_max=0.3,
    gap_settle_s=0.2,
    registry_poll_s=0.2,
    channel_retry_s=0.3,
    grace_s=5.0,
)
LANES = 20
"Tasks of a publisher that wait for confirmations beside each other."
HANDICAP = os.environ.get("TEST_HANDICAP", "")
PAUSE_S = 0.0 if HANDICAP else 0.02
"Between two messages of a lane: whoever is started again must not wait for a processor; but damage needs haste."


LATE_S = 1.0
"What was confirmed early is written so much later: a kill finds some of it."


class History:
    """Lines that are in the file when the call returns, whatever happens to the process."""

    def __init__(self, path: str) -> None:
        self.name = Path(path).stem
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, *lines: str) -> None:
        """Append lines."""
        os.write(self._file, "".join(f"{line}\n" for line in lines).encode())


def _confirm_early() -> None:
    """A store that acknowledges before its disk has it."""
    submit = Keeper._submit

    def early(keeper: Keeper, batch: Batch, append: Append) -> None:
        keeper._done(keeper.lane, batch, append, Appended(None, append.count))
        asyncio.get_running_loop().call_later(LATE_S, submit, keeper, batch, append)

    setattr(Keeper, "_submit", early)  # noqa: B010 - another method, on purpose


def _forget_marks() -> None:
    """A log that takes every batch for a new one; and confirms late, so that some are stored and not confirmed."""
    rules._is_new = lambda append, mark: True
    kept = StoreService._kept

    def late(*arguments: Any) -> None:
        asyncio.get_running_loop().call_later(LATE_S / 5, kept, *arguments)

    setattr(StoreService, "_kept", late)  # noqa: B010 - another method, on purpose


def _confirm_jobs_early() -> None:
    """A store that confirms jobs before its disk has them."""
    written = StoreService._write

    def early(service: StoreService, peer: PeerRecord, record: Write, now: float) -> None:
        service._tell(peer, Written(record.request, [0] * len(record.batches)))
        asyncio.get_running_loop().call_later(LATE_S, written, service, peer, record, now)

    setattr(StoreService, "_write", early)  # noqa: B010 - another method, on purpose


def _keep_no_ledgers() -> None:
    """A store that answers acks and writes none of them."""
    commit = DurableQueue.commit

    def without(queue: DurableQueue, *, with_dead: bool) -> Commit:
        return Commit(commit(queue, with_dead=with_dead).appends)

    setattr(DurableQueue, "commit", without)  # noqa: B010 - another method, on purpose


def _do_not_flush() -> None:
    """A store that does not wait for the disk before it confirms."""
    flush = DiskFile.xSync

    def lie(file: DiskFile, flags: int) -> None:
        if file._name.endswith("-wal"):
            file._disk.tick()
        else:
            flush(file, flags)

    setattr(DiskFile, "xSync", lie)  # noqa: B010 - another method, on purpose


def _forget_ledgers() -> None:
    """A store that begins with all jobs again."""
    ledger = Ledger.__init__

    def empty(self: Ledger, queue: str, _: Mapping[str, Position]) -> None:
        ledger(self, queue, {})

    setattr(Ledger, "__init__", empty)  # noqa: B010 - another method, on purpose


HANDICAPS = {
    "": lambda: None,
    "confirms early": _confirm_early,
    "confirms jobs early": _confirm_jobs_early,
    "does not flush": _do_not_flush,
    "forgets ledgers": _forget_ledgers,
    "forgets marks": _forget_marks,
    "keeps no ledgers": _keep_no_ledgers,
}
"Mechanisms that are switched off, to see that the test notices."


@asynccontextmanager
async def joined(name: str, fabric: str, history: History, directory: str = "") -> AsyncIterator[Node]:
    """A node, or the store in this directory; behind the proxy, if there is one."""
    via = os.environ.get("TEST_VIA", "")
    config = Config(mdns=False) if os.environ.get("TEST_DEFAULTS") else replace(CONFIG, ipc=not via)
    node = Node(name, fabric=fabric, insecure=bool(via), config=config)
    if via:
        node._environment = FaultyMachine(Options(role="", name=name, via=via, checksums=True))
    async with Store(directory, node=node, config=config) if directory else node:
        if via:
            assert node._driver is not None
            history.write(" ".join([ENDPOINTS, *node.endpoints, *node._driver._transport.outlet_endpoints]))
        yield node


async def store(fabric: str, history: History, directory: str, stop: asyncio.Event) -> None:
    """Keep everything."""
    if writes := os.environ.get("TEST_POWER"):
        fail_after(int(writes))
    async with joined("store", fabric, history, directory):
        history.write("ready")
        await stop.wait()


async def publish(fabric: str, history: History, argument: str, stop: asyncio.Event) -> None:
    """Publish numbers, several at a time, and note which are confirmed."""
    name, _, path = argument.partition(":")
    numbers = iter(range(10**9))

    async def lane() -> None:
        while not stop.is_set():
            number = next(numbers)
            history.write(f"try {number}")
            with suppress(NotStored):
                await orders.publish([name, number])
                history.write(f"ok {number}")
            await asyncio.sleep(PAUSE_S)

    async with joined(name, fabric, history) as node:
        orders = node.publisher(TOPIC, durable=True, confirm="stored", outbox=path, without_store="buffer")
        await orders.wait_for(stores=1)
        history.write("ready")
        await asyncio.gather(*(lane() for _ in range(LANES)))
        await orders.flush()


async def read(fabric: str, history: History, _: str, stop: asyncio.Event) -> None:
    """Read everything from the beginning, and note it."""
    async with joined("reader", fabric, history) as node:
        subscription = node.subscribe(TOPIC, start="earliest")
        history.write("ready")
        waiting = asyncio.create_task(stop.wait())
        waiting.add_done_callback(lambda _: asyncio.ensure_future(subscription.close()))
        async for batch in subscription.batches():
            history.write(*(f"{m.source.id} {m.seq} {m.value[0]} {m.value[1]}" for m in batch))


async def share(fabric: str, history: History, _: str, stop: asyncio.Event) -> None:
    """Be a member of a group, and note when each message was begun and when the store had the group's position."""
    async with joined("member", fabric, history) as node:
        subscription = node.subscribe(TOPIC, group="group", start="earliest", delivery="exactly-once")
        history.write("ready")
        waiting = asyncio.create_task(stop.wait())
        waiting.add_done_callback(lambda _: asyncio.ensure_future(subscription.close()))
        async for batch in subscription.batches():
            history.write(*(f"begin {m.source.id} {m.seq} {monotonic_ns()}" for m in batch))
            with suppress(TransactionFailed):
                async with subscription.transaction() as tx:
                    for m in batch:
                        await tx.publish(RESULTS, [m.source.id, m.seq])
                history.write(*(f"done {m.source.id} {m.seq} {monotonic_ns()}" for m in batch))


async def push(fabric: str, history: History, _: str, stop: asyncio.Event) -> None:
    """Push numbers, several at a time, and note which are confirmed."""
    numbers = iter(range(10**9))

    async def lane(special: dict[str, Any]) -> None:
        while not stop.is_set():
            number = next(numbers)
            history.write(f"try {number}")
            with suppress(NotStored):
                await jobs.push([history.name, number], **special)
                history.write(f"ok {number}")
            await asyncio.sleep(PAUSE_S)

    async with joined(history.name, fabric, history) as node:
        jobs = node.pusher(TOPIC, durable=True, without_store="buffer")
        await jobs.wait_for(stores=1)
        history.write("ready")
        options: list[dict[str, Any]] = [{}, {"priority": 7}, {"delay": 0.05}]
        lanes = [options[number % 4] if number % 4 < 3 else {"key": number} for number in range(LANES)]
        await asyncio.gather(*map(lane, lanes))
        await jobs.flush()


async def work(fabric: str, history: History, _: str, stop: asyncio.Event) -> None:
    """Do jobs, and note when each was begun and when the store had its ack; every tenth fails at first."""
    async with joined("worker", fabric, history) as node:
        puller = node.puller(TOPIC, ack="manual")

        async def lane() -> None:
            while jobs := await puller.take(1):
                name, number = jobs[0].value
                history.write(f"begin {name} {number} {monotonic_ns()}")
                if number % 10 == 0 and jobs[0].attempt == 1:
                    await jobs[0].nack(0.01)
                    continue
                with suppress(NotStored):
                    await jobs[0].ack()
                    history.write(f"done {name} {number} {monotonic_ns()}")

        history.write("ready")
        waiting = asyncio.create_task(stop.wait())
        waiting.add_done_callback(lambda _: puller.end())
        await asyncio.gather(*(lane() for _ in range(LANES)))


async def main() -> None:
    """Run one of them."""
    role, fabric, path, argument = sys.argv[1:]
    HANDICAPS[HANDICAP]()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    roles = {"store": store, "publish": publish, "read": read, "share": share, "push": push, "work": work}
    await roles[role](fabric, History(path), argument, stop)


if __name__ == "__main__":
    asyncio.run(main())
