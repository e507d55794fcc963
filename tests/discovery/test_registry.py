"""The same-host registry: real files, real locks, real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.discovery.peer import PeerProcess
from tests.waiting import wait_until, wait_until_async
from zfabric.config import Config
from zfabric.discovery import Announcement, RegistryDiscovery, _files, _liveness, announcements, is_alive, runtime_dir

CONFIG = Config(registry_poll_s=0.01, discovery_records_max=50, endpoints_per_peer_max=4)


def announcement(fabric: str = "test", *endpoints: str) -> Announcement:
    """A new node's announcement."""
    return Announcement(os.urandom(16), fabric, endpoints or ("tcp://127.0.0.1:7400",))


class Started:
    """A registry discovery that runs, and what it found."""

    def __init__(self, own: Announcement, config: Config = CONFIG) -> None:
        self.own = own
        self.found: list[Announcement] = []
        self.discovery = RegistryDiscovery(config)

    @property
    def path(self) -> Path:
        """The file of this node."""
        return path_of(self.own)


def path_of(announcement: Announcement) -> Path:
    """Where a node's file lies."""
    return _files.fabric_dir(announcement.fabric) / announcement.node_id.hex()


Start = Callable[..., Coroutine[Any, Any, Started]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start discoveries, closed after the test."""
    running: list[Started] = []

    async def begin(own: Announcement | None = None, config: Config = CONFIG) -> Started:
        started = Started(own or announcement(), config)
        running.append(started)
        await started.discovery.start(started.own, started.found.append)
        return started

    yield begin
    for started in running:
        await started.discovery.close()


def plant(name: str, content: bytes, fabric: str = "test") -> Path:
    """Put a file that no living node holds into the registry."""
    path = _files.fabric_dir(fabric) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def record(of: Announcement, pid: int = 1) -> bytes:
    """A file's content."""
    return msgspec.msgpack.encode(_files.Record(of, pid))


def pid_of_a_process_that_ended() -> int:
    """An id that no process has now."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait(10)
    return process.pid


def remove(directory: Path) -> None:
    """As a cleaner of temporary files would."""
    for path in sorted(directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    directory.rmdir()


# -- finding each other --------------------------------------------------------------------------------


async def test_the_second_node_sees_the_first_at_once_and_the_first_follows(start: Start) -> None:
    """Own file first, then the list: whoever comes later knows all others when start returns."""
    first = await start()
    second = await start()

    assert second.found == [first.own]
    assert first.found == []
    await wait_until_async(lambda: first.found == [second.own])


async def test_two_that_start_together_meet(start: Start) -> None:
    """At least one of them sees the other without waiting."""
    one, two = await asyncio.gather(start(), start())

    assert one.found or two.found


async def test_fabrics_are_separate(start: Start) -> None:
    """Only the doctor's list shows all of them."""
    one = await start(announcement("one"))
    two = await start(announcement("two"))

    assert two.found == []
    assert {a.fabric for a in announcements()} == {"one", "two"}
    assert is_alive("one", one.own.node_id)
    assert not is_alive("two", one.own.node_id)
    assert one.found == []


async def test_updates_are_reported_again(start: Start) -> None:
    """With what changed; the file is replaced at once, so nobody ever reads half of it."""
    first, second = await start(), await start()
    moved = Announcement(second.own.node_id, "test", ("tcp://127.0.0.1:9999",))

    await second.discovery.update(moved)

    await wait_until_async(lambda: moved in first.found)
    assert is_alive("test", moved.node_id)
    assert announcements().count(moved) == 1


async def test_closing_removes_the_file(start: Start) -> None:
    """And nothing is reported after it."""
    first, second = await start(), await start()
    await first.discovery.close()
    await first.discovery.close()

    third = await start()

    assert not first.path.exists()
    assert third.found == [second.own]
    assert first.found == []


async def test_update_before_start_and_after_close_does_nothing(start: Start) -> None:
    """The interface allows it at any time."""
    discovery = RegistryDiscovery(CONFIG)

    await discovery.update(announcement())
    await discovery.close()

    assert announcements() == []


async def test_quiet_registries_are_not_read_again(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the directory's time stays the same, a poll costs one stat."""
    first = await start()
    directory = first.path.parent
    os.utime(directory, (1, 1))
    await wait_until_async(lambda: first.discovery._looked_at is not None)
    listed: list[Path] = []

    def names(path: Path, at_most: int) -> dict[str, tuple[int, int]]:
        listed.append(path)
        return {}

    monkeypatch.setattr(_files, "names", names)
    polls: list[bool] = []
    monkeypatch.setattr(first.discovery, "_keep_own", lambda: polls.append(True))

    await wait_until_async(lambda: len(polls) > 3)

    assert listed == []


async def test_a_file_written_just_after_a_look_is_seen(start: Start) -> None:
    """Clocks of file systems are coarse: what changed just now may change again without a new time."""
    first = await start()
    second = announcement()
    before = first.path.parent.stat()
    descriptor = _files.write(first.path.parent, second)
    os.utime(first.path.parent, ns=(before.st_atime_ns, before.st_mtime_ns))

    await wait_until_async(lambda: first.found == [second])

    assert descriptor is not None
    os.close(descriptor)


# -- nodes that die ------------------------------------------------------------------------------------


async def test_a_killed_node_is_gone_at_once(start: Start) -> None:
    """SIGKILL leaves the file; the next reader sees that nobody holds it, and removes it."""
    peer = PeerProcess.start("registry")
    try:
        await wait_until_async(lambda: peer.id)
        first = await start()
        assert [a.node_id.hex() for a in first.found] == [peer.id]
        killed = first.found[0]
        assert is_alive("test", killed.node_id)

        peer.process.send_signal(signal.SIGKILL)
        await wait_until_async(lambda: peer.process.poll() is not None)

        assert not is_alive("test", killed.node_id)
        assert announcements() == [first.own]
        assert path_of(killed).exists()
        second = await start()
        assert second.found == [first.own]
        assert not path_of(killed).exists()
    finally:
        peer.kill()


async def test_a_dead_nodes_sockets_go_with_it(start: Start, tmp_path: Path) -> None:
    """Those in the runtime directory; a record must not make us remove anything else."""
    inside, outside, plain = runtime_dir() / "s.sock", tmp_path / "s.sock", runtime_dir() / "plain"
    for path in (inside, outside):
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
    plain.touch()
    dead = announcement("test", f"ipc://{inside}", f"ipc://{outside}", f"ipc://{plain}", "tcp://127.0.0.1:1")
    file = plant(dead.node_id.hex(), record(dead))

    started = await start()

    assert started.found == []
    assert not file.exists()
    assert not inside.exists()
    assert outside.exists()
    assert plain.exists()


def test_a_forked_child_does_not_keep_its_parent_alive() -> None:
    """Locks are inherited by fork: the child lets go of them."""
    code = """
import asyncio, os, sys, time
from zfabric.config import Config
from zfabric.discovery import Announcement, RegistryDiscovery
async def main():
    own = Announcement(os.urandom(16), "test", ())
    await RegistryDiscovery(Config()).start(own, print)
    if os.fork() == 0:
        sys.stdin.read()
        os._exit(0)
    print(own.node_id.hex(), flush=True)
    os._exit(0)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        node_id = bytes.fromhex(parent.stdout.readline().decode())
        parent.wait(10)
        wait_until(lambda: not is_alive("test", node_id))
        assert parent.stdin is not None
        parent.stdin.close()


def test_a_file_being_replaced_is_never_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that opened the old version may find it free, but its name belongs to the new one by then."""
    own = announcement()
    directory = _files.fabric_dir("test")
    old = _files.write(directory, own)
    path = path_of(own)
    stale = os.open(path, os.O_RDONLY)
    new = _files.write(directory, own)
    assert old is not None
    assert new is not None
    os.close(old)
    assert not _liveness.is_held(stale)

    with monkeypatch.context() as slow:
        slow.setattr(_files, "_open", lambda path: stale)
        _files.remove_if_dead(path)

    assert path.exists()
    os.close(new)
    assert _files.remove_if_dead(path)
    assert not path.exists()


def test_two_readers_do_not_take_each_other_for_the_writer() -> None:
    """Both look at a dead node's file at the same time, and both see that it is dead."""
    path = plant("aa" * 16, b"")
    one, two = os.open(path, os.O_RDONLY), os.open(path, os.O_RDONLY)

    assert not _liveness.is_held(one)
    assert not _liveness.is_held(two)
    os.close(one)
    os.close(two)


async def test_without_locks_the_process_id_tells(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows: a record of a process that is gone is removed, one of a running process counts."""
    monkeypatch.setattr(_liveness, "has_locks", lambda: False)
    gone = pid_of_a_process_that_ended()
    dead, alive, garbage = announcement(), announcement(), "0" * 32
    plant(dead.node_id.hex(), record(dead, gone))
    plant(alive.node_id.hex(), record(alive, os.getpid()))
    plant(garbage, b"garbage")

    started = await start()
    second = await start()

    assert started.found == [alive]
    assert set(second.found) == {alive, started.own}
    assert not path_of(dead).exists()
    assert not (path_of(dead).parent / garbage).exists()
    assert _liveness.pid_exists(1)


# -- garbage and limits --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xc1",
        b"\x93\x01\x02\x03",
        record(announcement())[:-3],
        record(announcement()),
        record(announcement(), pid="x"),  # type: ignore[arg-type]
        os.urandom(64),
        b"\xc4" * 20_000,
        b"\xdd\xff\xff\xff\xff",
        msgspec.msgpack.encode([[bytes.fromhex("aa" * 16), "test", ["http://x"]], 1]),
        msgspec.msgpack.encode([[bytes.fromhex("aa" * 16), "other", []], 1]),
        msgspec.msgpack.encode([[bytes.fromhex("aa" * 16), "test", [b"\xff\xfe"]], 1]),
        b"\x92\x93\xc4\x10" + b"\xaa" * 16 + b"\xa4t\xff\xfet\x90\x01",
    ],
    ids=map(str, count()),
)
async def test_garbage_is_counted_and_removed(start: Start, content: bytes) -> None:
    """Nobody holds it, so nobody needs it."""
    path = plant("aa" * 16, content)
    neighbour = announcement()
    descriptor = _files.write(path.parent, neighbour)

    started = await start()

    assert started.found == [neighbour]
    assert started.discovery.ignored == 1
    assert not path.exists()
    assert descriptor is not None
    os.close(descriptor)


async def test_garbage_that_somebody_holds_is_left_alone(start: Start) -> None:
    """It may be a node of a later version: it is counted, and it stays."""
    path = plant("aa" * 16, b"from the future")
    descriptor = os.open(path, os.O_RDONLY)
    _liveness.hold(descriptor)

    started = await start()

    assert started.found == []
    assert started.discovery.ignored == 1
    assert path.exists()
    assert announcements() == [started.own]
    os.close(descriptor)


async def test_links_pipes_and_directories_are_not_followed(start: Start, tmp_path: Path) -> None:
    """And reading a pipe must not stop the event loop."""
    honest = announcement()
    target = tmp_path / honest.node_id.hex()
    target.write_bytes(record(honest))
    directory = _files.fabric_dir("test")
    directory.mkdir(parents=True)
    (directory / honest.node_id.hex()).symlink_to(target)
    os.mkfifo(directory / ("bb" * 16))
    (directory / ("cc" * 16)).mkdir()
    (directory / "README").touch()
    (directory / ("DD" * 16)).touch()

    started = await start()

    assert started.found == []
    assert started.discovery.ignored == 3
    assert target.exists()
    assert (directory / "README").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to give a file away")
async def test_files_of_others_are_not_read(start: Start) -> None:
    """However they got there; they are not ours to remove either."""
    foreign = announcement()
    path = plant(foreign.node_id.hex(), record(foreign))
    os.chown(path, 12_345, 12_345)

    started = await start()

    assert started.found == []
    assert started.discovery.ignored == 1
    assert path.exists()


async def test_records_and_endpoints_have_limits(start: Start) -> None:
    """Of more files than `discovery_records_max` some are not read; too many endpoints are refused."""
    directory = _files.fabric_dir("test")
    crowd = [_files.write(directory, announcement()) for _ in range(CONFIG.discovery_records_max + 20)]
    greedy = announcement("greedy", *(f"tcp://127.0.0.1:{port}" for port in range(1, 6)))
    crowd.append(_files.write(_files.fabric_dir("greedy"), greedy))

    started = await start()
    other = await start(announcement("greedy"))

    assert CONFIG.discovery_records_max - 1 <= len(started.found) <= CONFIG.discovery_records_max
    assert len(announcements(records_max=7)) == 7
    assert other.found == []
    assert other.discovery.ignored == 1
    for descriptor in crowd:
        assert descriptor is not None
        os.close(descriptor)


# -- directories ---------------------------------------------------------------------------------------


async def test_a_registry_that_is_cleaned_away_comes_back(start: Start, runtime_dir: Path) -> None:
    """Somebody empties the temporary files: every node writes its own file again."""
    first, second = await start(), await start()
    remove(runtime_dir)

    await wait_until_async(lambda: first.path.exists() and second.path.exists())

    third = await start()
    assert set(third.found) == {first.own, second.own}


async def test_a_registry_that_becomes_unreadable_is_reported_once(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And looked at again until it works."""
    first = await start()
    failures: list[Path] = []

    def fail(path: Path, at_most: int) -> dict[str, tuple[int, int]]:
        failures.append(path)
        raise OSError("disk on fire")

    with monkeypatch.context() as broken:
        broken.setattr(_files, "names", fail)
        await wait_until_async(lambda: len(failures) > 2)
    assert caplog.text.count("disk on fire") == 1
    second = await start()

    await wait_until_async(lambda: first.found == [second.own])


async def test_a_start_that_fails_leaves_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor a descriptor that would keep one alive."""
    discovery = RegistryDiscovery(CONFIG)

    def fail(path: Path, at_most: int) -> dict[str, tuple[int, int]]:
        raise OSError("disk on fire")

    with monkeypatch.context() as broken:
        broken.setattr(_files, "names", fail)
        with pytest.raises(OSError, match="fire"):
            await discovery.start(announcement(), print)

    assert announcements() == []
    assert list(_files.fabric_dir("test").iterdir()) == []
