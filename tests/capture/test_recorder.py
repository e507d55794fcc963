"""The recorder, with real nodes."""

from __future__ import annotations

import asyncio
import os
import resource
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.capture.files import SENSOR, content
from tests.waiting import wait_until_async
from zfabric import Config, LocalProtocolError, Message, Node, NodeClosed
from zfabric.capture import CapturedBatch, CaptureReader, CaptureWriter, Recorder
from zfabric.capture.recorder import consecutive

pytestmark = pytest.mark.skipif(os.name == "nt", reason="limits of POSIX files")

QUIET = Config(mdns=False)


@pytest.fixture
async def nodes() -> AsyncIterator[tuple[Node, Node]]:
    """A node that speaks and one that records."""
    async with Node("sensor", config=QUIET) as sensor, Node("recorder", config=QUIET) as recorder:
        yield sensor, recorder


async def test_everything_is_kept(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    """Plain values, arrays and large bytes that travelled in frames of their own, keys, headers, numbers, sources."""
    sensor, node = nodes
    big, array = os.urandom(300_000), np.arange(100_000, dtype=np.float32)
    async with Recorder(node, tmp_path / "run.zfr", ["plant.#"]) as recorder:
        temp = sensor.publisher("plant.temp", delivery="at-least-once")
        frames = sensor.publisher("plant.cam", delivery="at-least-once")
        await asyncio.gather(temp.wait_for(1, 30), frames.wait_for(1, 30))
        await temp.publish({"c": 21.5}, key="line1", headers={"unit": "C"})
        await temp.publish_many(range(1000))
        await frames.publish(big)
        await frames.publish({"image": array, "n": 1}, key=7)
        await asyncio.gather(temp.flush(), frames.flush())
        await wait_until_async(lambda: recorder.messages == 1003)

    reader = CaptureReader(tmp_path / "run.zfr")
    messages = [message for message in reader.messages() if message.topic == "plant.temp"]
    assert (messages[0].value, messages[0].key, messages[0].headers) == ({"c": 21.5}, "line1", {"unit": "C"})
    assert [message.value for message in messages[1:]] == list(range(1000))
    assert [message.seq for message in messages] == list(range(1001))
    first, second = (message for message in reader.messages() if message.topic == "plant.cam")
    assert first.value == big
    assert second.key == 7 and second.value["n"] == 1 and (second.value["image"] == array).all()
    assert {str(message.source) for message in reader.messages()} == {"sensor"}
    assert (reader.header.fabric, reader.header.recorder, reader.header.patterns) == (
        "default",
        "recorder",
        ("plant.#",),
    )
    assert reader.check() == () and reader.complete
    received = [batch.received for batch in reader.batches()]
    assert received == sorted(received) and received[0] >= reader.header.started
    assert abs(received[0] - messages[0].timestamp) < 5


async def test_a_close_waits_for_what_is_being_written(
    nodes: tuple[Node, Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads never write to one file at a time."""
    sensor, node = nodes
    begun, go_on, overlaps = threading.Event(), threading.Event(), []
    real_add, real_close = CaptureWriter.add, CaptureWriter.close

    def add(writer: CaptureWriter, batch: Any) -> None:
        begun.set()
        go_on.wait(10)
        real_add(writer, batch)

    def close(writer: CaptureWriter) -> None:
        overlaps.append(not go_on.is_set())
        real_close(writer)

    monkeypatch.setattr(CaptureWriter, "add", add)
    monkeypatch.setattr(CaptureWriter, "close", close)
    recorder = Recorder(node, tmp_path / "run.zfr", ["plant.#"], config=Config(capture_flush_s=0.001))
    recorder.start()
    publisher = sensor.publisher("plant.temp")
    await publisher.wait_for(1, 30)
    await publisher.publish(1)
    await wait_until_async(begun.is_set)
    closing = asyncio.create_task(recorder.close())
    await asyncio.wait([closing], timeout=0.2)
    go_on.set()
    await closing

    assert overlaps == [False]


async def test_what_several_patterns_match_is_recorded_once(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    """Overlapping and repeated patterns make no doubles."""
    sensor, node = nodes
    async with Recorder(node, tmp_path / "run.zfr", ["plant.*", "plant.#", "#", "plant.*"]) as recorder:
        publishers = [sensor.publisher(topic, delivery="at-least-once") for topic in ("plant.a", "plant.a.b", "x")]
        for number, publisher in enumerate(publishers):
            await publisher.wait_for(3 - number, 5)
            await publisher.publish(number)
        await wait_until_async(lambda: recorder.messages == 3)
        for publisher in publishers:
            await publisher.flush()

    assert sorted(content(CaptureReader(tmp_path / "run.zfr"))) == [("plant.a", 0, 0), ("plant.a.b", 0, 1), ("x", 0, 2)]


async def test_many_topics_in_one_turn_are_recorded_apart(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    """Batches that travelled together are batches of their own topics in the capture, each once."""
    sensor, node = nodes
    names = [f"plant.t{number}" for number in range(20)]
    async with Recorder(node, tmp_path / "run.zfr", ["plant.t1", "plant.*"]) as recorder:
        publishers = [sensor.publisher(name) for name in names]
        for publisher in publishers:
            await publisher.wait_for(2 if publisher.topic == "plant.t1" else 1, 5)
        for number, publisher in enumerate(publishers):
            publisher.publish_nowait(number)
            publisher.publish_nowait("again")
        await wait_until_async(lambda: recorder.messages == 40)

    assert sorted(content(CaptureReader(tmp_path / "run.zfr"))) == sorted(
        entry for number, name in enumerate(names) for entry in [(name, 0, number), (name, 1, "again")]
    )


async def test_it_stops_at_messages_max(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    """With `messages_max` exactly that many are recorded, though more come in one batch, and `wait` returns."""
    sensor, node = nodes
    async with Recorder(node, tmp_path / "run.zfr", messages_max=1234) as recorder:
        assert not await recorder.wait(timeout=0.01)
        publisher = sensor.publisher("t")
        await publisher.wait_for(1, 30)
        await publisher.publish_many(range(5000))
        assert await recorder.wait(timeout=10)

    assert [value for _, _, value in content(CaptureReader(tmp_path / "run.zfr"))] == list(range(1234))


async def test_a_killed_recorder_loses_little(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    """What came longer than Config.capture_flush_s ago is in the file, without any close."""
    sensor, node = nodes
    recorder = Recorder(node, tmp_path / "run.zfr", config=Config(capture_flush_s=0.05))
    recorder.start()
    publisher = sensor.publisher("t")
    await publisher.wait_for(1, 30)
    await publisher.publish("kept")

    await wait_until_async(lambda: content(CaptureReader(tmp_path / "run.zfr")) == [("t", 0, "kept")])

    assert not CaptureReader(tmp_path / "run.zfr").complete
    await recorder.close()
    assert CaptureReader(tmp_path / "run.zfr").complete


@given(st.lists(st.integers(0, 40), unique=True, max_size=20).map(sorted))
def test_where_messages_are_missing_a_batch_is_divided(numbers: list[int]) -> None:
    """Messages that expired or did not decode leave holes: each batch of a capture has consecutive numbers."""
    messages = [Message(number, number, "t", 0.0, SENSOR) for number in numbers]

    found = list(consecutive(messages))

    assert [message for run in found for message in run] == messages
    assert all(run[-1].seq - run[0].seq == len(run) - 1 for run in found)
    assert len(found) == sum(number - 1 not in numbers for number in numbers)


def test_where_the_topic_changes_a_batch_is_divided() -> None:
    """Numbers of two topics may follow each other, too."""
    messages = [Message(seq, seq, topic, 0.0, SENSOR) for seq, topic in [(0, "a"), (1, "a"), (2, "b"), (0, "c")]]

    assert list(consecutive(messages)) == [messages[:2], messages[2:3], messages[3:]]


async def test_what_no_block_can_hold_is_left_out(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    """A message over Config.capture_block_bytes_max is counted and left out; the recording goes on."""
    sensor, node = nodes
    config = Config(capture_block_bytes_max=10_000)
    async with Recorder(node, tmp_path / "run.zfr", config=config) as recorder:
        publisher = sensor.publisher("t")
        await publisher.wait_for(1, 30)
        for value in (1, bytes(20_000), 3):
            await publisher.publish(value)
            await publisher.flush()
        await wait_until_async(lambda: recorder.messages + recorder.too_large == 3)

    assert recorder.too_large == 1
    assert [value for _, _, value in content(CaptureReader(tmp_path / "run.zfr"))] == [1, 3]


async def test_a_full_disk_ends_it(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    """When writing fails `wait` returns and `close` raises; what was written before can be read."""
    sensor, node = nodes
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    recorder = Recorder(node, tmp_path / "run.zfr", config=Config(capture_flush_s=0.05))
    recorder.start()
    publisher = sensor.publisher("t")
    await publisher.wait_for(1, 30)
    await publisher.publish("before")
    await wait_until_async(lambda: content(CaptureReader(tmp_path / "run.zfr")) != [])
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        await publisher.publish(bytes(2000))
        assert await recorder.wait(timeout=10)
        with pytest.raises(OSError, match="File too large"):
            await recorder.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert content(CaptureReader(tmp_path / "run.zfr")) == [("t", 0, "before")]


async def test_only_looking_on(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    """A reliable topic is recorded by a subscriber that confirms, and by one that only looks on."""
    sensor, node = nodes
    publisher = sensor.publisher("t", delivery="at-least-once", confirm="received")
    for delivery in ("at-most-once", None):
        name = tmp_path / f"{delivery}.zfr"
        async with Recorder(node, name, ["t"], delivery=delivery, messages_max=1) as recorder:
            await publisher.wait_for(1, 30)
            await publisher.publish(1)
            assert await recorder.wait(10)
        await wait_until_async(lambda: publisher.subscribers == 0)


async def test_it_starts_once(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    """A recorder is for one recording; closing it twice does no harm."""
    async with Recorder(nodes[1], tmp_path / "run.zfr") as recorder:
        with pytest.raises(LocalProtocolError, match="started already"):
            recorder.start()
        await recorder.close()


async def test_what_cannot_start_leaves_nothing(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    """The file is finished, and holds nothing, if the node refuses to subscribe."""
    _, node = nodes
    await node.close()

    with pytest.raises(NodeClosed):
        async with Recorder(node, tmp_path / "run.zfr", ["plant.#"]):
            raise AssertionError

    reader = CaptureReader(tmp_path / "run.zfr")
    assert (reader.complete, reader.summary().messages) == (True, 0)


async def test_counting_is_exact_while_a_thread_writes(
    nodes: tuple[Node, Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is taken just as the thread counts what it writes is counted, too: memory stays bounded by it."""
    sensor, node = nodes
    taking, size = threading.Event(), CapturedBatch.nbytes.fget  # type: ignore[attr-defined]

    def slow(batch: CapturedBatch) -> int:
        if threading.current_thread() is not threading.main_thread() and not taking.is_set():
            asyncio.run_coroutine_threadsafe(publish(2), loop).result(30)
            taking.set()
        return int(size(batch))

    async def publish(count: int) -> None:
        await publisher.publish(bytes(100))
        await wait_until_async(lambda: recorder.messages == count)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(CapturedBatch, "nbytes", property(slow))
    async with Recorder(node, tmp_path / "run.zfr", ["plant.#"]) as recorder:
        publisher = sensor.publisher("plant.temp", delivery="at-least-once")
        await publisher.wait_for(1, 30)
        await publish(1)
        await wait_until_async(taking.is_set)
        await wait_until_async(lambda: not recorder._pending)

    assert recorder._written_bytes == recorder._taken_bytes > 200
