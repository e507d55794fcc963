"""What arrives is what was published: values, metadata, types, arrays and large buffers."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any, TypedDict
from uuid import UUID

import msgspec
import numpy as np
import pytest

from tests.contract.support import TIMEOUT, MakeNode, connect, next_event, publish_each, take, values
from zfabric import DecodeError, EncodeFailed, Node, Topic
from zfabric.testing import eventually

Pair = tuple[Node, Node]

WHEN = datetime(2024, 2, 29, 12, 30, 15, 250_000, tzinfo=UTC)
ID = UUID("12345678-1234-5678-1234-567812345678")


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Reading(msgspec.Struct):
    sensor: str
    celsius: float = 0.0


@dataclass
class Point:
    x: int
    y: int


class Row(TypedDict):
    name: str
    count: int


PLAIN: list[tuple[Any, Any]] = [
    (None, None),
    (True, True),
    (False, False),
    *[(n, n) for n in (0, 1, -1, 127, 128, -32, -33, 2**32, 2**63 - 1, -(2**63), 2**64 - 1)],
    *[(x, x) for x in (0.0, -1.5, 1e300, float("inf"))],
    *[(text, text) for text in ("", "zß水🙂", "x" * 40_000)],
    *[(data, data) for data in (b"", b"\x00\xff", b"x" * 1000)],
    (bytearray(b"abc"), b"abc"),
    ([], []),
    (list(range(70_000)), list(range(70_000))),
    ((1, 2), [1, 2]),
    ({}, {}),
    ({"a": {"b": [1, {"c": None}]}}, {"a": {"b": [1, {"c": None}]}}),
    ({1: "one", 2: "two"}, {1: "one", 2: "two"}),
    (frozenset({1}), [1]),
    (WHEN, WHEN),
    (date(2024, 2, 29), "2024-02-29"),
    (timedelta(seconds=90), "PT90S"),
    (ID, str(ID)),
    (Decimal("1.10"), "1.10"),
    (Colour.RED, "red"),
    (Level.HIGH, 3),
    (Reading("s1", 20.5), {"sensor": "s1", "celsius": 20.5}),
    (Point(1, 2), {"x": 1, "y": 2}),
]

TYPED: list[tuple[Any, Any]] = [
    (Reading("s1", 20.5), Reading),
    (Point(1, 2), Point),
    ({"name": "a", "count": 1}, Row),
    (WHEN, datetime),
    (date(2024, 2, 29), date),
    (timedelta(seconds=90), timedelta),
    (ID, UUID),
    (Decimal("1.10"), Decimal),
    (Colour.RED, Colour),
    (Level.HIGH, Level),
    ((1, "a"), tuple[int, str]),
    ({1, 2, 3}, set[int]),
    ([Point(1, 2)], list[Point]),
    (b"raw", bytes),
    (5, int | None),
]


async def test_every_plain_value_arrives_as_its_messagepack_form(pair: Pair) -> None:
    """What MessagePack knows arrives as it was; richer types arrive in their plain form."""
    a, b = pair
    publisher, subscription = await connect(a, b, "plain")

    await publisher.publish_many(sent for sent, _ in PLAIN)

    assert await values(subscription, len(PLAIN)) == [expected for _, expected in PLAIN]


async def test_not_a_number_arrives(pair: Pair) -> None:
    """NaN, which equals nothing, arrives as NaN."""
    a, b = pair
    publisher, subscription = await connect(a, b, "plain")

    publisher.publish_nowait(float("nan"))

    (value,) = await values(subscription, 1)
    assert math.isnan(value)


@pytest.mark.parametrize("case", range(len(TYPED)))
async def test_typed_topics_give_back_the_type(pair: Pair, case: int) -> None:
    """A subscriber with a type gets values of that type."""
    a, b = pair
    value, kind = TYPED[case]
    publisher, subscription = await connect(a, b, Topic("typed", kind))

    publisher.publish_nowait(value)

    (received,) = await values(subscription, 1)
    assert received == value
    assert type(received) is type(value)


async def test_a_type_may_be_given_by_either_side_alone(pair: Pair) -> None:
    """Publisher and subscriber need not both be typed: the wire carries plain MessagePack."""
    a, b = pair
    publisher, typed = await connect(a, b, "reading", type=Reading)
    plain = b.subscribe("reading")
    await plain.wait_for(publishers=1, timeout=TIMEOUT)

    publisher.publish_nowait({"sensor": "s1", "unknown": 1})

    assert await values(typed, 1) == [Reading("s1", 0.0)]
    assert await values(plain, 1) == [{"sensor": "s1", "unknown": 1}]


async def test_a_publisher_refuses_what_does_not_fit_its_type(pair: Pair) -> None:
    """The error comes from publish, names the topic, and leaves the batch as it was."""
    a, b = pair
    publisher, subscription = await connect(a, b, Topic("reading", Reading))

    publisher.publish_nowait(Reading("before"))
    with pytest.raises(EncodeFailed, match="reading") as caught:
        publisher.publish_nowait({"sensor": 5})
    publisher.publish_nowait(Reading("after"))

    assert caught.value.topic == "reading"
    assert [(m.value.sensor, m.seq) for m in await take(subscription, 2)] == [("before", 0), ("after", 1)]


async def test_what_cannot_travel_is_refused_and_harms_nothing(pair: Pair) -> None:
    """A value without a MessagePack form raises EncodeFailed; its neighbours in the batch are whole."""
    a, b = pair
    publisher, subscription = await connect(a, b, "any")

    publisher.publish_nowait("before")
    for bad in (object(), [1, {"x": object()}], 2**64, {"s": "\ud800"}, lambda: None):
        with pytest.raises(EncodeFailed):
            publisher.publish_nowait(bad)
    publisher.publish_nowait("after")

    assert await values(subscription, 2) == ["before", "after"]


async def test_payloads_of_another_type_are_skipped_counted_and_reported(pair: Pair) -> None:
    """A typed subscription skips what does not fit; the good messages around it arrive."""
    a, b = pair
    publisher, subscription = await connect(a, b, "mixed", type=Reading)
    events = b.events()

    for value in ({"sensor": "one"}, "nonsense", {"sensor": "two"}, {"sensor": None}):
        publisher.publish_nowait(value)
    await publish_each(publisher, [{"sensor": "three"}])

    assert [(m.value.sensor, m.seq) for m in await take(subscription, 3)] == [("one", 0), ("two", 2), ("three", 4)]
    errors = [await next_event(events, DecodeError) for _ in range(2)]
    assert [(error.seq, error.topic, error.source.name) for error in errors] == [(1, "mixed", "a"), (3, "mixed", "a")]
    assert b.statistics().topics["mixed"].undecodable == 2
    await subscription.close()
    assert b.statistics().topics["mixed"].undecodable == 2


# -- metadata ----------------------------------------------------------------------------------


async def test_key_and_headers_arrive_with_their_message(pair: Pair) -> None:
    """Metadata stays with the message it was given for, also inside of a batch."""
    a, b = pair
    publisher, subscription = await connect(a, b, "meta")

    publisher.publish_nowait(0)
    publisher.publish_nowait(1, key="k")
    publisher.publish_nowait(2, headers={"trace": "abc", "hops": [1, 2]})
    publisher.publish_nowait(3, key=7, headers={"x": None}, ttl=3600)

    received = [(m.value, m.key, m.headers) for m in await take(subscription, 4)]
    assert received == [
        (0, None, None),
        (1, "k", None),
        (2, None, {"trace": "abc", "hops": [1, 2]}),
        (3, 7, {"x": None}),
    ]


async def test_timestamps_are_the_publishers_clock(pair: Pair) -> None:
    """A message tells when its batch was sent."""
    a, b = pair
    publisher, subscription = await connect(a, b, "when")

    before = time.time()
    publisher.publish_nowait(1)
    (message,) = await take(subscription, 1)

    assert before - 1 <= message.timestamp <= time.time() + 1


async def test_a_message_is_dropped_after_its_ttl(pair: Pair) -> None:
    """What is read too late is skipped and counted; what has no ttl stays."""
    a, b = pair
    publisher, subscription = await connect(a, b, "ttl")
    fence, witness = await connect(a, b, "fence")

    publisher.publish_nowait("stale", ttl=0.002)
    publisher.publish_nowait("fresh", ttl=3600)
    publisher.publish_nowait("plain")
    await publisher.flush()
    await fence.publish("all sent")
    last = (await witness.receive(timeout=TIMEOUT)).timestamp
    await eventually(lambda: time.time() > last + 0.01)

    assert await values(subscription, 2) == ["fresh", "plain"]
    assert b.statistics().topics["ttl"].expired == 1


@pytest.mark.parametrize(
    "metadata",
    [{"headers": {"x": object()}}, {"headers": {1: "x"}}, {"headers": ["x"]}, {"key": object()}, {"ttl": "soon"}],
    ids=["header", "header's name", "headers", "key", "ttl"],
)
async def test_bad_metadata_is_refused_and_harms_nothing(pair: Pair, metadata: dict[str, Any]) -> None:
    """Metadata that cannot travel is an error of that publish alone, never of the batch."""
    a, b = pair
    publisher, subscription = await connect(a, b, "meta")

    publisher.publish_nowait("before")
    with pytest.raises((EncodeFailed, TypeError, ValueError)):
        publisher.publish_nowait("bad", **metadata)
    publisher.publish_nowait("after")

    assert await values(subscription, 2) == ["before", "after"]
    await publisher.publish("later")
    assert await values(subscription, 1) == ["later"]


# -- buffers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 10, 100_000, 5_000_000])
async def test_bytes_of_any_size_arrive(pair: Pair, size: int) -> None:
    """Large bytes travel beside the body; untyped they may arrive as a read-only view."""
    a, b = pair
    publisher, subscription = await connect(a, b, "blob")
    data = bytes(range(256)) * (size // 256 + 1)

    await publisher.publish(data[:size])

    (value,) = await values(subscription, 1)
    assert bytes(value) == data[:size]
    assert memoryview(value).readonly


async def test_bytes_typed_topics_always_give_bytes(pair: Pair) -> None:
    """A topic typed as bytes gives bytes, whatever way they travelled."""
    a, b = pair
    publisher, subscription = await connect(a, b, Topic("blob", bytes))

    await publish_each(publisher, [b"small", b"x" * 1_000_000])

    received = await values(subscription, 2)
    assert received == [b"small", b"x" * 1_000_000]
    assert {type(value) for value in received} == {bytes}


ARRAYS: list[Any] = [
    np.arange(5, dtype=np.int32),
    np.arange(200_000, dtype=np.float64).reshape(400, 500),
    np.zeros((0, 3), dtype=np.float32),
    np.array(7.5),
    np.arange(100_000, dtype=np.uint8)[::2],
    np.asfortranarray(np.arange(60_000, dtype=np.int16).reshape(300, 200)),
    np.array(["2024-01-01", "2024-01-02"], dtype="datetime64[D]"),
    np.array([True, False]),
    np.array([1 + 2j], dtype=np.complex64),
    np.arange(3, dtype=">i4"),
]


@pytest.mark.parametrize("case", range(len(ARRAYS)))
async def test_numpy_arrays_arrive_equal_and_read_only(pair: Pair, case: int) -> None:
    """Arrays keep dtype, shape and content, small and large, alone and inside of other values."""
    a, b = pair
    publisher, subscription = await connect(a, b, "array")
    array = ARRAYS[case]

    publisher.publish_nowait(array)
    publisher.publish_nowait({"frame": array, "n": [1, array]})
    alone, nested = await values(subscription, 2)

    copies: list[Any] = [alone, nested["frame"], nested["n"][1]]
    for received in copies:
        assert (received.dtype, received.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(received, array)
        assert not received.flags.writeable


async def test_large_arrays_are_views_of_the_received_frame(pair: Pair) -> None:
    """A large array arrives without a copy: it does not own its memory."""
    a, b = pair
    publisher, subscription = await connect(a, b, "array")

    publisher.publish_nowait(np.zeros(1_000_000))

    (received,) = await values(subscription, 1)
    assert not received.flags.owndata


async def test_a_change_after_publish_is_not_sent(pair: Pair) -> None:
    """Values are taken at the call: what the program does to them afterwards does not matter."""
    a, b = pair
    publisher, subscription = await connect(a, b, "frozen")
    words, table, small, large = ["a"], {"k": 1}, bytearray(b"aa"), bytearray(b"a" * 200_000)
    little, big = np.zeros(3), np.zeros(100_000)
    changed: list[Any] = [words, table, small, large, little, big]

    for value in changed:
        publisher.publish_nowait(value)
    words.append("b")
    table["k"] = 2
    small[:] = b"bb"
    large[:] = b"b" * 200_000
    little[:] = 1
    big[:] = 1

    received = await values(subscription, len(changed))
    assert received[:3] == [["a"], {"k": 1}, b"aa"]
    assert bytes(received[3]) == b"a" * 200_000
    assert not received[4].any()
    assert not received[5].any()


async def test_many_buffers_in_one_turn(pair: Pair) -> None:
    """More large values than fit in one batch are split over several, in order."""
    a, b = pair
    publisher, subscription = await connect(a, b, "blobs")
    blobs = [bytes([n]) * 70_000 for n in range(60)]

    for blob in blobs:
        publisher.publish_nowait(blob)

    assert [bytes(value) for value in await values(subscription, len(blobs))] == blobs


async def test_own_large_values_are_read_only_too(make_node: MakeNode) -> None:
    """A node's own subscriptions see the same types as anybody else's."""
    node = await make_node("alone")
    publisher, subscription = await connect(node, node, "own")

    publisher.publish_nowait(np.arange(100_000))
    publisher.publish_nowait(bytearray(100_000))

    array, blob = await values(subscription, 2)
    assert not array.flags.writeable
    assert memoryview(blob).readonly
