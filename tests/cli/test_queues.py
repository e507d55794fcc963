"""`zfabric push`, `pull`, `queues` and `dead`."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import zfabric
from tests.cli.processes import Commands
from tests.waiting import wait_until_async


def script(code: str) -> str:
    """A command line that runs some Python."""
    return f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}"


async def test_jobs_are_pushed_shown_and_done(cli: Commands) -> None:
    """Lines of stdin become jobs; `pull` shows them, `push` ends when they are done."""
    pull = await cli.start("pull", "jobs", "--count", "3")
    pushed = await cli.run("push", "jobs", "-H", "colour=red", "--json", "--timeout", "20", stdin=b'1\n{"a": 2}\nx\n')
    pulled = await pull.end()

    assert (pushed.code, pulled.code) == (0, 0), pushed.err + pulled.err
    figures = {"done": 3, "dead": 0, "expired": 0, "lost": 0, "redelivered": 0}
    assert pushed.records == [{"queue": "jobs", "pushed": 3, **figures}]
    assert [record["value"] for record in pulled.records] == [1, {"a": 2}, "x"]
    assert {(record["queue"], record["attempt"], record["headers"]["colour"]) for record in pulled.records} == {
        ("jobs", 1, "red")
    }


async def test_a_command_is_run_for_each_job(cli: Commands, node: zfabric.Node) -> None:
    """Its stdout is passed on; a failing one makes a dead letter with its stderr."""
    pusher = node.pusher("jobs", max_attempts=2, backoff_s=0.01)
    await pusher.push_many([1, 2, "bad"])
    code = (
        "import json, os, sys\n"
        "value = json.loads(input())\n"
        "print(value * 2, os.environ['ZFABRIC_QUEUE'], os.environ['ZFABRIC_ATTEMPT'])"
    )
    pull = await cli.start("pull", "jobs", "--command", script(code))
    await asyncio.wait_for(pusher.flush(), 20)
    pulled, _ = await pull.stop()

    assert sorted(pulled.out.splitlines()) == ["2 jobs 1", "4 jobs 1"]
    assert node.statistics().queues["jobs"].dead == 1
    listed = await cli.run("dead", "list", "jobs")
    assert (listed.code, [record["value"] for record in listed.records]) == (0, ["bad"])
    assert "exited with 1" in listed.records[0]["headers"]["dead.reason"]
    assert "JSONDecodeError" in listed.records[0]["headers"]["dead.reason"]


async def test_a_job_that_is_tried_again_counts_once(cli: Commands, node: zfabric.Node) -> None:
    """`pull --count` counts jobs done, not attempts."""
    pusher = node.pusher("jobs", backoff_s=0.01)
    await pusher.push_many(range(4))
    code = "import os, sys; sys.exit(os.environ['ZFABRIC_ATTEMPT'] == '1')"
    options = "--count", "4", "--concurrency", "3", "--timeout", "20"
    pulled = await cli.run("pull", "jobs", *options, "--json", "--command", script(code))

    assert pulled.code == 0, pulled.err
    assert sorted(record["value"] for record in pulled.records if record["error"] is None) == [0, 1, 2, 3]
    assert len(pulled.records) == 8
    await asyncio.wait_for(pusher.flush(), 10)


async def test_a_command_is_done_when_it_ends_whatever_it_leaves_behind(cli: Commands, node: zfabric.Node) -> None:
    """A process in the background holds nothing up; and a job that cannot be put to the command fails alone."""
    pusher = node.pusher("jobs", max_attempts=1)
    await pusher.push("no variable of the environment", key="\0")
    await pusher.push("x" * 100_000)  # more than a pipe has room for
    code = (
        "import signal, subprocess, sys\n"
        "print(subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()']).pid)"
    )
    pulled = await cli.run("pull", "jobs", "--count", "1", "--timeout", "20", "--command", script(code))

    os.kill(int(pulled.out), signal.SIGKILL)
    assert pulled.code == 0, pulled.err
    await asyncio.wait_for(pusher.flush(), 20)
    dead = node.statistics().queues["jobs"].dead
    assert (dead, "embedded null byte" in pulled.err) == (1, True), pulled.err


async def test_at_most_once_what_is_not_done_is_lost(cli: Commands, node: zfabric.Node) -> None:
    """`push` counts it; a command that fails is told of, and its job is gone."""
    plain = "--delivery", "at-most-once"
    pull = await cli.start("pull", "jobs", *plain, "--count", "2", "--json", "--command", script("int(input())"))
    pushed = await cli.run("push", "jobs", *plain, "--json", "--timeout", "20", stdin=b"1\nx\n")
    pulled = await pull.end()
    assert (pushed.code, pulled.code) == (0, 0), pushed.err + pulled.err
    assert [record["done"] for record in pushed.records] == [2]
    assert [record["error"] is None for record in pulled.records] == [True, False]

    puller = node.puller("left", delivery="at-most-once")
    pushing = await cli.start("push", "left", "1", *plain, "--json")
    await wait_until_async(lambda: puller.pending == 1)
    await puller.close()
    pushed = await pushing.end()
    assert (pushed.code, [record["lost"] for record in pushed.records]) == (1, [1])
    assert "1 job of left lost" in pushed.err


async def test_deliveries_must_fit(cli: Commands, node: zfabric.Node) -> None:
    """Each other, and the other options."""
    node.puller("jobs")
    pushed = await cli.run("push", "jobs", "1", "--delivery", "at-most-once", "--timeout", "3")
    assert pushed.code == 75
    assert "give both the same --delivery" in pushed.err
    for verb, option in (("push", "--priority"), ("push", "--attempts"), ("push", "--delay"), ("pull", "--selector")):
        refused = await cli.run(verb, "jobs", option, "1", "--delivery", "at-most-once", stdin=b"")
        assert refused.code == 2
        assert "--delivery at-least-once" in refused.err


async def test_dead_letters_are_done_again_or_dropped(cli: Commands, node: zfabric.Node) -> None:
    """`requeue` waits until they are done; `purge` drops; both leave none behind."""
    pusher = node.pusher("jobs", max_attempts=1)
    mended: set[str] = set()
    done: list[tuple[str, Any]] = []

    @node.worker("jobs")
    async def work(job: zfabric.Job) -> None:
        if job.value not in mended:
            raise ValueError("not yet")
        done.append((job.value, job.headers))

    await pusher.push("one", headers={"a": 1})
    await pusher.push("two")
    await asyncio.wait_for(pusher.flush(), 10)
    await wait_until_async(lambda: node.statistics().queues["$dead.jobs"].depth == 2)
    mended = {"one"}
    failed = await cli.run("dead", "requeue", "jobs", "--timeout", "20")
    mended = {"one", "two"}
    await wait_until_async(lambda: node.statistics().queues["$dead.jobs"].in_flight == 0)
    again = await cli.run("dead", "requeue", "jobs")

    assert (failed.code, again.code) == (1, 0), failed.err + again.err
    assert done == [("one", {"a": 1}), ("two", None)]
    await wait_until_async(lambda: node.statistics().queues["$dead.jobs"].depth == 0)
    nothing = await cli.run("dead", "list", "jobs", "--timeout", "1")
    assert nothing.code == 69

    mended = set()
    await pusher.push("three")
    await asyncio.wait_for(pusher.flush(), 10)
    purged = await cli.run("dead", "purge", "jobs")
    assert purged.code == 0, purged.err
    await wait_until_async(lambda: node.statistics().queues["$dead.jobs"].depth == 0)


async def test_queues_shows_what_there_is(cli: Commands, node: zfabric.Node) -> None:
    """As a table and as JSON; 69 without any."""
    assert (await cli.run("queues", "--timeout", "1")).code == 69
    await node.pusher("jobs").push_many(range(7))
    table, listed = await asyncio.gather(cli.run("queues", "--wait", "1"), cli.run("queues", "--wait", "1", "--json"))

    assert listed.records == [
        {
            "queue": "jobs", "node": "friend", "depth": 7, "in_flight": 0, "workers": 0, "done": 0, "redelivered": 0,
            "dead": 0, "expired": 0, "lost": 0,
        }
    ]  # fmt: skip
    assert table.out.split()[:2] == ["QUEUE", "NODE"]
    assert "friend" in table.out


async def test_the_exit_code_tells_what_went_wrong(cli: Commands, node: zfabric.Node) -> None:
    """75 for jobs that nobody does and for jobs that do not come, 1 for dead ones, 2 for the command line."""

    @node.worker("failing")
    async def fail(job: zfabric.Job) -> None:
        await job.reject("no")

    late, none, dead, usage, program, selector = await asyncio.gather(
        cli.run("push", "jobs", "1", "--timeout", "1"),
        cli.run("pull", "jobs.none", "--timeout", "1"),
        cli.run("push", "failing", "1", "--timeout", "20"),
        cli.run("push", "bad..name", "1"),
        cli.run("pull", "jobs", "--command", "no-such-program"),
        cli.run("pull", "jobs", "--selector", "bad =="),
    )

    assert [outcome.code for outcome in (late, none, dead, usage, program, selector)] == [75, 75, 1, 2, 2, 2]
    assert "nobody pulls 'jobs'" in late.err
    assert "job 0 is dead after 1 attempt: no" in dead.err


async def test_durable_jobs_outlive_the_command_and_the_store(cli: Commands, tmp_path: Path) -> None:
    """`push --durable` ends when they are stored, 69 without a store; `dead requeue --durable` hands them back."""
    nobody = await cli.run("push", "jobs", "1", "--durable", "--timeout", "0.5")
    store = await cli.start("store", "run", str(tmp_path / "data"), "--name", "archive")
    await store.note("keeping")
    pushed = await cli.run("push", "jobs", "--durable", "--attempts", "1", "--json", "--timeout", "20", stdin=b"1\n2\n")
    await store.stop(signal.SIGTERM)
    store = await cli.start("store", "run", str(tmp_path / "data"), "--name", "archive")
    await store.note("keeping")
    failing = script("import sys; sys.exit(1)")
    pull = await cli.start("pull", "jobs", "--command", failing)
    for job in range(2):
        await pull.note(f"job {job} of archive: ")
    failed, _ = await pull.stop()
    requeued = await cli.run("dead", "requeue", "jobs", "--durable", "--timeout", "20")
    shown = await cli.run("queues", "--json", "--dead", "--wait", "1")
    pulled = await cli.run("pull", "jobs", "--count", "2", "--timeout", "20")
    await store.stop(signal.SIGTERM)

    assert nobody.code == 69, nobody.err
    assert pushed.records == [{"queue": "jobs", "pushed": 2, "stored": 2}]
    assert (pushed.code, requeued.code, pulled.code) == (0, 0, 0), requeued.err + pulled.err
    assert failed.code == 130, failed.err
    depths = {record["queue"]: record["depth"] for record in shown.records if record["node"] == "archive"}
    assert depths == {"jobs": 2, "$dead.jobs": 0}
    assert sorted(record["value"] for record in pulled.records) == [1, 2]


async def test_dead_letters_in_other_hands_are_told(cli: Commands, node: zfabric.Node) -> None:
    """One of two is held by another puller: the rest is dropped, and it is said that one is left."""
    pusher = node.pusher("jobs", max_attempts=1)

    @node.worker("jobs")
    async def work(job: zfabric.Job) -> None:
        raise ValueError("never")

    await pusher.push_many([1, 2])
    await asyncio.wait_for(pusher.flush(), 10)
    holder = node.puller("$dead.jobs", ack="manual", credit=1)
    held = await holder.receive(10)

    purged = await cli.run("dead", "purge", "jobs")

    assert purged.code == 0
    assert "1 dead letter of 'jobs' in other hands" in purged.err
    assert "1 dead letter of 'jobs' dropped" in purged.err
    await held.ack()


async def test_options_that_do_not_go_together_are_the_command_line_s_fault(cli: Commands) -> None:
    """And an id that is no text."""
    for options in (["--durable"], ["--dedupe-id", "a"]):
        pushed = await cli.run("push", "jobs", "1", "--delivery", "at-most-once", *options)
        assert pushed.code == 2, pushed.err
        assert "need --delivery at-least-once" in pushed.err
    pushed = await cli.run("push", "jobs", "1", "--dedupe-id", "caf\udce9")
    assert pushed.code == 2
    assert "not UTF-8" in pushed.err
