"""The small parts of the command line: values, meters and warnings."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, cast

import msgspec
import pytest

from zfabric.cli import _input
from zfabric.cli._exits import Stop
from zfabric.cli._options import Options
from zfabric.cli._output import Output
from zfabric.cli._rates import Meter, Meters
from zfabric.cli._values import FieldMissing, json_line, pick, plain, safe, safe_text, short
from zfabric.cli._warnings import Warnings
from zfabric.cli.bw import human, size
from zfabric.events import AccessDenied, AuthenticationFailed, DecodeError, Event, Gap, PeerRefused, ProtocolError
from zfabric.model import Message, Source
from zfabric.node.node import Node

PLAIN: list[tuple[Any, Any]] = [
    (None, None),
    ({1: "a", None: 2, (1, 2): 3}, {"1": "a", "None": 2, "[1, 2]": 3}),
    (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00+00:00"),
    (msgspec.msgpack.Ext(5, b"z"), {"encoding": "base64", "extension": 5, "data": "eg=="}),
    ([{"b": memoryview(b"z")}], [{"b": {"encoding": "base64", "data": "eg=="}}]),
]


@pytest.mark.parametrize(("value", "expected"), PLAIN)
def test_anything_becomes_json(value: object, expected: object) -> None:
    """Whatever MessagePack carries has a form in JSON."""
    assert plain(value) == expected
    assert json.loads(json_line(plain(value))) == expected


def test_numbers_that_json_lacks() -> None:
    """Not-a-number becomes null: each line stays JSON."""
    assert json.loads(json_line(plain([float("nan"), float("inf")]))) == [None, None]


def test_pick_follows_names_and_numbers() -> None:
    """A path goes through objects by name and through lists by number; without end it is the value itself."""
    value = {"a": [{"b": 1}], "0": "zero"}

    assert pick(value, ("a", "0", "b")) == 1
    assert pick(value, ("0",)) == "zero"
    assert pick(value, ()) is value
    for path in ("x", "a.7", "a.b", "a.0.b.c"):
        with pytest.raises(FieldMissing):
            pick(value, tuple(path.split(".")))


def test_terminals_get_no_orders() -> None:
    """Control characters and changes of direction are spelt out; other writing stays as it is."""
    evil, spelt = "a\x1b[31m\x9b\u202e\x7f é 字", "a\\u001b[31m\\u009b\\u202e\\u007f é 字"

    assert safe(evil) == spelt
    assert safe_text(f"{evil}\n\t{evil}") == f"{spelt}\n\t{spelt}"
    assert json_line([evil]) == f'["{spelt}"]\n'.encode()
    assert json.loads(json_line([evil])) == [evil]


def test_large_values_are_short() -> None:
    """A megabyte takes no more than a line."""
    assert short(b"abc") == "bytes[3] YWJj"
    assert len(short(bytes(1_000_000))) < 100


def test_rate_of_a_steady_stream() -> None:
    """Ten messages a second are ten a second from the second message on, also when the window slides."""
    meter = Meter(0.0)
    for tick in range(100):
        now = tick / 10
        meter.add(now, 1, 50)
        meter.prune(now, 5.0)
        if tick:
            assert meter.rate_hz(now, 5.0) == pytest.approx(10, rel=0.03)

    mean, least, most, spread = meter.intervals() or (0, 0, 0, 0)

    assert (mean, least, most) == pytest.approx((0.1, 0.1, 0.1))
    assert spread == pytest.approx(0, abs=1e-6)
    assert meter.bytes_per_s(9.9, 5.0) == pytest.approx(500, rel=0.03)
    assert meter.mean_bytes() == 50


def test_rate_falls_when_a_stream_stops() -> None:
    """Silence is not hidden: after a window without messages the rate is 0."""
    meter = Meter(0.0)
    for tick in range(10):
        meter.add(tick / 10, 1, 1)

    meter.prune(3.0, 2.0)
    assert meter.rate_hz(3.0, 2.0) == 0
    assert meter.intervals() is None


def test_messages_of_one_batch_come_together() -> None:
    """Two batches of two: three intervals, of which two are 0."""
    meter = Meter(1.0)
    meter.add(1.0, 2, 8)
    meter.add(1.3, 2, 8)

    mean, least, most, spread = meter.intervals() or (0, 0, 0, 0)

    assert (mean, least, most) == pytest.approx((0.1, 0.0, 0.3))
    assert spread == pytest.approx(0.1414, rel=0.01)


class _Lists:
    """A subscription that gives what it is told to."""

    def __init__(self, lists: list[list[Message]]) -> None:
        self._lists = lists

    async def batches(self) -> AsyncIterator[list[Message]]:
        """All of them."""
        for messages in self._lists:
            yield messages


async def test_topics_that_come_together_are_measured_apart() -> None:
    """A list with messages of several topics counts for each of them."""
    meters = Meters(len)
    source = Source("0" * 32, "sensor")
    lists = [[Message(0, seq, topic, 0.0, source) for seq, topic in [(0, "a"), (1, "a"), (0, "b")]]]

    await meters.read(cast("Any", _Lists(lists)))

    assert {topic: meter.mean_bytes() for topic, meter in meters.items()} == {"a": 1, "b": 1}
    assert {topic: meter.messages for topic, meter in meters.items()} == {"a": 2, "b": 1}


def test_sizes() -> None:
    """Sizes are those of the value as it travels, in units that read well."""
    numpy = pytest.importorskip("numpy")

    assert [size(b"abc"), size(memoryview(b"abc")), size(numpy.zeros(10)), size({"c": 1})] == [3, 3, 80, 4]
    assert size({"a": numpy.zeros(100)}) > 800
    assert [human(7), human(1500), human(2.5e6), human(3e12)] == ["7 B", "1.5 kB", "2.5 MB", "3.0 TB"]


class _Events:
    """The events of a node, played from a list."""

    def __init__(self, events: list[Event]) -> None:
        self._events = events

    def close(self) -> None:
        """Nothing more comes."""

    async def __aiter__(self) -> AsyncIterator[Event]:
        while self._events:
            yield self._events.pop(0)


class _Node:
    def __init__(self, *events: Event) -> None:
        self._events = list(events)

    def events(self) -> _Events:
        """A stream of them."""
        return _Events(self._events)


async def test_losses_are_summed_up(capsys: pytest.CaptureFixture[str]) -> None:
    """A thousand gaps make one line, which says what was lost, from whom and why; -q does not hide it."""
    camera = Source("0" * 32, "camera")
    gaps = [Gap(camera, "cam.front", seq, seq, "overflow") for seq in range(1000)]
    node = _Node(
        *gaps,
        DecodeError(camera, "cam.front", 7, "bad payload"),
        PeerRefused("tcp://x:1", "fabric", "no"),
        AuthenticationFailed("tcp://x:2", "it has no key"),
        AuthenticationFailed("tcp://x:3", "it ended the handshake: it has a key, or is no node"),
        AccessDenied(camera, "subscribe", "cam.#", False),
        AccessDenied(camera, "publish", "cam.front", True),
    )

    async with Warnings(Output(Options(quiet=True)), cast("Node", node)):
        pass

    assert capsys.readouterr().err.splitlines() == [
        "warning: camera does not let us subscribe cam.#",
        "warning: camera may not publish cam.front",
        "warning: lost 1,000 messages of cam.front from camera: a queue on the way was full",
        "warning: 1 message of cam.front from camera did not decode: bad payload",
        "warning: no connection with tcp://x:1: no",
        "warning: no connection with tcp://x:2: it has no key",
    ]


async def test_strangers_do_not_fill_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    """However many frames they send, and from however many addresses."""
    events = [ProtocolError(f"tcp://x:{number % 100}", "nonsense") for number in range(1000)]

    async with Warnings(Output(Options()), cast("Node", _Node(*events))):
        pass

    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "warning: tcp://x:0 does not speak our protocol: nonsense (10 times)"
    assert (len(lines), lines[-1]) == (11, "warning: 90 more warnings like that")


async def test_a_line_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines may come in any pieces; one that gets longer than a message is not collected for ever."""

    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"a", b"b\r", b"\n\n", b"c\nd\n", b"e", b"f" * 9):
            yield piece

    monkeypatch.setattr(_input, "chunks", pieces)

    assert [line async for line in _input.lines(10)] == [b"ab", b"c", b"d", b"e" + b"f" * 9]
    with pytest.raises(Stop, match="a line of stdin is longer"):
        _ = [line async for line in _input.lines(9)]
