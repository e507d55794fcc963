"""Reliable topics, from threads."""

from __future__ import annotations

import pytest

from tests.sync.support import CONFIG, TIMEOUT_S, Work
from tests.waiting import wait_until
from zfabric import LocalProtocolError, WindowFull
from zfabric.events import Rejected
from zfabric.sync import Node, Publisher, Subscription


def reliable(near: Node, far: Node, *, ack: str = "auto", confirm: str | None = None) -> tuple[Publisher, Subscription]:
    """An at-least-once publisher and its subscription at another node."""
    subscription = far.subscribe("t", ack=ack)
    publisher = near.publisher("t", delivery="at-least-once", confirm=confirm, window_bytes=100_000)
    publisher.wait_for(1, TIMEOUT_S)
    return publisher, subscription


def publish_until_full(publisher: Publisher) -> None:
    """Publish without waiting, far more than the window holds."""
    for _ in range(2_000):
        publisher.publish_nowait("y" * 100)


def test_publish_waits_while_the_window_is_full(near: Node) -> None:
    """A reader that is slow slows its publisher down; nothing is lost."""
    with Node("narrow", config=CONFIG) as narrow:
        subscription = narrow.subscribe("t", buffer_bytes=1_000)
        publisher = near.publisher("t", delivery="at-least-once", window_bytes=10_000)
        publisher.wait_for(1, TIMEOUT_S)

        work = Work(lambda: [publisher.publish("x" * 100) for _ in range(2_000)])
        work.wait_until_blocked()
        with pytest.raises(WindowFull) as failure:
            publish_until_full(publisher)
        received: list[int] = []
        while len(received) < 2_000:
            message = subscription.receive(TIMEOUT_S)
            if message.value[0] == "x":
                received.append(message.seq)

        assert failure.value.bytes_max == 10_000
        assert received == work.result()


def test_flush_returns_when_everybody_has_received(near: Node, far: Node) -> None:
    """After `flush` every message of a reliable topic is at its subscribers."""
    publisher, subscription = reliable(near, far)

    publisher.publish_many(range(500))
    publisher.flush()

    assert far.statistics().topics["t"].received == 500
    assert [subscription.receive(0).value for _ in range(500)] == list(range(500))


def test_publish_returns_when_the_reader_has_processed(near: Node, far: Node) -> None:
    """With `confirm="processed"` a message counts as processed when its reader asks for the next."""
    publisher, subscription = reliable(near, far, confirm="processed")
    story: list[tuple[str, int]] = []

    def publish() -> None:
        for n in range(50):
            publisher.publish(n)
            story.append(("confirmed", n))
        story.append(("confirmed", publisher.publish_many([50, 51, 52])))

    def read() -> None:
        story.extend(("processed", message.value) for message in subscription)

    publishing, reading = Work(publish), Work(read)
    publishing.result()
    subscription.close()
    reading.result()

    steps = [(step, n) for n in range(50) for step in ("processed", "confirmed")]
    assert story == [*steps, *(("processed", n) for n in (50, 51, 52)), ("confirmed", 52)]


def test_messages_are_settled_one_by_one(near: Node, far: Node) -> None:
    """With `ack="manual"` a subscription acknowledges, asks again and rejects from any thread."""
    publisher, subscription = reliable(near, far, ack="manual", confirm="processed")
    events = far.events()

    work = Work(lambda: publisher.publish_many(["good", "again", "hopeless"]))
    good, again, hopeless = (subscription.receive(TIMEOUT_S) for _ in range(3))
    subscription.ack(good)
    subscription.nack(again)
    subscription.reject(hopeless)
    repeated = subscription.receive(TIMEOUT_S)
    subscription.ack(repeated)

    assert work.result() == 2
    assert (repeated.seq, repeated.value) == (1, "again")
    assert any(isinstance(event, Rejected) for event in events.iterate(TIMEOUT_S))


def test_automatic_messages_cannot_be_settled(near: Node, far: Node) -> None:
    """Without `ack="manual"` there is nothing to settle: LocalProtocolError says how."""
    publisher, subscription = reliable(near, far)
    publisher.publish(1)
    message = subscription.receive(TIMEOUT_S)

    with pytest.raises(LocalProtocolError, match="manual"):
        subscription.ack(message)


def test_close_waits_until_a_reliable_topic_is_confirmed(near: Node, far: Node) -> None:
    """Closing a reliable publisher returns when everything has been received."""
    publisher, subscription = reliable(near, far)
    with publisher:
        publisher.publish_many(range(500))

    wait_until(lambda: subscription.pending == 500)
    assert [subscription.receive(0).value for _ in range(500)] == list(range(500))
