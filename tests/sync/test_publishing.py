"""What blocking publishers promise."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.sync.support import CONFIG, TIMEOUT_S, Work, wired
from zfabric import (
    Config,
    EncodeFailed,
    LimitExceeded,
    Message,
    NodeClosed,
    NoSubscribers,
    Topic,
    TopicError,
    WindowFull,
)
from zfabric.sync import Node


def test_values_keys_and_headers_arrive_in_order(near: Node, far: Node) -> None:
    """What one thread publishes arrives as published, numbered from 0."""
    publisher, subscription = wired(near, far)

    seqs = [
        publisher.publish({"n": 0}),
        publisher.publish_nowait([1], key="k"),
        publisher.publish("two", headers={"unit": "C"}, ttl=60),
    ]
    received = [subscription.receive(TIMEOUT_S) for _ in range(3)]

    assert seqs == [0, 1, 2]
    assert [(m.seq, m.value, m.key, m.headers) for m in received] == [
        (0, {"n": 0}, None, None),
        (1, [1], "k", None),
        (2, "two", None, {"unit": "C"}),
    ]
    assert {(m.topic, m.source.name, m.source.id) for m in received} == {("t", "near", near.id)}


def test_publish_many_returns_the_last_number(near: Node, far: Node) -> None:
    """`publish_many` publishes every value of an iterable; an empty one gives -1."""
    publisher, subscription = wired(near, far)

    assert publisher.publish_many([]) == -1
    assert publisher.publish_many(range(1000)) == 999
    assert [subscription.receive(TIMEOUT_S).value for _ in range(1000)] == list(range(1000))


def test_publish_many_sends_while_the_iterable_blocks(near: Node, far: Node) -> None:
    """A slow iterable delays nothing that it has yielded already, and may use the node itself."""
    publisher, subscription = wired(near, far)
    received: list[int] = []

    def echo() -> Iterator[int]:
        for n in range(3):
            yield n
            received.append(subscription.receive(TIMEOUT_S).value)

    publisher.publish_many(echo())

    assert received == [0, 1, 2]


def test_many_threads_publish_at_once(near: Node, far: Node) -> None:
    """Nothing is lost or doubled, each thread's messages stay in order, and numbers are unique."""
    threads, each = 8, 5_000
    publisher, subscription = wired(near, far, overflow="block")
    start = threading.Barrier(threads)

    def publish(thread: int) -> list[int]:
        start.wait()
        call = publisher.publish if thread % 2 else publisher.publish_nowait
        return [call((thread, n)) for n in range(each)]

    work = [Work(lambda thread=thread: publish(thread)) for thread in range(threads)]  # type: ignore[misc]
    received = [subscription.receive(TIMEOUT_S) for _ in range(threads * each)]
    seqs = [one.result() for one in work]

    orders: dict[int, list[int]] = defaultdict(list)
    for message in received:
        orders[message.value[0]].append(message.value[1])
    assert orders == {thread: list(range(each)) for thread in range(threads)}
    assert [m.seq for m in received] == list(range(threads * each))
    assert {(m.value[0], m.value[1]): m.seq for m in received} == {
        (thread, n): seqs[thread][n] for thread in range(threads) for n in range(each)
    }


def test_every_message_leaves_soon(near: Node) -> None:
    """No wake-up of the loop is lost: threads that compete for topics and wait for each message go on."""
    everything = near.subscribe("#", overflow="block")

    def ping(topic: str) -> None:
        shared, own, echo = near.publisher("shared"), near.publisher(topic), near.subscribe(topic)
        for n in range(1_000):
            shared.publish_nowait(n)
            own.publish_nowait(n)
            assert echo.receive(TIMEOUT_S).value == n

    for work in [Work(lambda topic=topic: ping(topic)) for topic in ("a", "b", "c")]:  # type: ignore[misc]
        work.result()

    assert sum(1 for _ in zip(range(6_000), everything.iterate(TIMEOUT_S), strict=False)) == 6_000


def test_publishers_of_one_topic_share_its_numbers(near: Node, far: Node) -> None:
    """A second publisher goes on where the first one is; the topic ends with the last of them."""
    first, subscription = wired(near, far)
    second = near.publisher("t")

    assert [first.publish("a"), second.publish("b"), first.publish("c")] == [0, 1, 2]
    first.close()
    assert second.publish("d") == 3
    assert [subscription.receive(TIMEOUT_S).value for _ in range(4)] == ["a", "b", "c", "d"]
    with pytest.raises(NodeClosed, match="publisher of 't' is closed"):
        first.publish("e")


def test_a_topic_opens_again_after_it_was_closed(near: Node) -> None:
    """Closing the last publisher sends what is open; a new one can be made and starts anew."""
    subscription = near.subscribe("t")
    with near.publisher("t") as publisher:
        publisher.publish("old")

    again = near.publisher("t")

    assert again.publish("new") == 0
    assert [subscription.receive(TIMEOUT_S).value for _ in range(2)] == ["old", "new"]


def test_a_value_that_does_not_encode_harms_no_other(near: Node, far: Node) -> None:
    """EncodeFailed is raised in the publishing thread, takes no number, and leaves no key behind."""
    publisher, subscription = wired(near, far)
    publisher.publish("before")

    with pytest.raises(EncodeFailed, match="'t'") as failure:
        publisher.publish(["good", object()], key="k", headers={"a": 1})
    with pytest.raises(EncodeFailed, match="'t'"):
        publisher.publish_nowait(object())
    publisher.publish("after")

    assert failure.value.topic == "t"
    received = [subscription.receive(TIMEOUT_S) for _ in range(2)]
    assert [(m.seq, m.value, m.key, m.headers) for m in received] == [
        (0, "before", None, None),
        (1, "after", None, None),
    ]


@dataclass
class Reading:
    celsius: float


def test_typed_topics_are_checked_in_the_publishing_thread(near: Node, far: Node) -> None:
    """A value of the wrong type raises at `publish`; one of the right type arrives as that type."""
    topic = Topic("t", Reading)
    subscription = far.subscribe(topic)
    publisher = near.publisher(topic)
    publisher.wait_for(1, TIMEOUT_S)

    with pytest.raises(EncodeFailed, match="'t'"):
        publisher.publish({"celsius": "warm"})
    publisher.publish(Reading(21.5))

    assert subscription.receive(TIMEOUT_S).value == Reading(21.5)


def test_large_values_travel_as_frames_of_their_own(near: Node, far: Node) -> None:
    """Large bytes and batches of them arrive unchanged, between small values."""
    values: list[Any] = ["small", bytes(300_000), b"x" * 100_000, 7] * 5
    publisher, subscription = wired(near, far)

    publisher.publish_many(values)

    assert [subscription.receive(TIMEOUT_S).value for _ in values] == values


def test_long_bursts_are_cut_into_batches(near: Node, far: Node) -> None:
    """A burst of more than Config.batch_bytes leaves as several batches, and everything arrives."""
    publisher, subscription = wired(near, far, overflow="block")

    publisher.publish_many(["x" * 100] * 20_000)
    publisher.flush()

    assert near.statistics().batches_sent >= 20_000 * 100 // (2 * CONFIG.batch_bytes)
    assert [subscription.receive(TIMEOUT_S).seq for _ in range(20_000)] == list(range(20_000))


def test_what_nobody_hears_is_numbered_and_counted(near: Node, far: Node) -> None:
    """Messages without a subscriber count as unmatched, take numbers, and are no gap for one who comes later."""
    publisher = near.publisher("t")
    publisher.publish_many(range(10))
    unheard = near.statistics().topics["t"]

    subscription = far.subscribe("t")
    publisher.wait_for(1, TIMEOUT_S)
    publisher.publish("heard")

    assert (unheard.published, unheard.unmatched) == (10, 10)
    assert subscription.receive(TIMEOUT_S).seq == 10
    assert far.statistics().total("lost") == 0


def test_metadata_is_checked_and_copied_at_once(near: Node, far: Node) -> None:
    """Keys and headers that cannot travel raise in the caller; changing them afterwards changes nothing."""
    publisher, subscription = wired(near, far)
    headers = {"unit": "C"}

    for bad in ({"key": object()}, {"headers": {"a": object()}}, {"ttl": -1}):
        with pytest.raises(EncodeFailed, match="'t'"):
            publisher.publish(1, **bad)
    publisher.publish(2, key=["k"], headers=headers)
    headers["unit"] = "F"

    message = subscription.receive(TIMEOUT_S)
    assert (message.seq, message.key, message.headers) == (0, ["k"], {"unit": "C"})


def test_a_value_too_large_for_a_frame_is_refused(far: Node) -> None:
    """LimitExceeded names the limit, and the stream goes on as if nothing had been said."""
    with Node("small", config=Config(mdns=False, frame_bytes_max=100_000)) as node:
        publisher, subscription = wired(node, far)

        for value in ("x" * 100_000, b"x" * 100_001, ["x" * 60_000, "x" * 60_000]):
            with pytest.raises(LimitExceeded, match="frame_bytes_max"):
                publisher.publish(value)
        publisher.publish_many(["x" * 30_000] * 10)

        assert [subscription.receive(TIMEOUT_S).seq for _ in range(10)] == list(range(10))


def test_mandatory_messages_need_a_subscriber(near: Node) -> None:
    """With `mandatory` a message that nobody subscribes to raises NoSubscribers in the caller."""
    publisher = near.publisher("t", mandatory=True)

    with pytest.raises(NoSubscribers, match="'t'"):
        publisher.publish(1)
    with pytest.raises(NoSubscribers, match="'t'"):
        publisher.publish_nowait(1)
    with pytest.raises(NoSubscribers, match="'t'"):
        publisher.publish_many([1])

    near.subscribe("t")
    assert publisher.publish(1) == 0
    assert publisher.publish_many([2, 3]) == 2


def test_a_node_hears_itself_from_the_moment_it_subscribed(near: Node) -> None:
    """A subscription gets its own node's messages, but none that were published before it was made."""
    publisher = near.publisher("t")
    first = near.subscribe("t")
    publisher.publish("early")
    second = near.subscribe("t")
    publisher.publish("late")

    assert [first.receive(TIMEOUT_S).value for _ in range(2)] == ["early", "late"]
    assert second.receive(TIMEOUT_S).value == "late"


def test_bad_topics_and_options_raise_in_the_caller(near: Node) -> None:
    """Errors of `publisher()` cross the threads unchanged."""
    with pytest.raises(TopicError, match="a b"):
        near.publisher("a b")
    with pytest.raises(TypeError, match="unheard_of"):
        near.publisher("t", unheard_of=1)  # type: ignore[call-arg]


class BlockedLoop:
    """Blocks a node's loop, as a careless `async def` handler does, until `go` is called."""

    def __init__(self, node: Node) -> None:
        self._blocked = threading.Event()
        self._go = threading.Event()
        node.on("block")(self._handle)
        node.publisher("block").publish(None)
        assert self._blocked.wait(TIMEOUT_S)

    async def _handle(self, message: Message) -> None:
        self._blocked.set()
        self._go.wait(TIMEOUT_S)  # noqa: ASYNC251, RUF100

    def go(self) -> None:
        """Let the loop run again."""
        self._go.set()


@pytest.fixture
def narrow() -> Iterator[Node]:
    """A node that lets little wait."""
    config = Config(mdns=False, batch_bytes=1024, outlet_queue_bytes=10_000)
    with Node("narrow", config=config) as node:
        yield node


def test_publish_nowait_raises_when_the_loop_is_blocked(narrow: Node) -> None:
    """WindowFull tells a thread that Config.outlet_queue_bytes wait for the loop; nothing accepted is lost."""
    subscription = narrow.subscribe("t")
    publisher = narrow.publisher("t")
    blocked = BlockedLoop(narrow)

    accepted = publish_until_full(publisher.publish_nowait)
    blocked.go()
    publisher.publish("more")

    assert 10_000 // 100 - 1 <= accepted <= (10_000 + 2 * 1024) // 100
    assert [subscription.receive(TIMEOUT_S).seq for _ in range(accepted + 1)] == list(range(accepted + 1))


def publish_until_full(publish: Callable[[Any], int]) -> int:
    """How many values were accepted before WindowFull."""
    for count in range(1_000):
        try:
            publish("x" * 99)
        except WindowFull as error:
            assert error.topic == "t"
            assert error.bytes_waiting >= error.bytes_max == 10_000
            return count
    raise AssertionError("never full")


def test_publish_waits_while_the_loop_is_blocked(narrow: Node) -> None:
    """`publish` blocks instead of raising, and goes on when the loop does."""
    subscription = narrow.subscribe("t")
    publisher = narrow.publisher("t")
    blocked = BlockedLoop(narrow)

    work = Work(lambda: publisher.publish_many(["x" * 99] * 1_000))
    work.wait_until_blocked()
    blocked.go()

    assert work.result() == 999
    assert [subscription.receive(TIMEOUT_S).seq for _ in range(1_000)] == list(range(1_000))


def test_publish_wait_and_flush_raise_once_the_node_is_closed() -> None:
    """After `close()` every use of a publisher is NodeClosed, except to close it."""
    with Node("x", config=CONFIG) as node:
        publisher = node.publisher("t")
    for use in (lambda: publisher.publish(1), lambda: publisher.publish_nowait(1), publisher.flush, publisher.wait_for):
        with pytest.raises(NodeClosed):
            use()
    publisher.close()


def test_wait_for_times_out(near: Node) -> None:
    """`wait_for` raises TimeoutError when nobody comes."""
    with pytest.raises(TimeoutError):
        near.publisher("t").wait_for(1, 0.01)


def test_close_sends_everything_that_was_accepted() -> None:
    """The with-block's end leaves nothing behind in the publishing threads."""
    with Node("brief", config=CONFIG) as node:
        subscription = node.subscribe("t", overflow="block")
        publisher = node.publisher("t")
        for n in range(10_000):
            publisher.publish_nowait(n)

    assert [message.value for message in subscription] == list(range(10_000))
