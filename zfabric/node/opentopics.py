"""A topic that this node publishes: what its publishers share."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import msgspec

from zfabric.config import Config
from zfabric.model import Delivery
from zfabric.node.driver import Driver
from zfabric.node.options import whole
from zfabric.node.outboxfile import OutboxFile, Resending
from zfabric.protocol.keeping import Keeping
from zfabric.wire.codec import Codec

__all__ = ["OpenTopic", "TopicOptions"]


class TopicOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `Node.publisher` was asked for, and all publishers of a topic agree on."""

    delivery: Delivery
    durable: bool
    history: int
    window_bytes: int | None
    without_store: str
    outbox: Path | None
    sign: bool

    @classmethod
    def check(
        cls,
        *,
        delivery: str | None,
        durable: bool,
        history: int,
        window_bytes: int | None,
        without_store: str,
        outbox: str | Path | None,
        confirm: str | None,
        sign: bool,
    ) -> TopicOptions:
        """Raises ValueError for what does not go together."""
        if delivery is None:
            delivery = Delivery.AT_LEAST_ONCE if durable else Delivery.AT_MOST_ONCE
        delivery = Delivery(delivery)
        if confirm not in (None, "sent", "received", "processed", "stored"):
            raise ValueError(f"confirm must be 'sent', 'received', 'processed' or 'stored', not {confirm!r}")
        history = whole("history", history)
        window_bytes = None if window_bytes is None else whole("window_bytes", window_bytes)
        if window_bytes is not None and window_bytes <= 0:
            raise ValueError(f"window_bytes must be above 0, not {window_bytes}")
        if history < 0:
            raise ValueError(f"history must be 0 or more, not {history}")
        if not durable and (confirm == "stored" or outbox is not None):
            raise ValueError("confirm='stored' and outbox= need durable=True: nobody stores this topic")
        if durable and delivery is Delivery.AT_MOST_ONCE:
            raise ValueError("durable=True needs delivery='at-least-once': at-most-once is not repaired")
        if delivery is Delivery.AT_MOST_ONCE and (history or confirm in ("received", "processed")):
            raise ValueError("history= and confirm= need delivery='at-least-once': at-most-once keeps nothing")
        if without_store not in ("raise", "buffer"):
            raise ValueError(f"without_store must be 'raise' or 'buffer', not {without_store!r}")
        return cls(
            delivery=delivery,
            durable=durable,
            history=history,
            window_bytes=window_bytes,
            without_store=without_store,
            outbox=None if outbox is None else Path(outbox).absolute(),
            sign=sign,
        )


class OpenTopic:
    """One topic, from its first publisher to its last."""

    def __init__(
        self, driver: Driver, name: str, codec: Codec, options: TopicOptions, config: Config, *, with_crc: bool
    ) -> None:
        """Raises LimitExceeded, and LocalProtocolError or OSError for an outbox file that cannot be used."""
        sign = driver.rights.signs() if options.sign else None
        self.codec = codec
        self.options = options
        self.publishers = 0
        self._driver = driver
        self._file = None if options.outbox is None else OutboxFile(options.outbox, name, driver.core.me)
        self._resending: asyncio.Task[None] | None = None
        try:
            self.outbox = driver.core.interests.open_topic(
                name,
                options.delivery,
                with_crc=with_crc,
                window_bytes=options.window_bytes,
                history=options.history,
                keeping=Keeping(
                    buffers=options.without_store == "buffer", away_s=config.grace_s, log_of=driver.core.stores.log_of
                )
                if options.durable
                else None,
                sign=sign,
            )
        except BaseException:
            if self._file is not None:
                self._file.close()
            raise
        keeping = self.outbox.keeping
        if keeping is not None and driver.core.stores.keeping(name) is not None:
            keeping.expect(driver.loop.time())
            self.outbox.judge()
        codec.snapshots.room = partial(driver.core.lending.take, self.outbox)
        codec.snapshots.owns = driver.core.lending.holds
        if self._file is not None:
            driver.files[self.outbox] = self._file
            self._file.epoch = self.outbox.epoch
            if self._file.left():
                self.outbox.set_waiting(waiting=True, now=driver.loop.time())
                resending = Resending(self._file, self.outbox, driver, away_s=config.grace_s)
                self._resending = driver.loop.create_task(resending.run())
        driver.schedule_pump()

    def close(self) -> None:
        """Let go of the file; what is in it waits for the next process."""
        if self._resending is not None:
            self._resending.cancel()
        if self._file is not None:
            self._file.forget(self.outbox.epoch, self.outbox.confirmed("stored"))
            self._driver.files.pop(self.outbox, None)
            self._file.close()
            self._file = None
