"""`zfabric record`, `play` and `inspect`, as processes of their own."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import sys
import termios
import time
from pathlib import Path

import pytest

import zfabric
from tests.capture.files import batch, write
from tests.cli.processes import Commands, environment
from tests.waiting import SLACK_S, wait_until_async
from zfabric.capture import CaptureReader

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="signals and terminals of POSIX")]


async def published(node: zfabric.Node, topic: str, *values: object) -> None:
    """Publish on a topic as soon as somebody listens."""
    publisher = node.publisher(topic, delivery="at-least-once")
    await publisher.wait_for(1, timeout=30)
    for value in values:
        await publisher.publish(value, key="k")
    await publisher.flush()


async def test_record_inspect_play(cli: Commands, node: zfabric.Node, tmp_path: Path) -> None:
    """What is recorded is told by `inspect` and said again by `play`, under another name if asked for."""
    path = tmp_path / "run.zfr"
    recording = await cli.start("record", "-e", "plant.#", "-e", "x", str(path), "--count", "4", "--json", "--compress")
    await recording.note("recording plant.#, x on fabric 'default'")
    await published(node, "plant.temp", 1, {"c": 2}, b"3")
    await published(node, "x", "four")
    recorded = await recording.end()

    assert (recorded.code, recorded.records[0]["messages"]) == (0, 4)
    assert recorded.records[0]["files"] == [str(path)]
    assert recorded.records[0]["bytes"] == path.stat().st_size

    told = await cli.run("inspect", str(path), "--json", "--check")
    assert told.code == 0
    (record,) = told.records
    assert (record["messages"], record["complete"], record["problems"]) == (4, True, [])
    assert [(s["topic"], s["source"], s["messages"], s["missing"]) for s in record["streams"]] == [
        ("plant.temp", "friend", 3, 0),
        ("x", "friend", 1, 0),
    ]
    shown = await cli.run("inspect", str(path))
    assert shown.code == 0 and "4 messages" in shown.out and "plant.temp" in shown.out and "friend" in shown.out

    async with node.subscribe("#") as subscription:
        played = await cli.run(
            "play", str(path), "--rate", "inf", "--remap", "plant.#:=test.#", "--wait", "1", "--json"
        )
        messages = [await subscription.receive(10) for _ in range(4)]
    assert played.code == 0
    assert played.records[0] | {"seconds": 0} == {
        "file": str(path),
        "messages": 4,
        "topics": {"test.temp": 3, "x": 1},
        "seconds": 0,
    }
    values = [message.value for message in messages if message.topic == "test.temp"]
    assert values == [1, {"c": 2}, b"3"] and {message.key for message in messages} == {"k"}
    assert messages[0].source.name.startswith("play-")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_stopped_recording_is_whole(
    cli: Commands, node: zfabric.Node, tmp_path: Path, number: int, code: int
) -> None:
    """Ctrl-C and SIGTERM finish the file: all that was published by then is in it, and its index too."""
    path = tmp_path / "run.zfr"
    recording = await cli.start("record", str(path))
    await recording.note("recording #")
    await published(node, "t", *range(100))

    outcome, _ = await recording.stop(number)

    assert outcome.code == code
    assert "recorded 100 messages" in outcome.err
    reader = CaptureReader(path)
    assert [message.value for message in reader.messages()] == list(range(100))
    assert reader.complete


async def test_a_killed_recording_is_readable(cli: Commands, node: zfabric.Node, tmp_path: Path) -> None:
    """After SIGKILL what was written can be told and played; that the end is missing is told, and is no failure."""
    path = tmp_path / "run.zfr"
    recording = await cli.start("record", str(path))
    await recording.note("recording #")
    await published(node, "t", *range(10))
    await wait_until_async(lambda: len(list(CaptureReader(path).messages())) == 10)
    await recording.stop(signal.SIGKILL)
    with path.open("ab") as file:
        file.write(b"\x95\x01\xa0")

    told = await cli.run("inspect", str(path), "--json")
    played = await cli.run("play", str(path), "--json")

    assert (told.code, told.records[0]["messages"], told.records[0]["complete"]) == (0, 10, False)
    assert "the recorder was killed" in told.err and "not a whole block" in told.err
    assert (played.code, played.records[0]["messages"]) == (0, 10)


async def test_damage_is_told(cli: Commands, tmp_path: Path) -> None:
    """A damaged part is left out, named, and makes `inspect --check` and `play` exit with 1."""
    path = write(tmp_path / "run.zfr", batch(1), batch(2, base=1, at=0.01), batch(3, base=2, at=0.02))
    data = bytearray(path.read_bytes())
    data[-300] ^= 1
    path.write_bytes(data)
    assert [message.value for message in CaptureReader(path).messages()] != [1, 2, 3]

    quick, told, played = (
        await cli.run("inspect", str(path), "--json"),
        await cli.run("inspect", str(path), "--check", "--json"),
        await cli.run("play", str(path), "--json"),
    )

    assert quick.code == 0
    assert told.code == 1 and len(told.records[0]["problems"]) == 1 and "checksum" in told.err
    assert played.code == 1 and played.records[0]["messages"] == 2 and "cannot be read" in played.err


async def test_record_ends(cli: Commands, node: zfabric.Node, tmp_path: Path) -> None:
    """--duration ends well, --timeout with 75 where nothing came; an existing file is refused unless --force."""
    path = tmp_path / "run.zfr"

    ended = await cli.run("record", str(path), "--duration", "0.2", "--json")
    again = await cli.run("record", str(path), "--duration", "0.2")
    forced = await cli.run("record", str(path), "--duration", "0.2", "--force")
    late = await cli.run("record", str(path), "--timeout", "0.2", "--force")
    nowhere = await cli.run("record", str(tmp_path / "no" / "run.zfr"), "--duration", "1")

    assert (ended.code, ended.records[0]["messages"]) == (0, 0)
    assert again.code == 1 and "exists already" in again.err
    assert forced.code == 0
    assert late.code == 75 and "no message came within 0.2 s" in late.err
    assert nowhere.code == 1 and "No such file" in nowhere.err


async def test_record_splits(cli: Commands, node: zfabric.Node, tmp_path: Path) -> None:
    """A recording in parts is told, and inspected and played by the name of its first file."""
    path = tmp_path / "run.zfr"
    recording = await cli.start("record", str(path), "--count", "40", "--split-bytes", "3000")
    await recording.note("recording #")
    publisher = node.publisher("t", delivery="at-least-once")
    await publisher.wait_for(1, timeout=30)
    for _ in range(40):
        await publisher.publish(os.urandom(200))
        await publisher.flush()
    outcome = await recording.end()

    assert outcome.code == 0 and "more part" in outcome.err
    assert len(CaptureReader(path).paths) > 2
    told = await cli.run("inspect", str(path), "--json", "--check")
    assert (told.code, told.records[0]["messages"], len(told.records[0]["files"]) > 2) == (0, 40, True)


async def test_play_keeps_time(cli: Commands, node: zfabric.Node, tmp_path: Path) -> None:
    """40 seconds of the recording take one at --rate 40; --from, --until, -e and --count choose what is played."""
    path = write(
        tmp_path / "run.zfr",
        *(batch(n, base=n, at=n * 0.5) for n in range(5)),
        batch("x", topic="other", at=2.1),
    )
    slow = write(tmp_path / "slow.zfr", *(batch(n, base=n, at=n * 10) for n in range(5)), batch("x", topic="other"))
    async with node.subscribe("plant.#") as subscription:
        playing = await cli.start("play", str(slow), "--rate", "40", "--wait", "1", "-e", "plant.#")
        came = []
        for _ in range(5):
            await subscription.receive(20)
            came.append(time.monotonic())
        outcome = await playing.end()
    assert outcome.code == 0 and "played 5 messages on 1 topic" in outcome.err
    assert 0.2 <= came[-1] - came[0] <= 1 + SLACK_S

    part = await cli.run("play", str(path), "--rate", "inf", "--from", "0.5", "--until", "1.5", "--json")
    looped = await cli.run("play", str(path), "--rate", "100", "--loop", "--count", "15", "--json")
    timed = await cli.run("play", str(path), "--rate", "100", "--loop", "--duration", "1", "--json")
    assert part.records[0]["topics"] == {"plant.temp": 3}
    assert looped.records[0]["messages"] == 15
    assert timed.code == 0 and timed.records[0]["messages"] > 6


async def test_start_paused_waits_for_a_line(cli: Commands, node: zfabric.Node, tmp_path: Path) -> None:
    """In a script `play --start-paused` publishes nothing before a line comes on stdin; without one it fails."""
    path = write(tmp_path / "run.zfr", batch(1), batch(2, base=1, at=0.01))
    async with node.subscribe("#") as subscription:
        playing = await cli.start("play", str(path), "--start-paused", "--wait", "1")
        await playing.note("a line on stdin begins")
        with pytest.raises(TimeoutError):
            await subscription.receive(0.3)
        assert playing.process.stdin is not None
        playing.process.stdin.write(b"\n")
        values = [(await subscription.receive(20)).value for _ in range(2)]
        outcome = await playing.end()

    ended = await cli.run("play", str(path), "--start-paused", stdin=b"")

    assert values == [1, 2] and outcome.code == 0
    assert ended.code == 1 and "stdin ended before a line came" in ended.err


async def test_keys_stop_it_and_let_it_go_on(node: zfabric.Node, tmp_path: Path) -> None:
    """On a terminal space begins a paused one and stops it again, and the terminal is left as it was."""
    path = write(tmp_path / "run.zfr", *(batch(n, base=n, at=n * 0.02) for n in range(3)), batch(9, base=3, at=2))
    controller, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)
    script = (
        "import os, sys, fcntl, termios\n"
        "os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "from zfabric.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-c", script, "play", str(path), "--start-paused", "--wait", "1"),
        stdin=terminal,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(),
    )
    try:
        assert process.stderr is not None
        async with node.subscribe("#") as subscription:
            while b"press space" not in await asyncio.wait_for(process.stderr.readline(), 20):
                pass
            os.write(controller, b" ")
            assert [(await subscription.receive(20)).value for _ in range(3)] == [0, 1, 2]
            os.write(controller, b" ")
            with pytest.raises(TimeoutError):
                await subscription.receive(2.5)
            os.write(controller, b"\n")
            assert (await subscription.receive(20)).value == 9
        assert await asyncio.wait_for(process.wait(), 20) == 0
        assert termios.tcgetattr(terminal) == before
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
        os.close(controller)
        os.close(terminal)


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["play", "nothing.zfr"], 1, "No such file"),
        (["inspect", "nothing.zfr"], 1, "No such file"),
        (["inspect", __file__], 1, "not a capture file"),
        (["play", __file__, "--remap", "a=b"], 2, "is not OLD:=NEW"),
        (["play", __file__, "--rate", "0"], 2, "rate"),
        (["record", "run.zfr", "-e", "a..b"], 2, "empty word"),
        (["record", "run.zfr", "--split-bytes", "5"], 2, "split-bytes"),
        (["record"], 2, "FILE"),
    ],
)
async def test_wrong_use_is_told(cli: Commands, tmp_path: Path, arguments: list[str], code: int, reason: str) -> None:
    """Files that are none and options that make no sense end with the right code and a reason."""
    outcome = await cli.run(*arguments)

    assert outcome.code == code and reason in outcome.err


async def test_play_refuses_what_it_cannot_do(cli: Commands, tmp_path: Path) -> None:
    """Nobody there within --timeout is 75; a recorded topic of the fabric's own is a wrong command line."""
    path = write(tmp_path / "run.zfr", batch(1, topic="$dead.q"))

    alone = await cli.run("play", str(path), "--remap", "$dead.q:=q", "--wait", "1", "--timeout", "0.2")
    reserved = await cli.run("play", str(path))

    assert alone.code == 75 and "0 of 1 subscriber of q came" in alone.err
    assert reserved.code == 2 and "reserved" in reserved.err
