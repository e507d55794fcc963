"""A store, publisher or reader in a process of its own, which writes all that it does to a history file.

    python -m tests.durable.program store|publish|read FABRIC HISTORY ARGUMENT

ARGUMENT is the store's directory, or the publisher's name and outbox file, joined by a colon. SIGTERM ends it in order.
$TEST_HANDICAP names a mechanism that is switched off.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress

from zfabric import Config, Node, NotStored
from zfabric.store import Append, Store, rules
from zfabric.store.keeper import Keeper
from zfabric.store.log import Appended
from zfabric.wire.batch import Batch

__all__ = ["CONFIG", "TOPIC"]

TOPIC = "orders"
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


class History:
    """Lines that are in the file when the call returns, whatever happens to the process."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, *lines: str) -> None:
        """Append lines."""
        os.write(self._file, "".join(f"{line}\n" for line in lines).encode())


def _confirm_early() -> None:
    """A store that acknowledges before its disk has it."""
    submit = Keeper._submit

    def early(keeper: Keeper, batch: Batch, append: Append) -> None:
        keeper._done(keeper.lane, batch, append, Appended(None, append.count))
        asyncio.get_running_loop().call_later(0.3, submit, keeper, batch, append)

    setattr(Keeper, "_submit", early)  # noqa: B010 - another method, on purpose


def _forget_marks() -> None:
    """A log that takes every batch for a new one."""
    rules._is_new = lambda append, mark: True


HANDICAPS = {"": lambda: None, "confirms early": _confirm_early, "forgets marks": _forget_marks}
"Mechanisms that are switched off, to see that the test notices."


async def store(fabric: str, history: History, directory: str, stop: asyncio.Event) -> None:
    """Keep everything."""
    async with Store(directory, fabric=fabric, config=CONFIG):
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

    async with Node(name, fabric=fabric, config=CONFIG) as node:
        orders = node.publisher(TOPIC, durable=True, confirm="stored", outbox=path, without_store="buffer")
        await orders.wait_for(stores=1)
        history.write("ready")
        await asyncio.gather(*(lane() for _ in range(LANES)))
        await orders.flush()


async def read(fabric: str, history: History, _: str, stop: asyncio.Event) -> None:
    """Read everything from the beginning, and note it."""
    async with Node("reader", fabric=fabric, config=CONFIG) as node:
        subscription = node.subscribe(TOPIC, start="earliest")
        history.write("ready")
        waiting = asyncio.create_task(stop.wait())
        waiting.add_done_callback(lambda _: asyncio.ensure_future(subscription.close()))
        async for batch in subscription.batches():
            history.write(*(f"{m.source.id} {m.seq} {m.value[0]} {m.value[1]}" for m in batch))


async def main() -> None:
    """Run one of them."""
    role, fabric, path, argument = sys.argv[1:]
    HANDICAPS[os.environ.get("TEST_HANDICAP", "")]()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await {"store": store, "publish": publish, "read": read}[role](fabric, History(path), argument, stop)


if __name__ == "__main__":
    asyncio.run(main())
