"""Every test runs in a fabric of its own and leaves nothing behind: no thread, task or ZeroMQ context."""

from __future__ import annotations

import asyncio
import gc
import inspect
import shutil
import tempfile
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest
import zmq
from zmq.utils import garbage

GRACE_S = 2.0
"How long threads and tasks that are on their way out may take."

# Slow machines are no reason to fail; a failure prints the line that repeats it.
hypothesis.settings.register_profile("zfabric", deadline=None, print_blob=True)
hypothesis.settings.load_profile("zfabric")

_contexts: weakref.WeakSet[zmq.Context[zmq.Socket[bytes]]] = weakref.WeakSet()
_context_init = zmq.Context.__init__


def _remember_context(self: zmq.Context[zmq.Socket[bytes]], *args: object, **kwargs: object) -> None:
    _context_init(self, *args, **kwargs)  # type: ignore[call-overload]
    _contexts.add(self)


zmq.Context.__init__ = _remember_context  # type: ignore[method-assign]


ALONE = {"faults"}
"Folders whose tests judge who was silent for a second: `.ci/tests` never runs more of them than there are processors."

LONG = (
    "simulation/test_simulator.py",
    "benchmarks/test_workloads.py",
    "benchmarks/test_report.py",
    "simulation/test_oracle.py",
    "simulation/test_jobs.py",
    "durable/test_kills.py",
    "durable/test_queue_kills.py",
    "cli/test_capture.py",
    "contract/test_queues.py",
    "protocol/test_calls.py",
    "hostile/test_secure.py",
    "discovery/test_netns.py",
    "simulation/test_plain_jobs.py",
    "test_architecture.py",
    "faults/test_links.py",
    "faults/test_queues.py",
    "faults/test_groups.py",
    "faults/test_crashes.py",
)
"Files that begin first, so that no process is left with one of them at the end; the slowest one first."

_TESTS = Path(__file__).parent


def _turn(item: pytest.Item) -> int:
    name = item.path.relative_to(_TESTS).as_posix()
    return LONG.index(name) if name in LONG else len(LONG)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with long files, mark what runs alone, and watch the tasks of every coroutine test.

    The guard's place is before the test's own fixtures, so that it looks after they are gone, but after the other
    guards, which must look when the event loop is closed.
    """
    items.sort(key=_turn)
    for item in items:
        if item.path.parent.name in ALONE:
            item.add_marker("alone")
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.function):
            place = max(item.fixturenames.index(guard) for guard in ("no_thread_left", "no_context_left"))
            item.fixturenames.insert(place + 1, "no_task_left")


@pytest.fixture(autouse=True)
def runtime_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty same-host registry, and no keys. Its path is short, because an ipc address has 107 bytes at most."""
    path = Path(tempfile.mkdtemp(prefix="zf", dir="/tmp" if Path("/tmp").is_dir() else None))
    monkeypatch.setenv("ZFABRIC_RUNTIME_DIR", str(path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(path / "config"))
    monkeypatch.delenv("ZFABRIC_KEY_FILE", raising=False)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """A test fails when a thread that it started is still alive."""
    before = set(threading.enumerate())
    yield
    left = [t for t in threading.enumerate() if t not in before and not _is_of_pyzmq(t)]
    for thread in left:
        thread.join(GRACE_S)
    alive = [thread for thread in left if thread.is_alive()]
    assert not alive, f"threads left running: {alive}"


@pytest.fixture(autouse=True)
def no_context_left() -> Iterator[None]:
    """A test fails when a ZeroMQ context, and so perhaps a socket, that it opened is still open."""
    before = set(_contexts)
    yield
    if any(_is_open(context) for context in _contexts if context not in before):
        gc.collect()
    left = [context for context in _contexts if context not in before and _is_open(context)]
    message = f"ZeroMQ contexts left open: {left}"
    for context in left:
        context.destroy(linger=0)
    assert not left, message


def _is_open(context: zmq.Context[zmq.Socket[bytes]]) -> bool:
    return not context.closed and not context._shadow and context is not garbage.gc._context


def _is_of_pyzmq(thread: threading.Thread) -> bool:
    """The thread and context that pyzmq starts with the first zero-copy send live as long as the process."""
    return isinstance(thread, garbage.GarbageCollectorThread)


@pytest.fixture
async def no_task_left() -> AsyncIterator[None]:
    """A coroutine test fails when a task that it started is still running."""
    yield
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    if tasks:
        _, tasks = await asyncio.wait(tasks, timeout=GRACE_S)
    assert not tasks, f"tasks left running: {tasks}"
