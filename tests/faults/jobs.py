"""What a child process does with queues: push jobs, or work on them, and write down what happened to each."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.faults.options import Options
from zfabric import DeliveryFailed, Job, Node

__all__ = ["QUEUE", "check_done", "push", "work"]

QUEUE = "jobs"
POISON, KILLER = "poison", "killer"
Write = Callable[..., None]


async def push(node: Node, options: Options, write: Write, go_on: asyncio.Event) -> None:
    """Push `count` jobs at `rate`, or until told to stop; then wait for the rest.

    Job `poison` always fails, job `killer` kills its worker.
    """
    keeping: dict[str, Any] = (
        {} if options.delivery == "at-most-once" else {"max_attempts": options.attempts, "backoff_s": 0.05}
    )
    pusher = node.pusher(QUEUE, delivery=options.delivery, **keeping)
    await pusher.wait_for(options.subscribers)
    write(began=1)
    special = {options.poison: POISON, options.killer: KILLER}
    loop = asyncio.get_running_loop()
    began, pushed = loop.time(), 0
    while pushed < options.count and go_on.is_set():
        await pusher.push([options.name, options.incarnation, pushed, special.get(pushed, "")])
        pushed += 1
        if options.rate and (pause := began + pushed / options.rate - loop.time()) > 0.001:
            await asyncio.sleep(pause)
    write(pushed=pushed)
    try:
        await pusher.flush()
    except DeliveryFailed as error:
        write(failed=[QUEUE, error.failures])
        return
    statistics = node.statistics().queues[QUEUE]
    fields = "done", "dead", "redelivered", "refused", "depth", "lost"
    write(done=pushed, counted={field: getattr(statistics, field) for field in fields})


async def work(node: Node, options: Options, write: Write, go_on: asyncio.Event) -> None:
    """Handle jobs, each in `pause_s`; while told to stop, handlers hang."""
    hung = None if options.delivery == "at-most-once" else options.handler_timeout_s

    @node.worker(QUEUE, concurrency=options.concurrency, delivery=options.delivery, handler_timeout_s=hung)
    async def handle(job: Job) -> None:
        name, incarnation, number, special = job.value
        write(begun=[name, incarnation, number, job.attempt])
        if special == POISON:
            raise ValueError("poison")
        if special == KILLER:
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(options.pause_s)
        await go_on.wait()
        write(finished=[name, incarnation, number, job.attempt])

    await asyncio.Event().wait()


def check_done(workers: list[Any], name: str, count: int, *, incarnation: int = 0, dead: int = 0) -> Counter[int]:
    """Every job but the dead ones was finished; returns how often each was, by number."""
    finished: Counter[int] = Counter()
    for worker in workers:
        for who, life, number, _ in worker.all("finished"):
            if (who, life) == (name, incarnation):
                finished[number] += 1
    assert len(finished) == count - dead, sorted(set(range(count)) - finished.keys())[:10]
    return finished
