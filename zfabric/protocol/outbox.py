"""The sending end of one stream: sequence numbers, and the batch that is open."""

from __future__ import annotations

from zfabric.wire.batch import BatchWriter, Buffer

__all__ = ["Outbox"]


class Outbox:
    """One topic that this node publishes.

    The publisher appends to `writer` and the driver calls `seal()` once per turn of the event loop. `remote`
    are the peers whose subscriptions are in place, `local` the matching subscriptions of this very node.
    """

    __slots__ = ("base", "delivery", "epoch", "listeners", "local", "remote", "skipped", "topic", "writer")

    def __init__(self, topic: str, producer: bytes, epoch: int, delivery: str, *, with_crc: bool) -> None:
        self.topic = topic
        self.epoch = epoch
        self.delivery = delivery
        self.writer = BatchWriter(topic, producer, epoch, with_crc=with_crc)
        self.base = 0
        self.skipped = 0
        self.remote: set[bytes] = set()
        self.local: list[object] = []
        self.listeners = 0

    def __repr__(self) -> str:
        return f"<Outbox {self.topic} epoch={self.epoch} next={self.next_seq} listeners={self.listeners}>"

    @property
    def next_seq(self) -> int:
        """The number that the next message gets."""
        return self.base + self.writer.count

    def count_listeners(self) -> None:
        """Call after any change to `remote` or `local`."""
        self.listeners = len(self.remote) + len(self.local)

    def skip(self) -> int:
        """Number a message that nobody listens to."""
        seq = self.base
        self.base = seq + 1
        self.skipped += 1
        return seq

    def seal(self, published_ns: int) -> list[Buffer]:
        """Finish the open batch."""
        base = self.base
        self.base = base + self.writer.count
        return self.writer.seal(base, published_ns)
