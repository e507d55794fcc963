"""`zfabric schedule`, and schedules of a `zfabric store run` that is killed."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path

import zfabric
from tests.cli.processes import Commands
from tests.waiting import wait_until_async

TIMEOUT_S = 30.0
QUICK = zfabric.Config(mdns=False, heartbeat_interval_s=0.2, peer_timeout_s=1.0)


async def test_schedules_are_added_listed_and_removed(cli: Commands, node: zfabric.Node, tmp_path: Path) -> None:
    """With their exit codes: 2 for what makes no sense, 69 where there is no store or no such schedule."""
    alone = await cli.run("schedule", "list", "--timeout", "0.5")
    store = await cli.start("store", "run", str(tmp_path / "data"))
    await store.note("keeping")
    when = "--cron", "0 3 * * *", "--timezone", "Europe/Berlin"
    added = await cli.run("schedule", "add", "nightly", "reports", '{"kind": "daily"}', *when, "--missed", "none")
    wrong = await cli.run("schedule", "add", "nightly", "reports", "--cron", "61 * * * *")
    listed = await cli.run("schedule", "list", "--json")
    shown = await cli.run("schedule", "list")
    removed = await cli.run("schedule", "remove", "nightly")
    again = await cli.run("schedule", "remove", "nightly")

    assert (alone.code, "zfabric store run" in alone.err) == (69, True)
    assert added.code == 0, added.err
    assert (wrong.code, "61" in wrong.err) == (2, True)
    (record,) = listed.records
    assert (record["name"], record["queue"], record["value"]) == ("nightly", "reports", {"kind": "daily"})
    assert (record["cron"], record["timezone"], record["missed"]) == ("0 3 * * *", "Europe/Berlin", "none")
    assert (record["last"], "T02:00:00" in record["next"] or "T01:00:00" in record["next"]) == (None, True)
    assert "0 3 * * * Europe/Berlin" in shown.out
    assert (removed.code, again.code) == (0, 69)


async def test_each_tick_makes_one_job_though_the_store_is_killed(cli: Commands, tmp_path: Path) -> None:
    """Two nodes declare it again and again; ticks follow each other, with a step over each kill; none comes twice."""
    kills, every = 2, 3  # a store starts again before the next tick, as a rule
    jobs: dict[int, int] = {}
    async with zfabric.Node("friend", config=QUICK) as node, zfabric.Node("twin", config=QUICK) as twin:

        @node.worker("beats")
        async def note(job: zfabric.Job) -> None:
            jobs[job.seq] = (job.headers or {})["tick"]

        for life in range(kills + 1):
            store = await cli.start("store", "run", str(tmp_path / "data"))
            await asyncio.gather(
                *(each.schedule("beat", queue="beats", every=every, timeout=TIMEOUT_S) for each in (node, twin, node))
            )
            before = len(jobs)
            await wait_until_async(lambda before=before: len(jobs) > before, TIMEOUT_S)  # type: ignore[misc]
            if life < kills:
                store.process.kill()
                await store.process.wait()
        assert await twin.unschedule("beat")
        assert await node.schedules() == []
        ticks = [tick for _, tick in sorted(jobs.items())]

    steps = [later - earlier for earlier, later in pairwise(ticks)]
    assert sorted(jobs) == list(range(len(jobs))), "one job after the other"
    assert all(step >= every for step in steps), "a tick has two jobs"
    assert sum(step > every for step in steps) <= kills, "a tick without a job"
