"""The player: in virtual time where time is the point, with real nodes where the values are."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import numpy as np
import pytest

from tests.capture.files import batch, write
from zfabric import CaptureError, Config, LocalProtocolError, Node, Subscription, TopicError
from zfabric.capture import CaptureReader, Player, Recorder
from zfabric.testing import MemoryFabric, run

SECONDS = [0.0, 1.0, 1.5, 4.0, 10.0]


def played_at(
    path: Path, *, pauses: list[tuple[float, float]] | None = None, messages: int = len(SECONDS), **options: object
) -> list[tuple[float, object]]:
    """Play a capture in virtual time; when each value came, in seconds since the beginning."""

    async def scenario() -> list[tuple[float, object]]:
        loop = asyncio.get_running_loop()
        async with MemoryFabric(seed=1) as fabric:
            speaker, listener = await fabric.open("speaker"), await fabric.open("listener")
            subscription = listener.subscribe("#")
            async with Player(speaker, CaptureReader(path), **options) as player:  # type: ignore[arg-type]
                for publisher in player.publishers:
                    await publisher.wait_for(1, 30)
                began = loop.time()
                for pause, resume in pauses or ():
                    loop.call_at(began + pause, player.pause)
                    loop.call_at(began + resume, player.resume)
                playing = asyncio.create_task(player.play())
                came = []
                for _ in range(messages):
                    message = await subscription.receive(1000)
                    came.append((round(loop.time() - began, 1), message.value))
                playing.cancel()
                await asyncio.gather(playing, return_exceptions=True)
            return came

    return run(scenario())


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """Five messages in ten seconds."""
    return write(tmp_path / "run.zfr", *(batch(n, base=n, at=at) for n, at in enumerate(SECONDS)), each=False)


@pytest.mark.parametrize("rate", [0.1, 1.0, 4.0, float("inf")])
def test_rate(capture: Path, rate: float) -> None:
    """Messages come at their original distances, divided by the rate."""
    came = played_at(capture, rate=rate)

    assert [value for _, value in came] == [0, 1, 2, 3, 4]
    assert [at for at, _ in came] == pytest.approx([second / rate for second in SECONDS], abs=0.15)


def test_pause_and_resume(capture: Path) -> None:
    """A pause moves all that follows; a paused player starts with `resume`."""
    assert [at for at, _ in played_at(capture, pauses=[(2, 7), (8, 9)])] == pytest.approx([0, 1, 1.5, 10, 16], abs=0.15)
    assert [at for at, _ in played_at(capture, paused=True, pauses=[(1, 5)])] == pytest.approx(
        [second + 5 for second in SECONDS], abs=0.15
    )


def test_start_until_and_loop(capture: Path) -> None:
    """A part of the recording is played, again and again with `loop`; each round begins where the first one did."""
    came = played_at(capture, start=0.5, until=5, loop=True, messages=7)

    assert [value for _, value in came] == [1, 2, 3, 1, 2, 3, 1]
    assert [at for at, _ in came] == pytest.approx([0.5, 1, 3.5, 4, 4.5, 7, 7.5], abs=0.3)


async def test_position_and_counts(capture: Path) -> None:
    """The player tells where it is, how often it went round and what went where."""
    async with Node("speaker", config=Config(mdns=False)) as node:
        async with Player(node, CaptureReader(capture), rate=float("inf"), paused=True) as player:
            assert (player.position, player.paused) == (0, True)
            assert "paused" in repr(player)
            player.resume()
            assert await player.play() == 5
            assert (player.position, player.rounds, player.played) == (10, 1, {"plant.temp": 5})
        async with Player(node, CaptureReader(capture), rate=1e6, loop=True, messages_max=12) as player:
            assert await player.play() == 12
            assert player.rounds == 3


async def receive(subscription: Subscription, count: int) -> dict[str, list[object]]:
    """So many values, by topic."""
    found: dict[str, list[object]] = {}
    for _ in range(count):
        message = await subscription.receive(10)
        found.setdefault(message.topic, []).append(message.value)
    return found


async def play(node: Node, capture: Path, **options: object) -> Player:
    """Play as fast as possible to a subscriber that is there."""
    async with Player(node, CaptureReader(capture), rate=float("inf"), **options) as player:  # type: ignore[arg-type]
        for publisher in player.publishers:
            await publisher.wait_for(1, 30)
        await player.play()
    return player


async def test_round_trip(tmp_path: Path) -> None:
    """What is recorded from a player is what the player was given: values, keys and headers, arrays too."""
    config = Config(mdns=False)
    array = np.arange(50_000)
    first = write(
        tmp_path / "first.zfr",
        batch(1, "two", None, keys={0: "k", 2: [1]}, headers={1: {"h": {"deep": 1}}}),
        batch(b"x" * 100_000, topic="plant.cam"),
    )
    async with Node("speaker", config=config) as speaker, Node("recorder", config=config) as node:
        publisher = speaker.publisher("plant.array", delivery="at-least-once")
        async with Recorder(node, tmp_path / "array.zfr", messages_max=1) as recorder:
            await publisher.wait_for(1, 30)
            await publisher.publish({"a": array})
            assert await recorder.wait(10)
        for name, count in (("first", 4), ("array", 1)):
            async with Recorder(node, tmp_path / f"{name}.again.zfr", messages_max=count) as recorder:
                await play(speaker, tmp_path / f"{name}.zfr")
                assert await recorder.wait(10)

    def told(path: Path) -> list[tuple[object, ...]]:
        messages = CaptureReader(path).messages()
        return sorted((m.topic, m.seq, repr(m.value), repr(m.key), repr(m.headers)) for m in messages)

    assert told(tmp_path / "first.again.zfr") == told(first)
    (again,) = CaptureReader(tmp_path / "array.again.zfr").messages()
    assert (again.value["a"] == array).all()


async def test_remap_and_patterns(tmp_path: Path) -> None:
    """Topics get other names, one by one or all below a name; patterns choose by the recorded name."""
    config = Config(mdns=False)
    path = write(
        tmp_path / "run.zfr",
        *(batch(topic, topic=topic) for topic in ("plant.a", "plant.b.c", "plantation", "x", "$dead.q")),
    )
    remap = {"x": "y.z", "plant.#": "test.plant.#", "plant.a": "first", "$dead.q": "dead"}
    async with Node("speaker", config=config) as speaker, Node("listener", config=config) as listener:
        subscription = listener.subscribe("#")
        await play(speaker, path, remap=remap)
        assert await receive(subscription, 5) == {
            "first": ["plant.a"],
            "test.plant.b.c": ["plant.b.c"],
            "plantation": ["plantation"],
            "y.z": ["x"],
            "dead": ["$dead.q"],
        }
        player = await play(speaker, path, patterns=["plant.*", "x"])
        assert player.played == {"plant.a": 1, "x": 1}
        assert await receive(subscription, 2) == {"plant.a": ["plant.a"], "x": ["x"]}
        with pytest.raises(TopicError, match="reserved"):
            await play(speaker, path)


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("a.#", "b", LocalProtocolError),
        ("a", "b.#", LocalProtocolError),
        ("a.*", "b", LocalProtocolError),
        ("*.#", "b.#", LocalProtocolError),
        ("a", "b c", TopicError),
        ("a", "$b", TopicError),
        ("a b", "c", TopicError),
        ("#", "#", TopicError),
    ],
)
async def test_bad_remaps_are_refused(capture: Path, old: str, new: str, error: type[Exception]) -> None:
    """A mapping that is none is refused before anything is published."""
    async with Node("speaker", config=Config(mdns=False)) as node:
        with pytest.raises(error):
            Player(node, CaptureReader(capture), remap={old: new})
        with pytest.raises(ValueError, match="rate"):
            Player(node, CaptureReader(capture), rate=0)


async def test_values_that_do_not_decode(tmp_path: Path) -> None:
    """A capture whose values are no MessagePack ends the player with what and where it is."""
    broken = batch(1, 2, base=4)
    broken.count = 3
    async with Node("speaker", config=Config(mdns=False)) as node:
        path = write(tmp_path / "run.zfr", broken)
        with pytest.raises(CaptureError, match=r"plant\.temp#4.*2 values says that it has 3"):
            async with Player(node, CaptureReader(path)) as player:
                await player.play()
    with pytest.raises(CaptureError, match="2 values"):
        list(CaptureReader(path).messages())
    assert "does not decode" in CaptureReader(path).check()[0].reason
    assert os.fspath(path) in str(CaptureReader(path).check()[0])
