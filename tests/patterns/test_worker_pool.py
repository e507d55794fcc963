"""The worker pool, with real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from zfabric.patterns.worker_pool import WorkerPool, WorkersFailed

from tests.waiting import wait_until_async
from zfabric import Config, LocalProtocolError, Node

pytestmark = pytest.mark.slow

IDLE = [sys.executable, "-c", "import signal; signal.pause()"]
STUBBORN = """
import signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], "w").close()
while True: signal.pause()
"""
WORKER = """
import asyncio, signal, sys
from zfabric import Config, LocalProtocolError, Node

async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Node("worker", fabric=sys.argv[1], config=Config(mdns=False)) as node:
        @node.worker("jobs")
        async def work(job):
            with open(sys.argv[2], "a") as file:
                file.write(f"{job.value}\\n")
        await stop.wait()

asyncio.run(main())
"""


def alive(pid: int) -> bool:
    """Whether a process is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_workers_are_kept_alive() -> None:
    """As many as asked for, others in place of those that die, fewer when asked for, none at the end."""
    async with WorkerPool(IDLE, size=2) as pool:
        await wait_until_async(lambda: len(pool.pids) == 2)
        victim, other = pool.pids
        os.kill(victim, signal.SIGKILL)
        await wait_until_async(lambda: victim not in pool.pids and len(pool.pids) == 2)
        assert other in pool.pids
        assert pool.restarts == 1

        await pool.resize(3)
        await wait_until_async(lambda: len(pool.pids) == 3)
        everybody = pool.pids
        await pool.resize(1)
        assert len(pool.pids) == 1
    assert not any(alive(pid) for pid in everybody)


async def test_who_does_not_end_is_killed(tmp_path: Path) -> None:
    """After the grace."""
    there = tmp_path / "there"
    async with WorkerPool([sys.executable, "-c", STUBBORN, str(there)], size=1, grace_s=0.2) as pool:
        await wait_until_async(there.exists)
        (pid,) = pool.pids
    assert not alive(pid)


async def test_a_program_that_cannot_run_breaks_the_pool() -> None:
    """It is not started for ever."""
    async with WorkerPool([sys.executable, "-c", "raise SystemExit(7)"], size=1, attempts=3) as pool:
        await wait_until_async(lambda: pool.failed)
        assert isinstance(pool.failed, WorkersFailed)
        assert (pool.failed.attempts, pool.failed.code, pool.restarts) == (3, 7, 2)
    with pytest.raises(ValueError, match="0 workers or more"):
        WorkerPool(IDLE, size=-1)


async def test_the_pool_follows_its_queue(tmp_path: Path) -> None:
    """More jobs, more workers; all jobs are done, and when there are none the pool shrinks."""
    script, done = tmp_path / "worker.py", tmp_path / "done"
    script.write_text(WORKER)
    fabric = f"test-{os.getpid()}-{tmp_path.name}"
    async with Node("pusher", fabric=fabric, config=Config(mdns=False)) as node, node.pusher("jobs") as pusher:
        await pusher.push_many(range(300))
        pool = WorkerPool([sys.executable, str(script), fabric, str(done)], size=1)
        async with pool, pool.scaled(node, "jobs", size_max=3):
            await wait_until_async(lambda: pool.size == 3)
            await pusher.flush()
            await wait_until_async(lambda: pool.size == 1, 30)

    assert Counter(map(int, done.read_text().split())) == Counter(range(300))


async def test_a_program_that_cannot_be_started_is_an_error_at_once(tmp_path: Path) -> None:
    """And one that can has been started when the pool is open."""
    async with WorkerPool(IDLE, size=2) as pool:
        assert len(set(pool.pids)) == 2
        await pool.resize(3)
        assert len(set(pool.pids)) == 3
    with pytest.raises(FileNotFoundError):
        await WorkerPool([str(tmp_path / "nothing")], size=2).__aenter__()
    with pytest.raises(ValueError, match="null byte"):
        await WorkerPool([sys.executable, "\0"], size=1).__aenter__()
    commands: list[Any] = ["sleep 5", []]
    for command in commands:
        with pytest.raises(ValueError, match="list of the program"):
            WorkerPool(command, size=1)
    with pytest.raises(TypeError):
        WorkerPool([sys.executable, 5], size=1)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="0 workers or more"):
        WorkerPool(IDLE, size=1.5)  # type: ignore[arg-type]
    assert "python" in repr(WorkerPool([Path("python")], size=1))


async def test_only_an_open_pool_has_workers() -> None:
    """One whose opening is cancelled has none, and one that is closed starts none."""
    pool = WorkerPool(IDLE, size=3)
    opening = asyncio.create_task(pool.__aenter__())
    await asyncio.sleep(0)
    opening.cancel()
    await asyncio.wait([opening])
    assert (opening.cancelled(), pool.pids) == (True, ())
    with pytest.raises(LocalProtocolError, match="async with pool"):
        await pool.resize(1)


async def test_a_pool_whose_program_was_away_follows_its_queue_again(tmp_path: Path) -> None:
    """While it is replaced, say: the pool has said so in `failed`, and goes on."""
    program = tmp_path / "program"

    def install() -> None:
        program.write_text(f"#!{sys.executable}\nimport signal\nsignal.pause()\n")
        program.chmod(0o755)

    install()
    async with Node("pusher", config=Config(mdns=False, close_timeout_s=0.1)) as node, node.pusher("jobs") as pusher:
        await pusher.push_many(range(2))
        async with WorkerPool([str(program)], size=1) as pool:
            program.unlink()
            async with pool.scaled(node, "jobs", size_max=2, jobs_per_worker=1):
                await wait_until_async(lambda: pool.failed)
                assert len(pool.pids) == 1
                install()
                await wait_until_async(lambda: len(pool.pids) == 2)


async def test_a_program_that_is_gone_breaks_the_pool(tmp_path: Path) -> None:
    """When it cannot be started again, as when it ends at once."""
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nrm $0\n")
    program.chmod(0o700)
    async with WorkerPool([str(program)], size=1, attempts=2) as pool:
        await wait_until_async(lambda: pool.failed is not None)
        assert isinstance(pool.failed, WorkersFailed)
        assert pool.failed.code == 127
