"""Which open batches travel together: small ones of at-most-once topics that the same few peers listen to."""

from __future__ import annotations

from collections.abc import Iterator

from zfabric.config import Config
from zfabric.protocol.outbox import Outbox
from zfabric.wire.bundle import BundleWriter

__all__ = ["BUNDLED_MIN", "group", "seal"]

BUNDLED_MIN = 8
"Fewer batches go by themselves."
_PEERS_MAX = 4
"A bundle goes to each peer by itself, and whoever subscribes to everything gets, and drops, those of all others."
_BATCH_BYTES_MAX = 4096
"A larger batch gains nothing, and would be copied once more."


def group(outboxes: list[Outbox], least: int) -> tuple[dict[tuple[bytes, ...], list[Outbox]], list[Outbox]]:
    """The outboxes whose batches may travel together, by audience, and those that go by themselves."""
    together: dict[tuple[bytes, ...], list[Outbox]] = {}
    alone = []
    for outbox in outboxes:
        writer, audience = outbox.writer, outbox.audience
        plain = writer.meta is None and not writer.buffers and len(writer.buffer) <= _BATCH_BYTES_MAX
        if plain and 0 < len(audience) <= _PEERS_MAX:
            members = together.get(audience)
            if members is None:
                together[audience] = [outbox]
            else:
                members.append(outbox)
        else:
            alone.append(outbox)
    for audience, members in list(together.items()):
        if len(members) < least:
            alone += together.pop(audience)
    return together, alone


def seal(outboxes: list[Outbox], producer: bytes, config: Config, published_ns: int, now: float) -> Iterator[bytes]:
    """Finish the open batches of one audience: bundles of about `Config.batch_bytes`, without the address."""
    bundle = BundleWriter()
    with_crc = outboxes[0].writer.with_crc
    for outbox in outboxes:
        if bundle.count + outbox.writer.count > config.batch_messages_max or bundle.nbytes >= config.batch_bytes:
            yield bundle.seal(producer, published_ns, with_crc=with_crc)
            bundle = BundleWriter()
        base, count, values = outbox.drain(now)
        if count:  # else it was sent since it became dirty, or is dirty twice
            bundle.topics.append(outbox.topic)
            bundle.epochs.append(outbox.epoch)
            bundle.bases.append(base)
            bundle.counts.append(count)
            bundle.bodies.append(values)
            bundle.count += count
            bundle.nbytes += len(values) + len(outbox.topic)
    if bundle.count:
        yield bundle.seal(producer, published_ns, with_crc=with_crc)
