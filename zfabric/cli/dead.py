"""`zfabric dead`: dead letters, which failed too often or were rejected."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import click

from zfabric.cli._exits import Exit, Stop
from zfabric.cli._look import LOOK_S, least_look_s, open_node, settle
from zfabric.cli._options import Options, TopicParameter, networked
from zfabric.cli._output import Output, count
from zfabric.cli._running import run
from zfabric.cli._values import safe, short
from zfabric.cli.pull import job_record
from zfabric.events import JobDead
from zfabric.model import Job
from zfabric.node.node import Node
from zfabric.node.puller import Puller
from zfabric.protocol.queues import DEAD_PREFIX

__all__ = ["command"]

REQUEUE_S = 60.0
HELD_S = 24 * 3600.0
"However long a letter is repeated, nobody else gets it meanwhile."
QUIET_S = 0.5
"After this long without another dead letter, those are all."


@click.group()
def command() -> None:
    """Show, repeat or drop the dead letters of a queue. Those that others are just looking at are left out."""


@command.command("list")
@click.argument("queue", type=TopicParameter())
@networked(timeout="How long to look for nodes at most. [3]")
def list_them(options: Options, queue: str) -> int:
    """Show the dead letters of QUEUE and why they died. They stay where they are. Exits 69 when there is none."""

    async def show(output: Output) -> int:
        async with open_node(options, "dead") as node:
            puller, jobs = await _collect(options, output, node, queue)
            await puller.close()
        for job in jobs:
            reason = (job.headers or {}).get("dead.reason", "")
            if output.json or not output.on_terminal:
                output.record(job_record(job))
            else:
                output.line(safe(f"{job.source.name} #{job.seq}  {reason}  {short(job.value)}"))
        return Exit.OK

    return run(options, show)


@command.command()
@click.argument("queue", type=TopicParameter())
@click.option("--durable", is_flag=True, help="A store keeps the jobs; they are done with when it has them.")
@networked(timeout=f"How long to wait until all is done; then exit with 75, and the rest stays dead. [{REQUEUE_S:g}]")
def requeue(options: Options, queue: str, durable: bool) -> int:
    """Push the dead letters of QUEUE again, and wait until they are done. Exits 1 if some die again: they stay dead."""

    async def push(output: Output) -> int:
        async with open_node(options, "dead") as node:
            puller, jobs = await _collect(options, output, node, queue)
            if durable:
                await _store_again(node, queue, jobs, options.timeout or REQUEUE_S)
                done, again = jobs, 0
            else:
                done, again = await _repeat(node, queue, jobs, options.timeout or REQUEUE_S)
            await _settle(puller, done)
        output.note(f"{count(len(done), 'dead letter')} of {queue!r} {'stored' if durable else 'done'}")
        if late := len(jobs) - len(done) - again:
            raise Stop(Exit.TIMED_OUT, f"{count(late, 'job')} not done in time: dead still")
        if again:
            raise Stop(Exit.FAILED, f"{again} of {count(len(jobs), 'job')} failed again: dead still")
        return Exit.OK

    return run(options, push)


async def _store_again(node: Node, queue: str, jobs: list[Job], timeout: float) -> None:
    """Return once a store has them."""
    pusher = node.pusher(queue, durable=True, without_store="buffer")
    for job in jobs:
        pusher.push_nowait(job.value, key=job.key, headers=_own(job), priority=job.priority)
    try:
        await asyncio.wait_for(pusher.flush(), timeout)
    except TimeoutError:
        raise Stop(Exit.TIMED_OUT, f"{count(pusher.depth, 'job')} not stored in time: all stay dead") from None


async def _repeat(node: Node, queue: str, jobs: list[Job], timeout: float) -> tuple[list[Job], int]:
    """Those of the jobs that were done when pushed again, and how many died again."""
    events, pusher = node.events(), node.pusher(queue)
    numbers = [
        await pusher.push(job.value, key=job.key, headers=_own(job), priority=job.priority) for job in jobs
    ]  # fmt: skip
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            await pusher.flush()
    events.close()
    died = {event.id async for event in events if isinstance(event, JobDead) and event.queue == queue}
    dead = node.statistics().queues[queue].dead
    if dead > len(died):  # more than events can tell of: who did is not known
        return [], dead
    pairs = zip(numbers, jobs, strict=True)
    return [job for number, job in pairs if pusher.finished(number) and number not in died], dead


@command.command()
@click.argument("queue", type=TopicParameter())
@networked(timeout="How long to look for nodes at most. [3]")
def purge(options: Options, queue: str) -> int:
    """Drop the dead letters of QUEUE."""

    async def drop(output: Output) -> int:
        async with open_node(options, "dead") as node:
            puller, jobs = await _collect(options, output, node, queue)
            await _settle(puller, jobs)
        output.note(f"{count(len(jobs), 'dead letter')} of {queue!r} dropped")
        return Exit.OK

    return run(options, drop)


def _own(job: Job) -> dict[str, Any] | None:
    """The headers that it was pushed with."""
    return {name: value for name, value in (job.headers or {}).items() if not name.startswith("dead.")} or None


async def _collect(options: Options, output: Output, node: Node, queue: str) -> tuple[Puller, list[Job]]:
    """All dead letters of a queue, in hand."""
    puller = node.puller(DEAD_PREFIX + queue, ack="manual", handler_timeout_s=HELD_S)
    await settle(node, quiet_s=0.25, least_s=least_look_s(options), most_s=options.timeout or LOOK_S)
    states = await node.queues(LOOK_S)
    expected = sum(state.statistics.depth for state in states if state.queue == puller.queue)
    jobs: list[Job] = []
    while True:
        try:
            jobs.append(await puller.receive(LOOK_S if len(jobs) < expected else QUIET_S))
        except TimeoutError:
            break
    elsewhere = f"{count(expected - len(jobs), 'dead letter')} of {queue!r} in other hands: try again later"
    if not jobs:
        raise (
            Stop(Exit.TIMED_OUT, elsewhere)
            if expected
            else Stop(Exit.NOBODY, f"there are no dead letters of {queue!r}")
        )
    if len(jobs) < expected:
        output.note(elsewhere)
    return puller, jobs


async def _settle(puller: Puller, jobs: list[Job]) -> None:
    for job in jobs:
        await job.ack()
    await puller.close()
