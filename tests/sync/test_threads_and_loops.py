"""Where blocking calls are allowed, and where they would stop an event loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import pytest

from tests.sync.support import CONFIG, TIMEOUT_S, Work, wired
from zfabric import InterfaceNotFound, LocalProtocolError, Message, NodeClosed
from zfabric.sync import Node, Publisher, Subscription

Use = Callable[[Node, Publisher, Subscription], Any]

BLOCKING: dict[str, Use] = {
    "peers": lambda n, p, s: n.peers,
    "endpoints": lambda n, p, s: n.endpoints,
    "statistics": lambda n, p, s: n.statistics(),
    "wait_for_peers": lambda n, p, s: n.wait_for_peers(0),
    "events": lambda n, p, s: n.events(),
    "publisher": lambda n, p, s: n.publisher("other"),
    "subscribe": lambda n, p, s: n.subscribe("other"),
    "on": lambda n, p, s: n.on("other")(print),
    "close": lambda n, p, s: n.close(),
    "open": lambda n, p, s: Node("y", config=CONFIG).open(),
    "publish": lambda n, p, s: p.publish(1),
    "publish_many": lambda n, p, s: p.publish_many([1]),
    "flush": lambda n, p, s: p.flush(),
    "publisher.wait_for": lambda n, p, s: p.wait_for(0),
    "publisher.close": lambda n, p, s: p.close(),
    "receive": lambda n, p, s: s.receive(1),
    "receive now": lambda n, p, s: s.receive(0),
    "iterate": lambda n, p, s: next(iter(s)),
    "batches": lambda n, p, s: next(s.batches()),
    "subscription.wait_for": lambda n, p, s: s.wait_for(0),
    "publishers": lambda n, p, s: s.publishers,
    "subscription.close": lambda n, p, s: s.close(),
}
"Every call that may have to wait for the node's loop."


@pytest.mark.parametrize("use", BLOCKING.values(), ids=BLOCKING)
def test_a_running_loop_is_never_blocked(near: Node, use: Use) -> None:
    """A blocking call in a coroutine raises LocalProtocolError, which names the cure, and changes nothing."""
    import asyncio

    publisher, subscription = near.publisher("t"), near.subscribe("t")

    async def main() -> None:
        with pytest.raises(LocalProtocolError, match=r"use zfabric\.Node"):
            use(near, publisher, subscription)

    asyncio.run(main())
    publisher.publish("fine")
    assert subscription.receive(TIMEOUT_S).value == "fine"


def test_an_async_handler_gets_an_error_instead_of_a_deadlock(near: Node, far: Node) -> None:
    """An `async def` handler runs in the node's own loop: blocking calls raise there, `publish_nowait` works."""
    reply = near.publisher("reply")
    replies = far.subscribe("reply")
    reply.wait_for(1, TIMEOUT_S)

    @near.on("t")
    async def handler(message: Message) -> None:
        try:
            near.statistics()
        except LocalProtocolError as error:
            reply.publish_nowait(str(error))

    publisher = far.publisher("t")
    publisher.wait_for(1, TIMEOUT_S)
    publisher.publish(1)

    assert "plain `def` handlers" in replies.receive(TIMEOUT_S).value


def test_a_def_handler_may_use_its_node(near: Node, far: Node) -> None:
    """A `def` handler has a thread of its own: it asks, publishes and even subscribes."""
    reply = near.publisher("reply")
    replies = far.subscribe("reply")
    reply.wait_for(1, TIMEOUT_S)

    @near.on("t")
    def handler(message: Message) -> None:
        near.subscribe("more").close()
        reply.publish([message.value, len(near.peers)])
        reply.flush()

    publisher = far.publisher("t")
    publisher.wait_for(1, TIMEOUT_S)
    publisher.publish_many(range(10))

    assert [replies.receive(TIMEOUT_S).value for _ in range(10)] == [[n, 1] for n in range(10)]


def test_what_handlers_publish_while_the_node_closes_arrives(far: Node) -> None:
    """`close()` lets handlers finish, and sends what they published."""
    replies = far.subscribe("reply")
    with Node("brief", config=CONFIG) as node:
        reply = node.publisher("reply")
        reply.wait_for(1, TIMEOUT_S)
        closing = threading.Event()

        @node.on("t")
        def handler(message: Message) -> None:
            closing.wait(TIMEOUT_S)
            reply.publish(message.value)

        node.publisher("t").publish("last words")
        threading.Timer(0.05, closing.set).start()

    assert replies.receive(TIMEOUT_S).value == "last words"


def test_a_handler_keeps_its_type_and_options(near: Node) -> None:
    """`on` returns the function itself, and refuses bad options in the caller."""
    received: SimpleQueue[Message] = SimpleQueue()

    @near.on("t", overflow="block")
    def handler(message: Message) -> int:
        received.put(message)
        return 1

    near.publisher("t").publish("x")

    assert received.get(timeout=TIMEOUT_S).value == "x"
    assert handler(Message("y", 0, "t", 0.0, received)) == 1  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sideways"):
        near.on("t", overflow="sideways")(print)


def test_nodes_see_each_other(near: Node, far: Node) -> None:
    """`wait_for_peers` and `peers` tell who is there; id, name, fabric and endpoints who one is."""
    near.wait_for_peers(1, TIMEOUT_S)

    assert [(peer.id, peer.name) for peer in near.peers] == [(far.id, "far")]
    assert (near.name, near.fabric, len(near.id)) == ("near", "default", 32)
    assert all(endpoint.startswith(("ipc://", "tcp://")) for endpoint in near.endpoints)
    with pytest.raises(TimeoutError):
        near.wait_for_peers(2, 0.01)


def test_a_node_opens_once_and_closes_twice() -> None:
    """A second `open()` is a LocalProtocolError, a second `close()` nothing, and uses after it are NodeClosed."""
    node = Node("x", config=CONFIG)
    with pytest.raises(LocalProtocolError, match="open the node first"):
        node.subscribe("t")
    node.close()
    with node, pytest.raises(LocalProtocolError, match="opens once"):
        node.open()
    node.close()

    with pytest.raises(NodeClosed):
        node.subscribe("t")
    assert node.statistics().peers == 0
    with pytest.raises(LocalProtocolError, match="opens once"):
        node.open()


def test_threads_close_a_node_together() -> None:
    """Every caller of `close()` returns when the node is closed."""
    node = Node("x", config=CONFIG)
    node.open()

    for work in [Work(node.close) for _ in range(4)]:
        work.result()

    with pytest.raises(NodeClosed):
        assert node.peers


def test_a_node_that_cannot_open_leaves_nothing() -> None:
    """Errors of `open()` reach the caller, and the loop's thread ends."""
    before = threading.active_count()

    with pytest.raises(InterfaceNotFound), Node("x", interface="no-such-interface", config=CONFIG):
        pass

    assert threading.active_count() == before


def test_close_returns_though_the_loop_is_blocked(caplog: pytest.LogCaptureFixture) -> None:
    """A handler that blocks the loop cannot block `close(timeout)`, nor readers; the log tells."""
    node = Node("x", config=CONFIG)
    node.open()
    blocked, go = threading.Event(), threading.Event()

    @node.on("t")
    async def handler(message: Message) -> None:
        blocked.set()
        go.wait(TIMEOUT_S)  # noqa: ASYNC251, RUF100

    reading = Work(node.subscribe("other").receive)
    reading.wait_until_blocked()
    node.publisher("t").publish(1)
    assert blocked.wait(TIMEOUT_S)

    node.close(timeout=0.05)
    go.set()

    assert "has been blocked" in caplog.text
    with pytest.raises(NodeClosed):
        reading.result()


def test_calls_under_way_end_with_the_node() -> None:
    """A thread that waits for peers when another one closes the node gets NodeClosed."""
    node = Node("x", config=CONFIG)
    node.open()
    waiting = Work(lambda: node.wait_for_peers(1))
    publishing = Work(node.publisher("t").wait_for)
    waiting.wait_until_blocked()
    publishing.wait_until_blocked()

    node.close()

    for work in (waiting, publishing):
        with pytest.raises(NodeClosed):
            work.result()


def test_signatures_are_those_of_the_asyncio_node() -> None:
    """Tools that look at a signature see the real options, not `*arguments`."""
    import inspect

    import zfabric

    for name in ("__init__", "publisher", "subscribe"):
        ours, theirs = (inspect.signature(getattr(node, name)) for node in (Node, zfabric.Node))
        assert list(ours.parameters.values()) == list(theirs.parameters.values())


def test_reprs_tell_the_state(near: Node, far: Node) -> None:
    """Nodes, publishers and subscriptions show what matters, and never block."""
    publisher, subscription = wired(near, far)

    assert repr(near) == f"<sync.Node near {near.id[:8]} of fabric 'default' [open]>"
    assert repr(publisher) == "<sync.Publisher t [1 subscribers]>"
    assert repr(subscription) == "<sync.Subscription t [0 messages waiting]>"
    publisher.close()
    assert repr(publisher) == "<sync.Publisher t [closed]>"
