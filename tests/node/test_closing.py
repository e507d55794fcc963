"""`close()` returns in time, whatever peers, queues and handlers do."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time

import pytest

from tests.node.support import TIMEOUT, MakeNode, Start, connect, line_of, next_event
from tests.waiting import SLACK_S, wait_until_async
from zfabric import Config, Message, Node, NodeClosed, PeerLeft, ProviderLost, Subscription
from zfabric.node.deferred import THINGS_PER_TURN

PEER = """
async def main():
    node = Node("peer", fabric=sys.argv[1], config=CONFIG)
    await node.open()
    subscription = node.subscribe("t", delivery="at-least-once", overflow="block", buffer_bytes=1)
    publisher = node.publisher("back", delivery="at-least-once")
    await subscription.wait_for(publishers=1, timeout=30)
    say("ready")
    await asyncio.Event().wait()

asyncio.run(main())
"""
ASKS = """
async def ask(node):
    assert await node.request("echo", "ready", wait=10) == "ready"
    if sys.argv[2] == "closes":
        await node.close()
    sys.exit(3)

async def main():
    async with Node("client", fabric=sys.argv[1], config=CONFIG) as node:
        asking = asyncio.create_task(ask(node))
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("end", ["SIGKILL", "SIGSTOP"])
@pytest.mark.parametrize("timeout", [0.0, 0.5])
async def test_peers_that_are_dead_or_stopped_do_not_hold_it_up(
    make_node: MakeNode, start: Start, end: str, timeout: float
) -> None:
    """With unconfirmed messages, full queues and a dead peer `close` takes its timeout, about."""
    node = await make_node("a")
    publisher = node.publisher("t", delivery="at-least-once")
    process = start(PEER, node.fabric)
    assert await line_of(process) == "ready"
    await publisher.wait_for(subscribers=1, timeout=TIMEOUT)
    process.send_signal(getattr(signal, end))
    for _ in range(10):
        await publisher.publish(b"x" * 1_000_000)
    begin = time.monotonic()

    await node.close(timeout)

    assert time.monotonic() - begin < timeout + SLACK_S
    if end == "SIGSTOP":
        process.send_signal(signal.SIGCONT)


async def test_the_default_timeout_is_the_config_s(make_node: MakeNode) -> None:
    """`close()` without a timeout takes Config.close_timeout_s at most."""
    node = await make_node("a", close_timeout_s=0.3)
    begun, hung = asyncio.Event(), asyncio.Event()

    @node.on("t")
    async def handle(message: Message) -> None:
        begun.set()
        await hung.wait()

    await node.publisher("t").publish(1)
    await asyncio.wait_for(begun.wait(), TIMEOUT)
    begin = time.monotonic()

    await node.close()

    assert 0.1 < time.monotonic() - begin < 0.3 + SLACK_S


async def test_hung_handlers_do_not_hold_it_up(make_node: MakeNode) -> None:
    """One that waits for ever, one that swallows its cancellation, and one that blocks its thread."""
    node = await make_node("a")
    release, started, stubborn = threading.Event(), [], asyncio.Event()

    @node.on("t")
    async def waits(message: Message) -> None:
        started.append("waits")
        await asyncio.Event().wait()

    @node.on("t")
    async def swallows(message: Message) -> None:
        started.append("swallows")
        for _ in range(2):
            try:
                await stubborn.wait()
            except asyncio.CancelledError:
                pass

    @node.on("t")
    def blocks(message: Message) -> None:
        started.append("blocks")
        release.wait()

    await node.publisher("t").publish(1)
    await wait_until_async(lambda: len(started) == 3)
    begin = time.monotonic()

    await node.close(0.4)

    assert time.monotonic() - begin < 0.4 + SLACK_S
    release.set()
    stubborn.set()


async def test_closing_ends_whatever_waits(make_node: MakeNode) -> None:
    """Readers, waiters and event streams all end; none hangs."""
    node = await make_node("a")
    subscription, publisher = node.subscribe("t"), node.publisher("t", delivery="at-least-once")
    never = node.publisher("never")
    waiting = [
        asyncio.ensure_future(subscription.receive()),
        asyncio.ensure_future(never.wait_for(subscribers=1)),
        asyncio.ensure_future(node.wait_for_peers(5)),
        asyncio.ensure_future(anext(aiter(node.events()))),
    ]
    await asyncio.sleep(0)

    await node.close(1)

    done, pending = await asyncio.wait(waiting, timeout=TIMEOUT)
    assert not pending
    assert {type(task.exception()) for task in done} <= {NodeClosed, StopAsyncIteration, RuntimeError}
    with pytest.raises(NodeClosed):
        publisher.publish_nowait(1)
    with pytest.raises(NodeClosed):
        await publisher.flush()


async def test_closing_twice_and_before_opening_is_nothing(make_node: MakeNode) -> None:
    """`close` may always be called, also from two tasks at once."""
    node = await make_node("a")

    await asyncio.gather(node.close(), node.close())
    await node.close()
    await Node(config=Config(mdns=False)).close()


@pytest.mark.parametrize("who", ["handler", "worker", "service"])
async def test_a_handler_may_close_its_node(make_node: MakeNode, who: str) -> None:
    """It is not waited for, and goes on afterwards; the client of a service is told."""
    node, other = await make_node("a", close_timeout_s=1000.0), await make_node("b")
    ended: list[str] = []

    async def leave(*_: object) -> None:
        try:
            await node.close()
            ended.append(repr(node))
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    node.on("t")(leave)
    node.worker("jobs")(leave)
    node.service("leave")(leave)
    if who == "handler":
        publisher = other.publisher("t")
        await publisher.wait_for(subscribers=1, timeout=TIMEOUT)
        await publisher.publish(1)
    elif who == "worker":
        await other.pusher("jobs").push(1)
    else:
        await other.wait_for_service("leave", timeout=TIMEOUT)
        with pytest.raises(ProviderLost):
            await other.request("leave", timeout=TIMEOUT)

    await wait_until_async(lambda: ended, TIMEOUT)
    assert "[closed]" in ended[0]


async def test_what_was_published_before_closing_arrives(make_node: MakeNode) -> None:
    """An open batch leaves when the node closes, and the reader sees the end after it."""
    a, b = await make_node("a"), await make_node("b")
    publisher, subscription = await connect(a, b, "t")
    for number in range(10):
        publisher.publish_nowait(number)

    await a.close()

    assert [(await subscription.receive(timeout=TIMEOUT)).value for _ in range(10)] == list(range(10))


@pytest.mark.parametrize("turns", range(12))
async def test_a_topic_opened_again_reaches_its_subscribers_at_once(make_node: MakeNode, turns: int) -> None:
    """However many turns of the loop lie between closing and opening: what `wait_for` says is true."""
    a, b = await make_node("a"), await make_node("b")
    everything = b.subscribe("#")
    for number in range(5):
        for value in ("old", "new"):
            publisher = a.publisher(f"t{number}")
            await publisher.wait_for(subscribers=1, timeout=TIMEOUT)
            await publisher.publish(value)
            assert (await everything.receive(timeout=TIMEOUT)).value == value
            await publisher.close()
            for _ in range(turns):
                await asyncio.sleep(0)


@pytest.mark.parametrize("end", ["closes", "exits"])
async def test_the_task_that_got_a_reply_may_end_everything(make_node: MakeNode, start: Start, end: str) -> None:
    """It goes on while its node still deals with what arrived; its node says goodbye all the same."""
    node = await make_node("provider")

    @node.service("echo")
    async def echo(value: str) -> str:
        return value

    events = node.events()
    process = start(ASKS, node.fabric, end)
    left = await next_event(events, PeerLeft)

    assert left.reason == "goodbye"
    assert await asyncio.to_thread(process.wait, TIMEOUT) == 3


async def test_a_request_that_is_begun_while_the_node_closes_ends_with_it(make_node: MakeNode) -> None:
    """A handler that is still at work may ask; what gets no reply until the end is told."""
    client, provider = await make_node("client"), await make_node("provider")
    at_work, go_on = asyncio.Event(), asyncio.Event()

    @provider.service("silent")
    async def silent() -> None:
        await asyncio.Event().wait()

    @client.on("t")
    async def handle(message: Message) -> None:
        at_work.set()
        await go_on.wait()

    await client.wait_for_service("silent", timeout=TIMEOUT)
    await client.publisher("t").publish(1)
    await asyncio.wait_for(at_work.wait(), TIMEOUT)
    closing = asyncio.create_task(client.close(0.5))
    await asyncio.sleep(0)
    request = asyncio.create_task(client.request("silent", timeout=60))
    await asyncio.sleep(0)
    go_on.set()

    await closing
    with pytest.raises(NodeClosed):
        await asyncio.wait_for(request, TIMEOUT)


async def test_readers_that_wait_for_their_turn_go_on_though_the_node_closes(make_node: MakeNode) -> None:
    """The first of many that a batch wakes closes the node: more than one turn of the loop has room for."""
    node, other = await make_node("a"), await make_node("b")
    subscriptions = [node.subscribe("t") for _ in range(3 * THINGS_PER_TURN)]
    publisher = other.publisher("t")
    await publisher.wait_for(subscribers=1, timeout=TIMEOUT)
    closing: list[asyncio.Task[None]] = []

    async def read(subscription: Subscription) -> None:
        await subscription.receive()
        if not closing:
            closing.append(asyncio.create_task(node.close(1)))
            await asyncio.sleep(0)

    readers = [asyncio.ensure_future(read(subscription)) for subscription in subscriptions]
    await asyncio.sleep(0)
    publisher.publish_nowait(1)
    done, pending = await asyncio.wait(readers, timeout=TIMEOUT)

    assert not pending
    assert {task.exception() for task in done} == {None}
    await closing[0]


async def test_peers_have_heard_all_before_the_goodbye(make_node: MakeNode) -> None:
    """It may come by another connection than the last acks: they must not be behind it."""
    pusher, worker = await make_node("pusher"), await make_node("worker")
    puller = worker.puller("jobs", ack="manual")
    await pusher.pusher("jobs").push(1)
    await (await puller.receive(TIMEOUT)).ack()
    assert worker._driver is not None
    core = worker._driver.core
    goodbye, quiet = core.goodbye, []

    def say_goodbye() -> None:
        quiet.append(core.channels.quiet)
        goodbye()

    core.goodbye = say_goodbye  # type: ignore[method-assign]
    await worker.close()

    assert quiet == [True]
    assert pusher.statistics().queues["jobs"].done == 1
