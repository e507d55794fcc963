"""PUSH and PULL: when there is room, and when there is not."""

from __future__ import annotations

import asyncio

import pytest

from tests.transport.support import Lines, line
from tests.waiting import wait_until_async
from zfabric.errors import LimitExceeded

__all__ = ["line"]


@pytest.mark.parametrize("ipc", [True, False])
async def test_batches_arrive_as_they_were_sent(line: Lines, ipc: bool) -> None:
    """Of one frame and of several; over ipc and tcp."""
    push, pull = line(ipc=ipc), line(ipc=ipc)
    endpoints = pull.open_pull(7)
    assert [endpoint.partition(":")[0] for endpoint in endpoints] == ["ipc"] * ipc + ["tcp"] * (len(endpoints) - ipc)
    push.open_push("q")
    assert not push.push("q", [b"early"]), "nobody is there"
    push.connect_push("q", endpoints[0])
    await wait_until_async(lambda: push.got.room == ["q"])
    batches = [[b"one"], [b"two", b"x" * 100_000], [b"three", b"", b"y"]]
    assert all(push.push("q", batch) for batch in batches)
    await wait_until_async(lambda: pull.got.jobs == [(7, batch) for batch in batches])


async def test_a_puller_that_is_not_read_fills_up_and_goes_on(line: Lines) -> None:
    """Its pusher is told of room only when there is some."""
    push, pull = line(), line()
    push.open_push("q")
    push.connect_push("q", pull.open_pull(1)[0])
    await wait_until_async(lambda: push.push("q", [b""]))
    await wait_until_async(lambda: len(pull.got.jobs) == 1)
    pull.pause_pull(1, paused=True)
    sent = 0
    for _ in range(500):
        sent += push.push("q", [bytes(100_000)])
        await asyncio.sleep(0)
    assert 0 < sent < 500, "some fit the sockets on both sides"
    pull.pause_pull(1, paused=False)
    await wait_until_async(lambda: len(pull.got.jobs) == 1 + sent)
    await wait_until_async(lambda: push.push("q", [b"more"]))
    assert push.got.room, "it was told"


async def test_a_closed_puller_gets_no_more(line: Lines) -> None:
    """And the others get all of it."""
    push, first, second = line(), line(), line()
    push.open_push("q")
    endpoints = [one.open_pull(1)[0] for one in (first, second)]
    for endpoint in endpoints:
        push.connect_push("q", endpoint)
    await wait_until_async(lambda: push.push("q", [b""]))
    for _ in range(2000):
        push.push("q", [b"x"])
        await wait_until_async(lambda: True)
        if first.got.jobs and second.got.jobs:
            break
    push.disconnect_push("q", endpoints[0])
    first.close_pull(1)
    before = len(first.got.jobs)

    def another_arrived() -> bool:
        push.push("q", [b"y"])  # some may still go where the connection is just ending
        return second.got.jobs.count((1, [b"y"])) >= 20

    await wait_until_async(another_arrived)
    assert len(first.got.jobs) == before


async def test_sockets_are_limited(line: Lines) -> None:
    """By Config.connections_max."""
    one = line(connections_max=40)

    def open_many() -> None:
        for number in range(100):
            one.open_push(f"q{number}")

    with pytest.raises(LimitExceeded, match="connections_max"):
        open_many()
