"""Services: the same in memory and over sockets."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest

from tests.contract.support import TIMEOUT, MakeNode
from tests.waiting import wait_until_async
from zfabric import (
    CurrentRequest,
    InvalidArguments,
    LimitExceeded,
    LocalProtocolError,
    Node,
    NodeClosed,
    NoResponders,
    ProviderLost,
    RemoteError,
    RequestTimeout,
    current_request,
)

Pair = tuple[Node, Node]


async def test_a_request_is_answered(pair: Pair) -> None:
    """By an `async def`, by a `def` in a thread, and by a service of the own node."""
    client, provider = pair

    @provider.service("math.add")
    async def add(a: int, b: int = 10) -> int:
        return a + b

    @provider.service("math.sub")
    def sub(a: int, *, b: int) -> int:
        return a - b

    await client.wait_for_service("math.sub", timeout=TIMEOUT)

    assert await client.request("math.add", 1, 2) == 3
    assert await client.request("math.add", 1) == 11
    assert await client.request("math.sub", 5, b=3) == 2
    assert await provider.request("math.add", 3, b=4) == 7


async def test_a_handler_may_ask_its_own_node(pair: Pair) -> None:
    """Also deeper than Python calls go, although handlers begin at once."""
    client, provider = pair

    @provider.service("count.down", concurrency=501)
    async def down(number: int) -> int:
        return number if number == 0 else 1 + int(await provider.request("count.down", number - 1))

    await client.wait_for_service("count.down", timeout=TIMEOUT)

    assert await client.request("count.down", 500, timeout=TIMEOUT) == 500


async def test_a_crowd_of_requests_leaves_others_their_turn(pair: Pair) -> None:
    """Handlers that never wait are not all called in one turn of the event loop."""
    client, provider = pair
    loop = asyncio.get_running_loop()
    calls: Counter[int] = Counter()
    turn = 0

    def count_turns() -> None:
        nonlocal turn
        turn += 1
        if calls.total() < 500:
            loop.call_soon(count_turns)

    @provider.service("identity", concurrency=500)
    async def identity(value: int) -> int:
        calls[turn] += 1
        return value

    await client.wait_for_service("identity", timeout=TIMEOUT)
    count_turns()
    replies = await asyncio.gather(*(client.request("identity", number) for number in range(500)))

    assert replies == list(range(500))
    assert max(calls.values()) < 250


async def test_values_of_all_kinds_travel(pair: Pair) -> None:
    """Arrays and long bytes too, in both directions."""
    client, provider = pair

    @provider.service("echo")
    async def echo(value: Any) -> Any:
        return value

    await client.wait_for_service("echo", timeout=TIMEOUT)
    array = np.arange(300_000, dtype=np.float32).reshape(100, 3000)

    assert await client.request("echo", b"x" * 3_000_000) == b"x" * 3_000_000
    assert np.array_equal(await client.request("echo", array), array)
    assert await client.request("echo", {"a": [1, None, "grün"]}) == {"a": [1, None, "grün"]}
    assert await asyncio.gather(*(client.request("echo", n) for n in range(500))) == list(range(500))


async def test_nobody_is_known_at_once(pair: Pair) -> None:
    """And the error tells of other versions."""
    client, provider = pair

    @provider.service("math.add", version=3)
    async def add(a: int, b: int) -> int:
        return a + b

    await client.wait_for_service("math.add", TIMEOUT, version=3)

    with pytest.raises(NoResponders, match="there in version 3") as caught:
        await client.request("math.add", 1, 2, timeout=100)
    assert (caught.value.service, caught.value.version, caught.value.versions) == ("math.add", 1, (3,))
    assert await client.request("math.add", 1, 2, version=3) == 3


async def test_a_request_may_wait_for_a_provider(pair: Pair) -> None:
    """With `wait=`, it is answered by who comes later."""
    client, provider = pair
    waiting = asyncio.create_task(client.request("late", wait=TIMEOUT, timeout=TIMEOUT))
    await asyncio.sleep(0)

    @provider.service("late")
    async def late() -> str:
        return "here"

    assert await waiting == "here"
    with pytest.raises(NoResponders):
        await client.request("never", wait=0.05)


async def test_what_a_handler_raises_is_told(pair: Pair) -> None:
    """Its type and its message; the traceback only where the provider gives it away."""
    client, provider = pair

    @provider.service("closed")
    async def closed() -> None:
        raise KeyError("secret")

    @provider.service("open", traces=True)
    def open_() -> None:
        raise ValueError("told")

    await client.wait_for_service("open", timeout=TIMEOUT)

    with pytest.raises(RemoteError, match="KeyError: 'secret'") as caught:
        await client.request("closed")
    assert (caught.value.type, caught.value.provider, caught.value.trace) == ("KeyError", "b", None)
    with pytest.raises(RemoteError, match="told") as caught:
        await client.request("open")
    assert "in open_" in (caught.value.trace or "")
    assert provider.statistics().handler_errors == 2


async def test_arguments_and_results_are_checked(pair: Pair) -> None:
    """Against the annotations, before and after the function is called."""
    client, provider = pair
    calls = []

    @provider.service("typed")
    async def typed(a: int, b: list[float]) -> str:
        calls.append(a)
        return "text" if a else 0  # type: ignore[return-value] # on purpose

    await client.wait_for_service("typed", timeout=TIMEOUT)

    bad: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        (("1", []), {}, "argument 'a': Expected `int`, got `str`"),
        ((1, ["x"]), {}, "argument 'b': Expected `float`, got `str`"),
        ((1,), {}, "missing a required argument: 'b'"),
        ((1, [], 3), {}, "takes 2 arguments, not 3"),
        ((1, []), {"c": 3}, "no parameter 'c'"),
        ((1, []), {"a": 3}, "multiple values"),
    ]
    for arguments, options, reason in bad:
        with pytest.raises(InvalidArguments, match=reason):
            await client.request("typed", *arguments, **options)
    assert calls == []
    assert await client.request("typed", 1, [], type=str) == "text"
    with pytest.raises(RemoteError, match="Expected `str`, got `int`"):
        await client.request("typed", 0, [])


async def test_the_deadline_travels(pair: Pair) -> None:
    """A handler knows how long its reply is waited for, and is stopped after that."""
    client, provider = pair
    seen: list[CurrentRequest] = []
    stopped = asyncio.Event()

    @provider.service("slow")
    async def slow() -> None:
        seen.append(current_request())
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    await client.wait_for_service("slow", timeout=TIMEOUT)

    with pytest.raises(RequestTimeout, match=r"no reply from b to 'slow' within 0\.2 s"):
        await client.request("slow", timeout=0.2)
    async with asyncio.timeout(TIMEOUT):
        await stopped.wait()
    assert 0 < 0.2 - seen[0].remaining < TIMEOUT
    assert (seen[0].service, seen[0].source.name, seen[0].cancelled) == ("slow", "a", True)
    with pytest.raises(LocalProtocolError):
        current_request()


async def test_cancelling_a_request_reaches_the_handler(pair: Pair) -> None:
    """Of an `async def` and, as a flag, of a `def`."""
    client, provider = pair
    begun, ended = [], []

    @provider.service("wait")
    async def wait() -> None:
        begun.append("wait")
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("wait")

    @provider.service("look")
    def look() -> None:
        request = current_request()
        begun.append("look")
        while not request.cancelled:
            pass
        ended.append("look")

    await client.wait_for_service("look", timeout=TIMEOUT)

    for name in ("wait", "look"):
        task = asyncio.create_task(client.request(name))
        await wait_until_async(lambda name=name: name in begun, TIMEOUT)  # type: ignore[misc]
        task.cancel()
        await wait_until_async(lambda name=name: name in ended, TIMEOUT)  # type: ignore[misc]
    await wait_until_async(lambda: wait.running == look.running == 0, TIMEOUT)


async def test_replies_stream(pair: Pair) -> None:
    """From both kinds of generators; a plain service is a stream of one."""
    client, provider = pair

    @provider.service("count")
    async def count(to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number

    @provider.service("count.thread")
    def count_in_thread(to: int) -> Iterator[int]:
        yield from range(to)

    @provider.service("one")
    async def one() -> int:
        return 1

    await client.wait_for_service("one", timeout=TIMEOUT)

    assert [number async for number in client.stream("count", 50_000)] == list(range(50_000))
    assert [number async for number in client.stream("count.thread", 100)] == list(range(100))
    assert [number async for number in client.stream("one")] == [1]
    with pytest.raises(LocalProtocolError, match=r"node\.stream"):
        await client.request("count", 1)


async def test_every_provider_is_asked(make_node: MakeNode) -> None:
    """Replies come as they are made; errors stand in the place of replies."""
    nodes = [await make_node(name) for name in "abc"]
    for node in nodes:

        @node.service("who")
        async def who(fail: bool = False, node: str = node.name) -> AsyncIterator[str]:
            yield node
            if fail:
                raise ValueError(node)

    await wait_until_async(lambda: len(nodes[0].peers) == 2, TIMEOUT)
    await wait_until_async(lambda: all(peer.services for peer in nodes[0].peers), TIMEOUT)

    replies = [reply async for reply in nodes[0].request_all("who")]
    failing = [reply async for reply in nodes[0].request_all("who", fail=True)]

    assert sorted(reply.value for reply in replies) == ["a", "b", "c"]
    assert {reply.source.name for reply in replies} == {"a", "b", "c"}
    assert sorted(str(reply.error.message) for reply in failing if isinstance(reply.error, RemoteError)) == [
        "a",
        "b",
        "c",
    ]
    with pytest.raises(NoResponders):
        [reply async for reply in nodes[0].request_all("nobody")]


async def test_long_requests_are_refused_where_they_are_made(make_node: MakeNode) -> None:
    """What no frame holds cannot be sent."""
    node = await make_node("a", frame_bytes_max=4 * 1024 * 1024)

    @node.service("echo")
    async def echo(value: bytes) -> bytes:
        return value * 3

    with pytest.raises(LimitExceeded, match="frame_bytes_max"):
        await node.request("echo", bytes(3 * 1024 * 1024))
    with pytest.raises(RemoteError, match="frame_bytes_max"):
        await node.request("echo", bytes(1024 * 1024))


async def test_defaults_come_from_the_config(make_node: MakeNode) -> None:
    """request_timeout_s, service_concurrency, service_threads_max."""
    node = await make_node("a", request_timeout_s=0.2, service_concurrency=3, service_threads_max=2)
    release = threading.Event()
    running, most = 0, 0

    @node.service("coroutine")
    async def coroutine() -> None:
        await asyncio.Event().wait()

    @node.service("thread")
    def thread() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        release.wait(TIMEOUT)
        running -= 1

    assert (coroutine.concurrency, thread.concurrency) == (3, 2)
    with pytest.raises(RequestTimeout, match=r"within 0\.2 s"):
        await node.request("coroutine")
    requests = [asyncio.create_task(node.request("thread", timeout=TIMEOUT)) for _ in range(6)]
    await wait_until_async(lambda: most == 2, TIMEOUT)
    release.set()
    await asyncio.gather(*requests)
    assert most == 2


async def test_a_stream_is_no_further_ahead_than_stream_bytes(make_node: MakeNode) -> None:
    """A slow reader holds the provider's generator up, and loses nothing."""
    client, provider = await make_node("a", stream_bytes=10_000), await make_node("b")
    made = 0

    @provider.service("blocks")
    async def blocks() -> AsyncIterator[bytes]:
        nonlocal made
        for _ in range(1000):
            made += 1
            yield bytes(1000)

    await client.wait_for_service("blocks", timeout=TIMEOUT)
    read = 0
    async for block in client.stream("blocks"):
        read += 1
        assert len(block) == 1000
        assert made <= read + 12
    assert read == made == 1000


async def test_leaving_a_stream_ends_the_generator(pair: Pair) -> None:
    """Its `finally` runs, at the provider."""
    client, provider = pair
    ended = asyncio.Event()

    @provider.service("forever")
    async def forever() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            ended.set()

    await client.wait_for_service("forever", timeout=TIMEOUT)
    async with aclosing(client.stream("forever")) as values:
        async for _ in values:
            break
    async with asyncio.timeout(TIMEOUT):
        await ended.wait()
    await wait_until_async(lambda: forever.running == 0, TIMEOUT)


async def test_stopping_a_service_finishes_what_it_has(make_node: MakeNode) -> None:
    """Requests that come too late go to another provider, although they are not idempotent."""
    client, old, new = [await make_node(name) for name in ("client", "old", "new")]
    done: Counter[int] = Counter()

    async def work(number: int) -> int:
        await asyncio.sleep(0)
        done[number] += 1
        return number

    service = old.service("work")(work)
    await client.wait_for_service("work", timeout=TIMEOUT)
    first = [asyncio.create_task(client.request("work", number)) for number in range(200)]
    await asyncio.sleep(0)
    new.service("work")(work)
    await wait_until_async(lambda: sum(bool(peer.services) for peer in client.peers) == 2, TIMEOUT)
    second = [asyncio.create_task(client.request("work", number)) for number in range(200, 400)]
    stopping = asyncio.create_task(service.stop())
    third = [asyncio.create_task(client.request("work", number)) for number in range(400, 600)]

    assert await asyncio.gather(*first, *second, *third) == list(range(600))
    await stopping
    assert done == Counter(range(600))
    assert (service.running, service.waiting) == (0, 0)


async def test_who_has_no_time_to_stop_a_service_has_ended_it(pair: Pair) -> None:
    """Stopping that is cancelled: what runs is given up, and another may take its place."""
    client, provider = pair
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()
        await asyncio.Event().wait()

    service = provider.service("work")(work)
    await client.wait_for_service("work", timeout=TIMEOUT)
    asking = asyncio.create_task(client.request("work"))
    async with asyncio.timeout(TIMEOUT):
        await begun.wait()
    stopping = asyncio.create_task(service.stop())
    await wait_until_async(lambda: "stopping" in repr(service), TIMEOUT)
    stopping.cancel()
    await asyncio.wait([stopping])

    assert (stopping.cancelled(), service.running) == (True, 0)
    with pytest.raises(ProviderLost):
        await asking
    provider.service("work")(lambda: "again")
    assert await client.request("work", wait=TIMEOUT) == "again"


async def test_closing_a_node_answers_what_it_has(make_node: MakeNode) -> None:
    """Its handlers finish; what it asked others ends as NodeClosed."""
    client, provider = await make_node("a"), await make_node("b")
    begun, go_on = asyncio.Event(), asyncio.Event()

    @provider.service("slow")
    async def slow() -> str:
        begun.set()
        await go_on.wait()
        return "finished"

    @client.service("never")
    async def never() -> None:
        await asyncio.Event().wait()

    await client.wait_for_service("slow", timeout=TIMEOUT)
    await provider.wait_for_service("never", timeout=TIMEOUT)
    reply = asyncio.create_task(client.request("slow"))
    stuck = asyncio.create_task(provider.request("never"))
    async with asyncio.timeout(TIMEOUT):
        await begun.wait()
    closing = asyncio.create_task(provider.close(timeout=4))
    await wait_until_async(lambda: not any(peer.services for peer in client.peers), TIMEOUT)
    with pytest.raises(NoResponders):
        await client.request("slow")
    go_on.set()

    assert await reply == "finished"
    with pytest.raises(NodeClosed):
        await stuck
    await closing
