"""`zfabric pull`: take jobs from a queue, to show them or to run a command for each."""

from __future__ import annotations

import asyncio
from typing import Any

import click
import msgspec

from zfabric.cli._exits import Exit, Stop
from zfabric.cli._look import open_node
from zfabric.cli._options import QUEUE_DELIVERIES, Options, QueueParameter, networked
from zfabric.cli._output import Output, StreamWriter, count
from zfabric.cli._running import run
from zfabric.cli._subprocess import CommandFailed, run_program, split
from zfabric.cli._values import json_line, plain, safe, short
from zfabric.cli._warnings import Warnings
from zfabric.model import Job
from zfabric.node.node import Node
from zfabric.node.puller import Puller

__all__ = ["command", "job_record"]


@click.command()
@click.argument("queue", type=QueueParameter())
@click.option("--count", "wanted", type=click.IntRange(min=1), metavar="N", help="End when N jobs are done.")
@click.option("--command", "line", metavar="COMMAND", help="Run this for each job, which is done if it exits with 0.")
@click.option("--concurrency", type=click.IntRange(min=1), default=1, metavar="N", help="Commands at one time. [1]")
@click.option("--selector", default="", metavar="TEXT", help="Only jobs with such headers: \"colour = 'red'\".")
@click.option(
    "--delivery",
    type=click.Choice(QUEUE_DELIVERIES),
    default="at-least-once",
    help="As the pushers have it. At most once a job whose command fails is lost. [at-least-once]",
)
@click.option("--raw", is_flag=True, help="Values only: bytes as they are, text and JSON a line each.")
@networked(timeout="End after this long; with 75 if fewer than --count jobs are done, or none.")
def command(
    options: Options,
    queue: str,
    wanted: int | None,
    line: str | None,
    concurrency: int,
    selector: str,
    delivery: str,
    raw: bool,
) -> int:
    """Take jobs from QUEUE, one after the other, until Ctrl-C. A job is done when it has been written to stdout.

    With --command, its value stands on the command's stdin: text and JSON as a line, bytes as they are. Queue, key and
    attempt are in $ZFABRIC_QUEUE, $ZFABRIC_KEY and $ZFABRIC_ATTEMPT. If the command fails, the job is tried again, and
    at last becomes a dead letter with the end of the command's stderr. No shell is involved.
    """
    if raw and options.json:
        raise click.UsageError("--raw and --json exclude each other")
    if selector and delivery == "at-most-once":
        raise click.UsageError("--selector needs --delivery at-least-once")
    words = None if line is None else split(line)

    async def work(output: Output) -> int:
        return await _Pulling(options, output, queue, wanted, words, concurrency, selector, delivery, raw=raw).run()

    return run(options, work)


def job_record(job: Job) -> dict[str, Any]:
    """A job as a JSON object."""
    fields = {"queue": job.queue, "id": job.seq, "attempt": job.attempt, "source": job.source.name, "key": job.key}
    return {**fields, "headers": job.headers, "priority": job.priority, "value": plain(job.value)}


class _Pulling:
    """One run of the command."""

    def __init__(
        self,
        options: Options,
        output: Output,
        queue: str,
        wanted: int | None,
        words: list[str] | None,
        concurrency: int,
        selector: str,
        delivery: str,
        *,
        raw: bool,
    ) -> None:
        self._options = options
        self._output = output
        self._queue = queue
        self._wanted = wanted
        self._words = words
        self._concurrency = concurrency if words is not None else 1
        self._selector = selector
        self._delivery = delivery
        self._raw = raw
        self._ended = 0
        "Jobs that are done; of those at most once, also such as failed, which nobody tries again."
        self._in_hand = 0

    async def run(self) -> int:
        """Work until there is enough, it takes too long, or nobody reads any more."""
        hung_up = asyncio.Event()
        writer = StreamWriter(hung_up.set)
        try:
            async with open_node(self._options, "pull") as node, Warnings(self._output, node):
                in_time = await self._work(node, writer, hung_up)
        finally:
            writer.close()
        if not in_time and self._ended < (self._wanted or 1):
            done = f"{self._ended} of {count(self._wanted, 'job')}" if self._wanted else "no job"
            raise Stop(Exit.TIMED_OUT, f"{done} done within {self._options.timeout:g} s")
        return Exit.OK

    async def _work(self, node: Node, writer: StreamWriter, hung_up: asyncio.Event) -> bool:
        if self._delivery == "at-most-once":
            puller = node.puller(self._queue, delivery=self._delivery)
        else:
            puller = node.puller(self._queue, credit=self._concurrency, selector=self._selector, ack="manual")
        working = asyncio.gather(*(self._handle(puller, writer) for _ in range(self._concurrency)))
        ended = asyncio.create_task(hung_up.wait())
        try:
            done, _ = await asyncio.wait(
                (working, ended), timeout=self._options.timeout, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()
            return bool(done)
        finally:
            working.cancel()
            ended.cancel()
            await asyncio.gather(working, ended, return_exceptions=True)
            await puller.close()

    async def _handle(self, puller: Puller, writer: StreamWriter) -> None:
        while self._wanted is None or self._ended + self._in_hand < self._wanted:
            self._in_hand += 1
            jobs = await puller.take(1)
            if not jobs:
                return
            try:
                done = await self._do(jobs[0], writer)
            except asyncio.CancelledError:
                await self._failed(jobs[0], "the command was stopped", 0)
                raise
            self._in_hand -= 1
            self._ended += done or self._delivery == "at-most-once"

    async def _do(self, job: Job, writer: StreamWriter) -> bool:
        """Whether the job is done."""
        if self._words is None:
            await writer.write(self._line(job))
            await job.ack()
            return True
        environment = {"ZFABRIC_QUEUE": job.queue, "ZFABRIC_ATTEMPT": str(job.attempt)}
        if job.key is not None:
            environment["ZFABRIC_KEY"] = str(job.key)
        failed = None
        try:
            out = await run_program(self._words, _stdin(job.value), environment)
        except CommandFailed as error:
            failed = str(error)
            await self._failed(job, failed)
        else:
            await job.ack()
            if out and not self._output.json:
                await writer.write(out)
        if self._output.json:
            await writer.write(json_line({**job_record(job), "error": failed}))
        else:
            self._output.note(f"job {job.seq} of {job.source.name}: {failed or 'done'}", verbose=0 if failed else 1)
        return failed is None

    async def _failed(self, job: Job, reason: str, delay: float | None = None) -> None:
        if self._delivery != "at-most-once":
            await job.nack(delay, reason)

    def _line(self, job: Job) -> bytes:
        if self._raw:
            return _stdin(job.value)
        if self._output.on_terminal and not self._output.json:
            again = "" if job.attempt == 1 else f" (attempt {job.attempt})"
            return f"{safe(job.source.name)} #{job.seq}{again}  {short(job.value)}\n".encode(errors="replace")
        return json_line(job_record(job))


def _stdin(value: Any) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str):
        return value.encode(errors="replace") + b"\n"
    return msgspec.json.encode(plain(value)) + b"\n"
