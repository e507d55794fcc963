"""`zfabric store run`: a process that keeps durable topics."""

from __future__ import annotations

import asyncio
import shutil
import signal
from pathlib import Path

import pytest

import zfabric
from tests.cli.processes import Commands
from zfabric.store import open_log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_keeps_what_is_published_and_ends_in_order(
    cli: Commands, node: zfabric.Node, tmp_path: Path, number: int
) -> None:
    """Ready when it says so, seen by the others, files for its user alone, 0 at the end."""
    options = "--name", "archive", "--topics", "orders.#", "--messages", "50"
    store = await cli.start("store", "run", str(tmp_path / "data"), *options)
    assert "keeping orders.#" in await store.note("keeping")
    orders = node.publisher("orders.eu", durable=True, confirm="stored")
    await orders.wait_for(stores=1, timeout=30)
    await orders.publish_many(range(1000))

    nodes, topics = [await cli.run(verb, "--json", "--wait", "2") for verb in ("nodes", "topics")]
    outcome, _ = await store.stop(number)

    (archive,) = [record for record in nodes.records if record["name"] == "archive"]
    assert archive["stores"] == ["orders.#"]
    assert {"topic": "orders.eu", "publishers": ["friend"], "subscribers": [], "stores": ["archive"]} in topics.records
    assert outcome.code == 0, outcome.err
    data = tmp_path / "data"
    assert data.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o077 for path in data.iterdir() if path.stat().st_mode & 0o077} == {}


async def test_a_second_store_is_refused(cli: Commands, tmp_path: Path) -> None:
    """It names the directory, and exits with 1."""
    store = await cli.start("store", "run", str(tmp_path / "data"))
    await store.note("keeping")

    second = await cli.run("store", "run", str(tmp_path / "data"))
    await store.stop(signal.SIGTERM)

    assert second.code == 1
    assert "in use by another store" in second.err


async def test_what_is_no_store_is_refused(cli: Commands, tmp_path: Path) -> None:
    """A directory of something else, and a scheme that no engine has."""
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "love.txt").write_text("dear")

    strange = await cli.run("store", "run", str(tmp_path / "letters"))
    unknown = await cli.run("store", "run", "cards:box")

    assert (strange.code, unknown.code) == (1, 1)
    assert "empty directory" in strange.err and "no engine" in unknown.err


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace makes the disk fail")
async def test_a_disk_that_fails_ends_it(cli: Commands, node: zfabric.Node, tmp_path: Path) -> None:
    """EIO for its next flush: nothing more is confirmed, it exits with 1 and says why; what was confirmed is there."""
    data = tmp_path / "data"
    store = await cli.start("store", "run", str(data))
    await store.note("keeping")
    orders = node.publisher("orders", durable=True, confirm="stored")
    jobs = node.pusher("packing", durable=True)
    await orders.wait_for(stores=1, timeout=30)
    await jobs.wait_for(stores=1, timeout=30)
    await orders.publish_many(range(100))
    await jobs.push_many(range(100))
    broken = await asyncio.create_subprocess_exec(
        *("strace", "-f", "-p", str(store.process.pid), "-o", str(tmp_path / "calls")),
        *("-e", "trace=fdatasync,fsync", "-e", "inject=fdatasync,fsync:error=EIO:when=1+"),
        stderr=asyncio.subprocess.PIPE,
    )
    assert broken.stderr is not None
    try:
        attached = await asyncio.wait_for(broken.stderr.readline(), 20)
        assert b"attached" in attached
        late = [asyncio.ensure_future(orders.publish(100)), asyncio.ensure_future(jobs.push(100))]
        outcome = await store.end()
    finally:
        if broken.returncode is None:
            broken.kill()
        await broken.communicate()

    assert outcome.code == 1, outcome.err
    assert "IOError" in outcome.err
    assert "EIO" in (tmp_path / "calls").read_text()
    assert not any(task.done() and task.exception() is None for task in late), "confirmed without a flush"
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    with open_log(str(data)) as log:
        ends = {info.name: info.next for info in log.streams()}
        assert ends["orders"] >= 100 and ends["$queue.packing"] >= 100
        assert not log.damage


async def test_a_store_that_was_wiped_and_one_that_comes_late(
    cli: Commands, node: zfabric.Node, tmp_path: Path
) -> None:
    """The publisher goes on at either, and is told what it lacks; readers get what is left."""
    first = await cli.start("store", "run", str(tmp_path / "data"), "--name", "vault")
    await first.note("keeping")
    events = node.events()
    orders = node.publisher("orders", durable=True, confirm="stored")
    await orders.wait_for(stores=1, timeout=20)
    await orders.publish_many(range(100))
    await first.stop(signal.SIGKILL)
    shutil.rmtree(tmp_path / "data")
    wiped = await cli.start("store", "run", str(tmp_path / "data"), "--name", "vault")
    await wiped.note("keeping")
    await asyncio.wait_for(orders.publish_many(range(100, 200)), 20)
    async with node.subscribe("orders", start="earliest") as reader:
        left = [(await reader.receive(timeout=10)).value for _ in range(100)]
    late = await cli.start("store", "run", str(tmp_path / "late"), "--name", "late")
    await late.note("keeping")
    await orders.wait_for(stores=2, timeout=20)
    await orders.publish_many(range(200, 210))
    told: list[zfabric.StoreLacks] = []
    async with asyncio.timeout(20):
        async for event in events:
            if isinstance(event, zfabric.StoreLacks):
                told.append(event)
            if len(told) == 3:
                break
    await wiped.stop(signal.SIGTERM)
    await late.stop(signal.SIGTERM)

    assert left == list(range(100, 200))
    assert [(event.peer.name, event.first, event.last, event.elsewhere) for event in told] == [
        ("vault", 0, 99, False), ("late", 0, 99, False), ("late", 100, 199, True)
    ]  # fmt: skip
    for directory, kept in (("data", 110), ("late", 10)):
        with open_log(str(tmp_path / directory)) as log:
            info = log.info("orders")
            assert info is not None and info.next == kept


async def test_a_wiped_store_in_the_middle_of_reading_is_told(cli: Commands, tmp_path: Path) -> None:
    """A reader in its history goes on with the new log, after a Gap for what was lost; a group member waits."""
    first = await cli.start("store", "run", str(tmp_path / "data"))
    await first.note("keeping")
    config = zfabric.Config(mdns=False, grace_s=0.5, peer_timeout_s=1.0, heartbeat_interval_s=0.2)
    async with zfabric.Node("friend", config=config) as node:
        events = node.events()
        orders = node.publisher("orders", durable=True, confirm="stored", without_store="buffer")
        await orders.wait_for(stores=1, timeout=20)
        for begin in range(0, 1000, 10):
            await orders.publish_many([(number, "x" * 2000) for number in range(begin, begin + 10)])
        reader = node.subscribe("orders", start="earliest", buffer_bytes=50_000)
        member = node.subscribe("orders", group="billing", start="earliest")
        seen = [(await reader.receive(timeout=20)).value[0]]
        await member.wait_for(timeout=20)
        await first.stop(signal.SIGKILL)
        shutil.rmtree(tmp_path / "data")
        wiped = await cli.start("store", "run", str(tmp_path / "data"))
        await wiped.note("keeping")
        await asyncio.wait_for(orders.publish_many([(number, "") for number in range(1000, 1010)]), 20)
        while seen[-1] != 1009:
            seen.append((await reader.receive(timeout=20)).value[0])
        await wiped.stop(signal.SIGTERM)
        told: list[zfabric.LogMissing] = []
        lost: list[int] = []
        async with asyncio.timeout(20):
            async for event in events:
                if isinstance(event, zfabric.LogMissing):
                    told.append(event)
                elif isinstance(event, zfabric.Gap) and event.cause == "store":
                    lost.extend(range(event.first, event.last + 1))
                if lost and {(event.group, event.waits) for event in told} >= {("", False), ("billing", True)}:
                    break

    assert {event.topic for event in told} == {"orders"} and len({event.store for event in told}) == 1
    assert len(told) == 2 or ("", True) in {(event.group, event.waits) for event in told}  # the restart took longer
    assert sorted(seen + lost) == list(range(1010)) and seen == sorted(seen)
