"""`zfabric pub`: publish on a topic."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import click

from zfabric.cli import _input
from zfabric.cli._exits import Exit, Stop
from zfabric.cli._look import find_audience, nearest, open_node, poll
from zfabric.cli._options import Number, Options, TopicParameter, header_pairs, networked
from zfabric.cli._output import Output, count
from zfabric.cli._running import run
from zfabric.cli._warnings import Warnings
from zfabric.config import Config
from zfabric.events import SubscriberJoined, SubscriberLeft
from zfabric.model import Delivery
from zfabric.node.eventhub import EventStream
from zfabric.node.node import Node
from zfabric.node.publisher import Publisher

__all__ = ["command"]

WAIT_S = 10.0
"How long --wait waits, unless --timeout says otherwise."


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the command line asks for."""

    topic: str
    value: str | None
    form: str
    delivery: str
    sign: bool
    count: int | None
    rate_hz: float | None
    key: str | None
    headers: dict[str, Any] | None
    wait: int | None
    require_match: bool

    @property
    def from_stdin(self) -> bool:
        """Whether the values stand on stdin."""
        return self.value in (None, "-")

    @property
    def repeats(self) -> int | None:
        """How often the one value is sent; None for ever. A rate alone asks to go on until Ctrl-C."""
        return self.count if self.count is not None else None if self.rate_hz is not None else 1


@click.command()
@click.argument("topic", type=TopicParameter())
@click.argument("value", required=False)
@click.option("--text", is_flag=True, help="VALUE is text, even where it looks like JSON.")
@click.option("--raw", is_flag=True, help="VALUE is bytes; all of stdin is one message.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="Publish N times; with stdin, N lines at most.")
@click.option("--rate", type=Number(min=0, min_open=True), metavar="HZ", help="Messages a second.")
@click.option("--key", metavar="TEXT", help="What the value is about.")
@click.option(
    "-H", "--header", "headers", multiple=True, callback=header_pairs, metavar="NAME=VALUE", help="Repeatable."
)
@click.option(
    "--delivery",
    type=click.Choice([delivery.value for delivery in Delivery]),
    default=Delivery.AT_LEAST_ONCE.value,
    help="The promise. With at-least-once, the default, it ends when every subscriber has everything.",
)
@click.option("--sign", is_flag=True, help="Sign what is sent, so that no store can change it. Needs a key.")
@click.option("--wait", type=click.IntRange(min=1), metavar="N", help="First wait for N subscribers, or exit with 75.")
@click.option("--require-match", is_flag=True, help="Send nothing and exit with 69 when nobody subscribes.")
@networked(timeout=f"How long --wait waits. [{WAIT_S:g}]")
def command(
    options: Options,
    topic: str,
    value: str | None,
    text: bool,
    raw: bool,
    count: int | None,
    rate: float | None,
    key: str | None,
    headers: dict[str, Any] | None,
    delivery: str,
    sign: bool,
    wait: int | None,
    require_match: bool,
) -> int:
    """Publish VALUE on TOPIC: JSON if it is JSON, else text.

    Without VALUE, or with `-`, every line of stdin is a message. With --rate and no --count it goes on until Ctrl-C.
    First it waits until the subscribers that are there have been found, a second at most.
    """
    if text and raw:
        raise click.UsageError("--text and --raw exclude each other")
    if value is None and sys.stdin.isatty():
        raise click.UsageError("VALUE is missing: give it, or pipe lines into stdin")
    form = _input.Form.RAW if raw else _input.Form.TEXT if text else _input.Form.AUTO
    job = Job(
        topic=topic,
        value=value,
        form=form,
        delivery=delivery,
        sign=sign,
        count=count,
        rate_hz=rate,
        key=key,
        headers=headers,
        wait=wait,
        require_match=require_match,
    )
    return run(options, lambda output: _publish(options, output, job))


class _Audience:
    """Who receives the topic now, and who did while something was sent."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self.current: dict[str, str] = {}
        self.reached: dict[str, str] = {}

    async def follow(self, events: EventStream) -> None:
        """Keep up with who joins and leaves."""
        async for event in events:
            if isinstance(event, SubscriberJoined) and event.topic == self._topic:
                self.current[event.peer.id] = event.peer.name
            elif isinstance(event, SubscriberLeft) and event.topic == self._topic:
                self.current.pop(event.peer.id, None)

    def sent(self) -> None:
        """A message has just gone to everybody who is there."""
        if self.current.keys() - self.reached.keys():
            self.reached |= self.current

    def names(self) -> list[str]:
        """The names of those who were reached."""
        return sorted(self.reached.values())


async def _publish(options: Options, output: Output, job: Job) -> int:
    audience, sent = _Audience(job.topic), 0
    async with open_node(options, "pub") as node, Warnings(output, node):
        following = asyncio.create_task(audience.follow(node.events()))
        publisher = node.publisher(job.topic, delivery=job.delivery, sign=job.sign)
        try:
            await _wait_for_audience(options, node, publisher, job)
            async with aclosing(_values(job)) as values:
                async for value in _paced(values, job.rate_hz):
                    await publisher.publish(value, key=job.key, headers=job.headers)
                    audience.sent()
                    sent += 1
            await publisher.flush()
        finally:
            following.cancel()
            if sent:
                _tell(output, job, sent, audience, node)
    if not sent:
        output.warn("stdin was empty: nothing was sent")
    return Exit.OK


async def _wait_for_audience(options: Options, node: Node, publisher: Publisher, job: Job) -> None:
    if job.wait is not None:
        timeout = options.timeout or WAIT_S
        if not await poll(lambda: publisher.subscribers >= (job.wait or 0), timeout):
            there = f"{publisher.subscribers} of {count(job.wait, 'subscriber')} came within {timeout:g} s"
            raise Stop(Exit.TIMED_OUT, f"only {there}; nothing was sent")
        return
    await find_audience(options, node, [publisher])
    if job.require_match and not publisher.subscribers:
        raise Stop(Exit.NOBODY, f"nobody subscribes to {job.topic!r}; nothing was sent{_hint(node, job.topic)}")


def _hint(node: Node, topic: str) -> str:
    others = nearest(topic, node.peers, published=False)
    return f"; there are subscriptions to: {', '.join(others)}" if others else ""


async def _values(job: Job) -> AsyncGenerator[Any, None]:
    """Each value to send."""
    if not job.from_stdin:
        value = _input.parse(os.fsencode(job.value or ""), job.form)
        for _ in itertools.count() if job.repeats is None else range(job.repeats):
            yield value
    elif job.form == _input.Form.RAW:
        value = await _input.whole(Config().frame_bytes_max)
        for _ in range(job.count or 1):
            yield value
    else:
        number = 0
        async with aclosing(_input.lines(Config().frame_bytes_max)) as lines:
            async for line in lines:
                number += 1
                yield _input.parse(line, job.form, f"line {number} of stdin")
                if number == job.count:
                    return


async def _paced(values: AsyncIterator[Any], rate_hz: float | None) -> AsyncIterator[Any]:
    """The values, not faster than `rate_hz`; behind time it catches up."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    number = 0
    async for value in values:
        if rate_hz is not None and (pause_s := began_s + number / rate_hz - loop.time()) > 0:
            await asyncio.sleep(pause_s)
        yield value
        number += 1


def _tell(output: Output, job: Job, sent: int, audience: _Audience, node: Node) -> None:
    names = audience.names()
    if output.json:
        output.record({"topic": job.topic, "sent": sent, "subscribers": names})
    if names:
        output.note(f"sent {sent:,}, matched {count(len(names), 'subscriber')} ({', '.join(names)})")
    else:
        output.note(f"sent {sent:,}, matched no subscriber{_hint(node, job.topic)}")
