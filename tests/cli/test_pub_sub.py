"""`zfabric pub` and `zfabric sub`, as processes of their own or against a node in this one."""

from __future__ import annotations

import asyncio
import base64
import re
import signal

import msgspec
import pytest

import zfabric
from tests.cli.processes import Commands
from tests.waiting import SLACK_S, wait_until_async

pytestmark = pytest.mark.slow


async def subscribed(publisher: zfabric.Publisher) -> None:
    """Return once somebody receives the topic."""
    await publisher.wait_for(subscribers=1, timeout=30)


async def test_round_trip(cli: Commands) -> None:
    """What one process publishes another shows, with key, headers and types kept, and both say what they did."""
    sub = await cli.start("sub", "plant.#", "--count", "4", "--name", "viewer")
    await sub.note("listening to plant.#")

    one, lines = await asyncio.gather(
        cli.run("pub", "plant.temp", '{"c": 21.5}', "--key", "line1", "-H", "unit=celsius", "--wait", "1"),
        cli.run(
            "pub",
            "plant.text",
            "--json",
            "--count",
            "3",
            "--wait",
            "1",
            stdin=b'plain\r\n\n[1, null]\n"quoted"\nfourth\n',
        ),
    )
    shown = await sub.end()

    assert (one.code, one.out, one.err) == (0, "", "sent 1, matched 1 subscriber (viewer)\n")
    assert lines.code == 0
    assert lines.records == [{"topic": "plant.text", "sent": 3, "subscribers": ["viewer"]}]
    assert shown.code == 0
    temp = [r for r in shown.records if r["topic"] == "plant.temp"]
    assert [(r["value"], r["key"], r["headers"], r["seq"]) for r in temp] == [
        ({"c": 21.5}, "line1", {"unit": "celsius"}, 0)
    ]
    text = [r for r in shown.records if r["topic"] == "plant.text"]
    assert [(r["value"], r["seq"]) for r in text] == [("plain", 0), ([1, None], 1), ("quoted", 2)]
    assert "key" not in text[0] and text[0]["source"].startswith("pub-")


async def test_no_message_is_lost_when_pub_ends(cli: Commands, node: zfabric.Node) -> None:
    """`pub` ends when its messages have arrived: also the last one counts."""
    async with node.subscribe("#") as subscription:
        outcomes = await asyncio.gather(*(cli.run("pub", f"t.n{n}", str(n), "--require-match") for n in range(4)))

        received = {(await subscription.receive(10)).value for _ in outcomes}

    assert {outcome.code for outcome in outcomes} == {0}
    assert received == {0, 1, 2, 3}


async def test_forms_of_a_value(cli: Commands, node: zfabric.Node) -> None:
    """An argument is JSON or else text; --text and --raw say otherwise, and --raw takes stdin as one message."""
    binary = bytes(range(256)) * 10
    async with node.subscribe("v.*") as subscription:
        await asyncio.gather(
            cli.run("pub", "v.json", "[1, 2]", "--wait", "1"),
            cli.run("pub", "v.text", "--text", "12", "--wait", "1"),
            cli.run("pub", "v.raw", "--raw", "12", "--wait", "1"),
            cli.run("pub", "v.file", "--raw", "--wait", "1", stdin=binary),
        )
        values = {m.topic: m.value for m in [await subscription.receive(10) for _ in range(4)]}

    assert values == {"v.json": [1, 2], "v.text": "12", "v.raw": b"12", "v.file": binary}


async def test_rate_and_wait(cli: Commands, node: zfabric.Node) -> None:
    """--wait holds the first message back until enough subscribe; a rate alone goes on until Ctrl-C."""
    pub = await cli.start("pub", "clock.tick", "1", "--rate", "200", "--wait", "2", "--delivery", "at-most-once")
    first = node.subscribe("clock.*")
    async with zfabric.Node("late", config=zfabric.Config(mdns=False)) as late:
        await first.wait_for(publishers=1, timeout=30)
        assert first.pending == 0
        late.subscribe("clock.tick")
        assert [(await first.receive(20)).seq for _ in range(3)] == [0, 1, 2]
        outcome, seconds = await pub.stop()

    assert outcome.code == 130
    assert seconds < 3 + SLACK_S
    assert re.fullmatch(r"sent \d+, matched 2 subscribers \(friend, late\)\n", outcome.err)


async def test_values_are_shown(cli: Commands, node: zfabric.Node) -> None:
    """Bytes become base64 that says so, also inside of values; arrays are shown in short."""
    numpy = pytest.importorskip("numpy")
    publisher = node.publisher("v.x")
    sub = await cli.start("sub", "v.x", "--count", "4", "--json")
    await subscribed(publisher)
    for value in (b"\x00\xff", {"in": [b"z"]}, numpy.arange(3, dtype="<i2"), numpy.zeros((100, 100))):
        publisher.publish_nowait(value)

    blob, nested, small, large = (await sub.end()).records

    assert (base64.b64decode(blob["value"]), blob["encoding"]) == (b"\x00\xff", "base64")
    assert nested["value"] == {"in": [{"encoding": "base64", "data": "eg=="}]}
    assert small["value"] == {"encoding": "ndarray", "dtype": "int16", "shape": [3], "data": [0, 1, 2]}
    assert (large["value"]["shape"], large["value"]["omitted"]) == ([100, 100], 9984)


async def test_field_and_raw(cli: Commands, node: zfabric.Node) -> None:
    """--field shows a part and counts the values without it; --raw shows values and nothing around them."""
    publisher = node.publisher("robot.pose")
    field, raw = await asyncio.gather(
        cli.start("sub", "robot.pose", "--field", "at.1.x", "--count", "1"),
        cli.start("sub", "#", "--raw", "--count", "4"),
    )
    await publisher.wait_for(subscribers=2, timeout=30)
    for value in ("words", b"\x01\x02", {"b": 1}, {"at": [0, {"x": 7}]}):
        publisher.publish_nowait(value)

    picked, bare = await field.end(), await raw.end()

    assert [r["value"] for r in picked.records] == [7]
    assert "3 messages had no field 'at.1.x'" in picked.err
    assert bare.out == 'words\n\x01\x02{"b":1}\n{"at":[0,{"x":7}]}\n'


async def test_overlapping_patterns_show_a_message_once(cli: Commands, node: zfabric.Node) -> None:
    """A message that two patterns match is one message."""
    publisher = node.publisher("a.b")
    sub = await cli.start("sub", "a.*", "a.b", "#", "--count", "2")
    await subscribed(publisher)
    publisher.publish_nowait(1)
    publisher.publish_nowait(2)

    assert [r["value"] for r in (await sub.end()).records] == [1, 2]


async def test_what_counts_is_written_before_the_end(cli: Commands, node: zfabric.Node) -> None:
    """A message longer than a pipe holds is shown whole, though another pattern's reader sees that it is enough."""
    publisher = node.publisher("a.b")
    sub = await cli.start("sub", "a.*", "a.b", "--count", "1")
    await subscribed(publisher)
    await publisher.publish("x" * 500_000)
    await publisher.publish("one too many")
    with pytest.raises(TimeoutError):  # nobody reads
        await asyncio.wait_for(sub.process.wait(), 1)

    assert [len(r["value"]) for r in (await sub.end()).records] == [500_000]


async def test_lines_come_at_once(cli: Commands, node: zfabric.Node) -> None:
    """Each message can be read the moment it has come, though stdout is no terminal; it has no escape codes."""
    publisher = node.publisher("a.b")
    sub = await cli.start("sub", "a.b")
    await subscribed(publisher)

    for value in ("first", "second"):
        publisher.publish_nowait(value)
        line = await sub.line()
        assert msgspec.json.decode(line)["value"] == value
        assert "\x1b" not in line


async def test_reader_that_leaves_ends_sub(cli: Commands, node: zfabric.Node) -> None:
    """As with `| head -1`: sub ends well when nobody reads on, without waiting for another message."""
    publisher = node.publisher("a.b")
    sub = await cli.start("sub", "a.b", "-q")
    await subscribed(publisher)
    publisher.publish_nowait(1)
    await sub.line()

    pipe = sub.process._transport.get_pipe_transport(1)  # type: ignore[attr-defined]
    pipe.close()
    outcome = await sub.end()

    assert (outcome.code, outcome.err) == (0, "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_signals_end_cleanly(cli: Commands, node: zfabric.Node, number: int, code: int) -> None:
    """Ctrl-C and SIGTERM end commands soon, whatever they wait for, with a goodbye and without a traceback."""
    publisher = node.publisher("a.b")
    sub, pub = await asyncio.gather(cli.start("sub", "a.b"), cli.start("pub", "a.c", "--wait", "1", "--timeout", "30"))
    await subscribed(publisher)
    await wait_until_async(lambda: len(node.peers) == 2, 20)

    stopped = await asyncio.gather(sub.stop(number), pub.stop(number))

    for outcome, seconds in stopped:
        assert outcome.code == code
        assert seconds < 3 + SLACK_S
        assert "Traceback" not in outcome.err
    assert publisher.subscribers == 0 or await wait_until_async(lambda: publisher.subscribers == 0)


async def test_ctrl_c_while_stdin_is_silent(cli: Commands, node: zfabric.Node) -> None:
    """A command that waits for its next line of stdin ends as well."""
    subscription = node.subscribe("a.b")
    pub = await cli.start("pub", "a.b", "--delivery", "at-most-once", "--wait", "1")
    assert pub.process.stdin is not None
    pub.process.stdin.write(b"one\n")
    assert (await subscription.receive(20)).value == "one"
    pub.process.send_signal(signal.SIGINT)

    code = await asyncio.wait_for(pub.process.wait(), 3 + SLACK_S)

    assert code == 130


async def test_nobody_there(cli: Commands) -> None:
    """Each way of not getting what was asked for has its exit code, and a message without a traceback."""
    required, waited, silent, plain = await asyncio.gather(
        cli.run("pub", "a.b", "1", "--require-match"),
        cli.run("pub", "a.b", "1", "--wait", "1", "--timeout", "0.2"),
        cli.run("sub", "x.y", "--count", "2", "--timeout", "0.2", "-q"),
        cli.run("pub", "a.b", "1"),
    )

    assert (required.code, required.err) == (69, "error: nobody subscribes to 'a.b'; nothing was sent\n")
    assert (waited.code, waited.err) == (
        75,
        "error: only 0 of 1 subscriber came within 0.2 s; nothing was sent\n",
    )
    assert (silent.code, silent.err) == (75, "error: 0 of 2 messages came within 0.2 s\n")
    assert (plain.code, plain.err) == (0, "sent 1, matched no subscriber\n")


async def test_a_misspelt_topic_is_seen(cli: Commands, node: zfabric.Node) -> None:
    """Where nobody matches, the names that are there are told."""
    node.publisher("plant.temp")
    subscription = node.subscribe("plant.press")
    sub = await cli.start("sub", "plant.tmep")

    assert "nobody publishes plant.tmep yet; there are: plant.temp" in await sub.note("nobody")
    sent = await cli.run("pub", "plant.perss", "1")

    assert sent.err == "sent 1, matched no subscriber; there are subscriptions to: plant.press, plant.tmep\n"
    await subscription.close()


async def test_bad_input(cli: Commands, node: zfabric.Node) -> None:
    """A value that cannot be sent ends with 1 and says which line it was; what came before was sent."""
    subscription = node.subscribe("a.b")
    outcome, empty = await asyncio.gather(
        cli.run("pub", "a.b", stdin=b"good\n\xff\xfe\n"), cli.run("pub", "a.c", stdin=b"")
    )

    assert outcome.code == 1
    assert outcome.err.endswith("error: line 2 of stdin is not UTF-8 text: send it as bytes with --raw\n")
    assert (await subscription.receive(20)).value == "good"
    assert (empty.code, empty.err) == (0, "warning: stdin was empty: nothing was sent\n")


async def test_a_promise_that_is_not_kept_is_told(cli: Commands, node: zfabric.Node) -> None:
    """A subscription that asks for more than a publisher promises says so, because it will get nothing."""
    node.publisher("a.b")
    sub = await cli.start("sub", "a.b", "--delivery", "exactly-once")

    assert "friend promises only at-most-once" in await sub.note("nothing of a.b")
