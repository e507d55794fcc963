"""Consume, transform, produce: outputs and the position of what they were made of, stored together or not at all."""

from __future__ import annotations

from hashlib import blake2b
from types import TracebackType
from typing import TYPE_CHECKING, Any

from zfabric.config import Config
from zfabric.errors import EncodeFailed, LocalProtocolError, TransactionFailed
from zfabric.model import Topic
from zfabric.node.driver import Driver
from zfabric.protocol.shares import Share
from zfabric.wire.batch import FLAG_DURABLE, FLAG_RELIABLE, BatchWriter, Buffer, plain_metadata
from zfabric.wire.topics import check_topic

if TYPE_CHECKING:
    from zfabric.node.shared import SharedSubscription

__all__ = ["Transaction"]


class Transaction:
    """What is published here becomes readable as a whole, together with the position, or never.

    Readers get it from the store: subscriptions with `start=` or in groups.
    """

    def __init__(
        self, subscription: SharedSubscription, driver: Driver, share: Share, config: Config, *, sign: bool
    ) -> None:
        self._subscription = subscription
        self._sign = driver.rights.signs() if sign else None
        self._config = config
        self._driver = driver
        self._share = share
        self._epoch = share.epoch
        self._frames: list[list[bytes]] = []
        self._writers: dict[str, BatchWriter] = {}
        self._counts: dict[str, int] = {}
        self._state = "new"
        self.held_back = 0
        "Messages at the end of what was handed out that it does not cover: their reader has not come to them."

    async def __aenter__(self) -> Transaction:
        if self._state != "new":
            raise LocalProtocolError("a transaction is used once; begin another one")
        self._state = "open"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._state = "done"
        if error is not None:
            self._subscription.rewind()
            return
        for topic in list(self._writers):
            self._seal(topic)
        if self._epoch and self._epoch != self._share.epoch:
            raise TransactionFailed(self._subscription.group, "the membership ended meanwhile")
        reason = await self._subscription.commit(self._frames, self.held_back)
        if reason:
            self._subscription.rewind()
            raise TransactionFailed(self._subscription.group, reason)
        for topic, count in self._counts.items():
            self._share.published[topic] = self._share.published.get(topic, 0) + count

    async def publish(
        self,
        topic: str | Topic[Any],
        value: Any,
        *,
        key: Any = None,
        headers: dict[str, Any] | None = None,
        ttl: float | None = None,
    ) -> None:
        """Let a message become part of the transaction. Raises EncodeFailed, TopicError, LocalProtocolError."""
        if self._state != "open":
            raise LocalProtocolError("publish inside of `async with subscription.transaction() as tx:`")
        name, value_type = (topic.name, topic.type) if isinstance(topic, Topic) else (topic, None)
        writer = self._writers.get(name)
        if writer is None:
            self._driver.rights.check("publish", name)
            writer = self._writers[name] = BatchWriter(check_topic(name), self._producer(), 1, sign=self._sign)
        codec = self._subscription.codec_for(value_type)
        length, large = len(writer.buffer), len(writer.buffers)
        codec.buffers = writer.buffers
        try:
            codec.encode_into(value, writer.buffer)
            metadata = None if key is None and headers is None and ttl is None else plain_metadata(key, headers, ttl)
        except BaseException as error:
            del writer.buffer[length:], writer.buffers[large:]
            if isinstance(error, EncodeFailed):
                raise EncodeFailed(name, error.reason) from error.__cause__
            raise
        if metadata is not None:
            writer.annotate(*metadata)
        writer.count += 1
        if writer.body_bytes >= self._config.batch_bytes or writer.count >= self._config.batch_messages_max:
            self._seal(name)

    def _producer(self) -> bytes:
        """Nobody else ever numbers messages under this id: a membership is never given twice."""
        origin = self._driver.core.me + self._share.number.to_bytes(8) + self._epoch.to_bytes(8)
        return self._driver.rights.node_id(blake2b(origin, digest_size=16).digest())

    def _seal(self, topic: str) -> None:
        writer = self._writers[topic]
        count = self._counts.get(topic, 0)
        if writer.count:
            base = self._share.published.get(topic, 0) + count
            self._counts[topic] = count + writer.count
            frames: list[Buffer] = writer.seal(base, int(self._driver.utc() * 1e9), FLAG_RELIABLE | FLAG_DURABLE)
            self._frames.append([bytes(frame) for frame in frames])
