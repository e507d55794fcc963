"""What blocking subscriptions and event streams promise."""

from __future__ import annotations

import time

import pytest

from tests.sync.support import CONFIG, TIMEOUT_S, Work, wired
from tests.waiting import wait_until
from zfabric import NodeClosed, PeerJoined, PeerLeft, SubscriberJoined
from zfabric.sync import Node


def test_iteration_ends_when_the_subscription_is_closed(near: Node, far: Node) -> None:
    """`for` yields every message, waits for more, and ends when another thread closes the subscription."""
    publisher, subscription = wired(near, far)
    work = Work(lambda: [message.value for message in subscription])

    publisher.publish_many(range(100))
    publisher.flush()
    wait_until(lambda: far.statistics().total("received") == 100)
    work.wait_until_blocked()
    subscription.close()

    assert work.result() == list(range(100))
    assert list(subscription) == []


def test_iterate_raises_when_nothing_comes(near: Node, far: Node) -> None:
    """`iterate(timeout)` yields what comes in time, and a pause that is too long is a TimeoutError."""
    publisher, subscription = wired(near, far)
    publisher.publish_many(range(3))
    messages = subscription.iterate(timeout=1.0)

    values = [next(messages).value for _ in range(3)]
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"subscription to 't' within 1\.0 s"):
        next(messages)

    assert values == [0, 1, 2]
    assert time.monotonic() - start >= 1.0


def test_iteration_goes_on_where_it_was_left(near: Node, far: Node) -> None:
    """Leaving a loop loses nothing: iteration, `receive` and `batches` take turns."""
    publisher, subscription = wired(near, far)
    publisher.publish_many(range(10))

    for message in subscription:
        if message.value == 2:
            break
    one = subscription.receive(TIMEOUT_S)
    batch = next(subscription.batches(TIMEOUT_S))

    assert one.value == 3
    assert batch[0].value == 4


def test_batches_are_lists_of_everything(near: Node, far: Node) -> None:
    """`batches()` yields non-empty lists that hold every message once, and raises TimeoutError in a pause."""
    publisher, subscription = wired(near, far, overflow="block")
    publisher.publish_many(range(5_000))
    batches = subscription.batches(timeout=TIMEOUT_S)
    values: list[int] = []

    while len(values) < 5_000:
        batch = next(batches)
        assert batch
        values += [message.value for message in batch]

    assert values == list(range(5_000))
    with pytest.raises(TimeoutError):
        next(subscription.batches(timeout=0.01))


def test_receive_times_out_and_loses_nothing(near: Node, far: Node) -> None:
    """A `receive` that gave up leaves later messages for the next one, in order."""
    publisher, subscription = wired(near, far)
    received: list[int] = []

    def publish() -> None:
        for n in range(200):
            publisher.publish(n)
            publisher.flush()

    work = Work(publish)

    deadline = time.monotonic() + TIMEOUT_S
    while len(received) < 200 and time.monotonic() < deadline:
        try:
            received.append(subscription.receive(timeout=0.0001).value)
        except TimeoutError:
            continue
    work.result()

    assert received == list(range(200))


def test_receive_with_timeout_0_takes_what_is_there(near: Node, far: Node) -> None:
    """`receive(0)` never waits: a waiting message is returned, else it is a TimeoutError."""
    publisher, subscription = wired(near, far)
    with pytest.raises(TimeoutError):
        subscription.receive(0)

    publisher.publish("there")
    wait_until(lambda: subscription.pending == 1)

    assert subscription.receive(0).value == "there"
    with pytest.raises(TimeoutError):
        subscription.receive(0)


def test_polling_sees_the_latest_value_only(near: Node, far: Node) -> None:
    """With `overflow="latest"` a timed-out `receive` does not hold back a value that is old by the next one."""
    publisher, subscription = wired(near, far, overflow="latest")
    for timeout in (0, 0.001):
        with pytest.raises(TimeoutError):
            subscription.receive(timeout)
    before = far.statistics().total("received")

    for n in range(5):
        publisher.publish(n)
        publisher.flush()
    wait_until(lambda: far.statistics().total("received") == before + 5)

    assert subscription.receive(0).value == 4


def test_pending_counts_what_was_not_read(near: Node, far: Node) -> None:
    """`pending` covers messages wherever they wait, also after some were read."""
    publisher, subscription = wired(near, far)
    publisher.publish_many(range(100))
    wait_until(lambda: subscription.pending == 100)

    subscription.receive(TIMEOUT_S)

    assert subscription.pending == 99


def test_threads_share_a_subscription(near: Node, far: Node) -> None:
    """Threads that read one subscription divide its messages among them: each goes to exactly one."""
    publisher, subscription = wired(near, far, overflow="block")
    work = [Work(lambda: [message.value for message in subscription]) for _ in range(4)]

    publisher.publish_many(range(10_000))
    publisher.flush()
    wait_until(lambda: far.statistics().total("received") == 10_000)
    subscription.close()

    shares = [one.result() for one in work]
    assert sorted(value for share in shares for value in share) == list(range(10_000))
    assert all(share == sorted(share) for share in shares)


def test_receive_of_several_threads_honours_each_timeout(far: Node) -> None:
    """A thread that waits behind another one times out by its own clock."""
    subscription = far.subscribe("t")
    patient = Work(subscription.receive)
    patient.wait_until_blocked()

    with pytest.raises(TimeoutError):
        subscription.receive(timeout=0.05)

    subscription.close()
    with pytest.raises(NodeClosed):
        patient.result()


def test_closing_the_node_ends_every_blocked_read() -> None:
    """`receive` ends with NodeClosed, iteration just ends, in whatever thread they wait."""
    node = Node("x", config=CONFIG)
    node.open()
    one, other = node.subscribe("t"), node.subscribe("t")
    receiving = Work(one.receive)
    iterating = Work(lambda: list(other))
    following = Work(lambda: list(node.events()))
    for work in (receiving, iterating, following):
        work.wait_until_blocked()

    node.close()

    with pytest.raises(NodeClosed, match="subscription to 't'"):
        receiving.result()
    assert iterating.result() == []
    assert following.result() == []


def test_what_waits_can_be_read_after_close(near: Node) -> None:
    """Messages that had arrived when the subscription and its node closed are read, then iteration ends."""
    with Node("brief", config=CONFIG) as node:
        publisher, subscription = wired(near, node)
        publisher.publish_many(range(3_000))
        wait_until(lambda: subscription.pending == 3_000)
        assert subscription.receive(TIMEOUT_S).value == 0

    assert [message.value for message in subscription] == list(range(1, 3_000))
    with pytest.raises(NodeClosed):
        subscription.receive()
    with pytest.raises(NodeClosed):
        subscription.receive(0)
    subscription.close()


def test_a_subscription_is_a_context_manager(near: Node, far: Node) -> None:
    """Leaving the with-block unsubscribes: the publisher sees it."""
    publisher, subscription = wired(near, far)
    with subscription:
        assert publisher.subscribers == 1
        subscription.wait_for(1, TIMEOUT_S)
        assert subscription.publishers == 1
    wait_until(lambda: publisher.subscribers == 0)


def test_events_come_from_the_moment_of_the_call(near: Node) -> None:
    """`events()` is a blocking iterator with the same timeouts, and ends with the node."""
    events = near.events()
    with Node("brief", config=CONFIG) as node:
        subscription = node.subscribe("t")
        publisher = near.publisher("t")
        publisher.wait_for(1, TIMEOUT_S)
        kinds = [type(events.receive(TIMEOUT_S)), type(events.receive(TIMEOUT_S))]
        with pytest.raises(TimeoutError):
            events.receive(0.01)
        with pytest.raises(TimeoutError):
            events.receive(0)
        subscription.close()

    left = next(event for event in events.iterate(TIMEOUT_S) if isinstance(event, PeerLeft))
    assert kinds == [PeerJoined, SubscriberJoined]
    assert left.reason == "goodbye"
    near.close()
    assert list(events) == []


def test_closed_events_end(near: Node) -> None:
    """Closing a stream of events ends its iteration, not the node."""
    with near.events() as events:
        work = Work(lambda: list(events))
        work.wait_until_blocked()

    assert work.result() == []
    assert near.peers == ()
