"""The bundle: written, read back, taken apart, damaged."""

from __future__ import annotations

import random
from typing import Any

import msgpack
import pytest

from zfabric.errors import RemoteProtocolError
from zfabric.wire.bundle import Bundle, BundleWriter, address, addressee, is_address, parse_bundle, tagged

NODE = bytes(range(16))
Stream = tuple[str, int, int, list[Any]]
STREAMS: list[Stream] = [("a", 1, 5, [1]), ("b.c", 2, 2**40, ["x", [1, 2], {"y": None}]), ("d", 3, 0, [b"bytes", 2])]


def write(*streams: Stream, crc: bool = False) -> bytes:
    """A bundle's frame."""
    writer = BundleWriter()
    for topic, epoch, base, items in streams:
        writer.topics.append(topic)
        writer.epochs.append(epoch)
        writer.bases.append(base)
        writer.counts.append(len(items))
        writer.bodies.append(b"".join(map(msgpack.packb, items)))
        writer.count += len(items)
    return tagged(address(NODE), "") + writer.seal(bytes(16), 7, with_crc=crc)


def parse(frame: bytes, **limits: int) -> Bundle:
    """Parse with a small limit."""
    return parse_bundle([frame], messages_max=limits.get("messages_max", 6))


@pytest.mark.parametrize("crc", [False, True])
def test_what_is_written_is_read(crc: bool) -> None:
    """All columns and values, with and without a checksum."""
    bundle = parse(write(*STREAMS, crc=crc))

    assert (bundle.topics, bundle.epochs, bundle.bases) == (["a", "b.c", "d"], [1, 2, 3], [5, 2**40, 0])
    assert (bundle.counts, bundle.count, bundle.published_ns, bundle.producer) == ([1, 3, 2], 6, 7, bytes(16))
    assert msgpack.unpackb(bundle.body) == [1, "x", [1, 2], {"y": None}, b"bytes", 2]


def test_each_batch_can_be_had_by_itself() -> None:
    """With its own topic, numbers and values."""
    batches = list(parse(write(*STREAMS)).batches())

    assert [(b.topic, b.epoch, b.base, msgpack.unpackb(b.body)) for b in batches] == STREAMS
    assert not any(batch.reliable for batch in batches)


def test_some_batches_can_be_selected() -> None:
    """The others are gone with their values; all of them are the bundle itself."""
    bundle = parse(write(*STREAMS))
    some = bundle.select([0, 2])

    assert (some.topics, some.epochs, some.bases, some.counts, some.count) == (["a", "d"], [1, 3], [5, 0], [1, 2], 3)
    assert msgpack.unpackb(some.body) == [1, b"bytes", 2]
    assert bundle.select([0, 1, 2]) is bundle


def test_values_without_borders_decode_nowhere() -> None:
    """Where the body is not as many values as the columns say, no batch gets those of another one."""
    for body in (b"\xc1", msgpack.packb([1, 2, 3])):
        bundle = parse(write(*STREAMS))
        bundle.body = body
        assert [batch.body for batch in bundle.batches()] == [b""] * 3


def test_a_node_knows_what_is_for_it() -> None:
    """The address names the node; nothing else is one."""
    assert addressee([write(*STREAMS)]) == NODE
    assert addressee([b"topic\0"]) is None
    assert addressee([]) is None
    assert is_address(address(NODE))
    assert not any(map(is_address, (b"", b"\xfe", b"\xfe" + NODE[1:], b"\xff" + NODE, address(NODE) + b"x")))


def test_identities_have_tags_of_their_own() -> None:
    """Who subscribes in another's name asks for what is sent to nobody."""
    assert len({tagged(address(NODE), user) for user in ("", "ada", "bob")}) == 3


def test_the_checksum_covers_all_but_the_address() -> None:
    """Every damaged byte behind the address is noticed."""
    frame = write(*STREAMS, crc=True)

    for position in range(25, len(frame)):
        damaged = bytearray(frame)
        damaged[position] ^= 0x40
        with pytest.raises(RemoteProtocolError):
            parse(bytes(damaged))


def test_malformed_bundles_are_refused() -> None:
    """Cut short, columns that differ, other versions, counts of nothing, too many messages, further frames."""
    good = write(*STREAMS)
    header = [1, bytes(16), 7, 0, ["a", "b"], [1, 2], [0, 0], [1, 1]]

    for broken in (good[:size] for size in range(30)):
        with pytest.raises(RemoteProtocolError, match="bundle"):
            parse(broken)
    for place, value in (
        (0, 2), (1, b"short"), (2, -1), (3, "x"), (4, ["a"]), (4, [1, 2]), (4, ["a", "a"]), (5, [1]), (6, [0]),
        (7, [1]), (5, [-1, 2]), (6, [0, 2**63]), (7, [0, 1]), (7, [1, 2**31]), (7, [4, 3]),
    ):  # fmt: skip
        head = msgpack.packb([*header[:place], value, *header[place + 1 :]])
        with pytest.raises(RemoteProtocolError, match="bundle"):
            parse(tagged(address(NODE), "") + bytes(4) + len(head).to_bytes(4, "big") + head + b"\x92\x01\x02")
    empty = msgpack.packb([*header[:4], [], [], [], []])
    with pytest.raises(RemoteProtocolError, match="empty"):
        parse(tagged(address(NODE), "") + bytes(4) + len(empty).to_bytes(4, "big") + empty + b"\x90")
    with pytest.raises(RemoteProtocolError, match=r"Config\.batch_messages_max"):
        parse(good, messages_max=5)
    with pytest.raises(RemoteProtocolError, match="one frame"):
        parse_bundle([good, b"more"], messages_max=6)


def test_noise_is_only_refused() -> None:
    """Random changes give a bundle or RemoteProtocolError, and what is a bundle can be taken apart."""
    noise, good = random.Random(5), write(*STREAMS)

    for _ in range(3000):
        frame = bytearray(good)
        for _ in range(noise.randrange(1, 5)):
            frame[noise.randrange(25, len(frame))] = noise.randrange(256)
        try:
            bundle = parse(bytes(frame))
        except RemoteProtocolError:
            continue
        assert [batch.count for batch in bundle.batches()] == bundle.counts
