"""Order, numbers, batches, waiting and overflow."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.contract.support import TIMEOUT, MakeNode, connect, next_event, publish_each, take, values
from zfabric import Gap, LimitExceeded, LocalProtocolError, Node, NodeClosed, NoSubscribers, Topic
from zfabric.testing import eventually

Pair = tuple[Node, Node]
DELIVERIES = ["at-most-once", "at-least-once"]


@pytest.mark.parametrize("delivery", DELIVERIES)
async def test_messages_arrive_in_order_and_numbered(pair: Pair, delivery: str) -> None:
    """Per publisher and topic, order is kept over batches of any size, and numbers have no holes."""
    a, b = pair
    publisher = a.publisher("ordered", delivery=delivery)
    subscription = b.subscribe("ordered")
    await publisher.wait_for(1, timeout=TIMEOUT)
    rng = random.Random(1)

    numbers = iter(range(2000))
    for size in iter(lambda: rng.choice([1, 2, 50, 400]), None):
        chunk = [n for _, n in zip(range(size), numbers)]  # noqa: B905 - the shorter one ends it
        if not chunk:
            break
        for number in chunk:
            assert publisher.publish_nowait(number) == number
        await asyncio.sleep(0)

    received = await take(subscription, 2000)
    assert [message.value for message in received] == list(range(2000))
    assert [message.seq for message in received] == list(range(2000))


async def test_two_publishers_of_one_topic_share_its_numbers(pair: Pair) -> None:
    """Publishers of the same topic in a node are one stream; closing one does not stop the other."""
    a, b = pair
    first, subscription = await connect(a, b, "shared")
    second = a.publisher("shared")

    assert [first.publish_nowait("a"), second.publish_nowait("b"), first.publish_nowait("c")] == [0, 1, 2]
    await first.close()
    second.publish_nowait("d")

    assert await values(subscription, 4) == ["a", "b", "c", "d"]
    with pytest.raises(NodeClosed):
        first.publish_nowait("e")


async def test_a_topic_has_one_type_per_node(make_node: MakeNode) -> None:
    """A second publisher of the topic with another type is an error."""
    node = await make_node("node")
    node.publisher(Topic("typed", int))

    with pytest.raises(LocalProtocolError, match="another type"):
        node.publisher(Topic("typed", str))
    node.publisher(Topic("typed", int))


async def test_batches_hold_everything_in_order(pair: Pair) -> None:
    """`batches()` gives the same messages as reading one by one, in fewer steps."""
    a, b = pair
    publisher, subscription = await connect(a, b, "batched")

    await publisher.publish_many(range(5000))
    received: list[int] = []
    steps = 0
    async with asyncio.timeout(TIMEOUT):
        async for batch in subscription.batches():
            steps += 1
            received += [message.value for message in batch]
            if len(received) == 5000:
                break

    assert received == list(range(5000))
    assert steps < 500


async def test_batches_go_on_after_single_reads(pair: Pair) -> None:
    """The rest of a batch that was read in part is not lost to `batches()`."""
    a, b = pair
    publisher, subscription = await connect(a, b, "batched")

    await publisher.publish_many(range(10))
    assert await values(subscription, 3) == [0, 1, 2]

    batch = await anext(subscription.batches())
    assert [message.value for message in batch] == list(range(3, 10))


async def test_one_turn_is_one_batch(pair: Pair) -> None:
    """Whatever is published in one turn of the event loop leaves as one batch."""
    a, b = pair
    publisher, subscription = await connect(a, b, "turn")

    for number in range(100):
        publisher.publish_nowait(number)
    batch = await anext(subscription.batches())

    assert len(batch) == 100
    assert a.statistics().batches_sent == 1


async def test_publish_many_returns_the_last_number(pair: Pair) -> None:
    """It counts like single calls do, and an empty iterable publishes nothing."""
    a, b = pair
    publisher, subscription = await connect(a, b, "many")

    assert await publisher.publish_many([]) == -1
    assert await publisher.publish_many(iter("abc")) == 2
    assert await publisher.publish("d") == 3

    assert await values(subscription, 4) == list("abcd")


async def test_publish_many_lets_others_run(make_node: MakeNode) -> None:
    """A long publish_many does not keep the event loop to itself, with or without listeners."""
    node = await make_node("node")
    for topic, heard in (("heard", True), ("unheard", False)):
        publisher = node.publisher(topic)
        subscription = node.subscribe(topic if heard else "other")
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(others())
        await publisher.publish_many(range(100_000))
        task.cancel()
        await subscription.close()

        assert turns > 3


async def test_flush_hands_everything_over(pair: Pair) -> None:
    """After flush a batch is on its way even if the event loop is not asked again."""
    a, b = pair
    publisher, subscription = await connect(a, b, "flush")

    publisher.publish_nowait(1)
    await publisher.flush()

    assert a.statistics().batches_sent == 1
    assert await values(subscription, 1) == [1]


# -- waiting -----------------------------------------------------------------------------------


async def test_waits_time_out(make_node: MakeNode) -> None:
    """Every wait with a timeout raises TimeoutError when nothing comes."""
    node = await make_node("alone")
    publisher, subscription = node.publisher("nobody"), node.subscribe("silence")

    with pytest.raises(TimeoutError):
        await publisher.wait_for(subscribers=1, timeout=0.01)
    with pytest.raises(TimeoutError):
        await subscription.wait_for(publishers=1, timeout=0.01)
    with pytest.raises(TimeoutError):
        await node.wait_for_peers(1, timeout=0.01)
    with pytest.raises(TimeoutError):
        await subscription.receive(timeout=0.01)


async def test_waits_for_nothing_return_at_once(make_node: MakeNode) -> None:
    """A condition that holds already needs no time, not even with timeout 0."""
    node = await make_node("alone")
    publisher, subscription = node.publisher("own"), node.subscribe("own")

    await publisher.wait_for(subscribers=1, timeout=0)
    await subscription.wait_for(publishers=1, timeout=0)
    await node.wait_for_peers(0, timeout=0)


async def test_one_task_reads_at_a_time(make_node: MakeNode) -> None:
    """A second reader is an error, not a thief."""
    node = await make_node("alone")
    subscription = node.subscribe("one")
    reader = asyncio.create_task(subscription.receive(timeout=TIMEOUT))
    await asyncio.sleep(0)

    with pytest.raises(LocalProtocolError, match="another task"):
        await subscription.receive(timeout=TIMEOUT)

    node.publisher("one").publish_nowait("mine")
    assert (await reader).value == "mine"


@pytest.mark.parametrize("seed", range(3))
async def test_cancelling_a_receive_loses_no_message(pair: Pair, seed: int) -> None:
    """Reads are cancelled at random points; every message still arrives once and in order."""
    a, b = pair
    rng = random.Random(seed)
    publisher, subscription = await connect(a, b, "cancelled")
    received: list[int] = []
    published = 0

    async with asyncio.timeout(TIMEOUT):
        while len(received) < 300:
            for _ in range(rng.choice([0, 0, 1, 3]) if published < 300 else 0):
                publisher.publish_nowait(published)
                published += 1
            reader = asyncio.create_task(subscription.receive(timeout=rng.choice([None, 0.0005, 5])))
            for _ in range(rng.randrange(6)):
                await asyncio.sleep(0)
            reader.cancel()
            outcome = (await asyncio.gather(reader, return_exceptions=True))[0]
            if not isinstance(outcome, BaseException):
                received.append(outcome.value)
            else:
                assert isinstance(outcome, asyncio.CancelledError | TimeoutError)

    assert received == list(range(published))[: len(received)]


async def test_breaking_off_an_iteration_loses_no_message(pair: Pair) -> None:
    """Loops may be left and begun again."""
    a, b = pair
    publisher, subscription = await connect(a, b, "loops")
    await publisher.publish_many(range(10))

    received: list[int] = []
    async with asyncio.timeout(TIMEOUT):
        while len(received) < 10:
            async for message in subscription:
                received.append(message.value)
                if len(received) % 3 == 0 or len(received) == 10:
                    break

    assert received == list(range(10))


# -- nobody there ------------------------------------------------------------------------------


async def test_messages_to_nobody_are_counted(make_node: MakeNode) -> None:
    """Without a subscriber messages get their numbers, go nowhere and count as unmatched."""
    node = await make_node("alone")
    publisher = node.publisher("void")

    assert [publisher.publish_nowait(n) for n in range(3)] == [0, 1, 2]
    assert await publisher.publish_many(range(7)) == 9
    await publisher.flush()

    statistics = node.statistics()
    assert (statistics.topics["void"].published, statistics.topics["void"].unmatched) == (10, 10)
    assert statistics.batches_sent == 0


async def test_numbers_after_an_unheard_beginning_are_no_gap(pair: Pair) -> None:
    """What was published before a subscription is not lost to it."""
    a, b = pair
    publisher = a.publisher("late")
    for number in range(5):
        publisher.publish_nowait(number)
    publisher, subscription = await connect(a, b, "late")

    await publisher.publish(5)

    (message,) = await take(subscription, 1)
    assert (message.value, message.seq) == (5, 5)
    assert b.statistics().total("lost") == 0


async def test_mandatory_messages_need_a_subscriber(pair: Pair) -> None:
    """A mandatory publisher raises NoSubscribers when it is alone, and only then."""
    a, b = pair
    publisher = a.publisher("must", mandatory=True)

    with pytest.raises(NoSubscribers, match="must") as caught:
        publisher.publish_nowait(1)
    assert caught.value.topic == "must"
    with pytest.raises(NoSubscribers):
        await publisher.publish_many([1, 2])

    subscription = b.subscribe("must")
    await publisher.wait_for(1, timeout=TIMEOUT)
    await publisher.publish(2)
    assert await values(subscription, 1) == [2]

    await subscription.close()
    await eventually(lambda: publisher.subscribers == 0)
    with pytest.raises(NoSubscribers):
        await publisher.publish(3)


# -- overflow ----------------------------------------------------------------------------------


async def test_overflow_block_loses_nothing(pair: Pair) -> None:
    """A full blocking subscription stops the feed; what it has no room for waits on the way."""
    a, b = pair
    publisher, subscription = await connect(a, b, "blocked", overflow="block", buffer_bytes=10_000)

    for number in range(300):
        await publisher.publish([number, "x" * 1000])
        await publisher.flush()
        assert subscription.pending < 100
    received = await values(subscription, 300)

    assert [value[0] for value in received] == list(range(300))
    assert b.statistics().total("lost") == 0


async def test_overflow_drop_oldest_tells_exactly_what_went(pair: Pair) -> None:
    """The newest messages stay; Gap events name every other one, and statistics count them."""
    a, b = pair
    publisher, witness = await connect(a, b, "dropping")
    subscription = b.subscribe("dropping", overflow="drop-oldest", buffer_bytes=5_000)
    await subscription.wait_for(publishers=1, timeout=TIMEOUT)
    events = b.events()

    await publish_each(publisher, ([number, "x" * 500] for number in range(100)))
    await take(witness, 100)
    kept = [value[0] for value in await values(subscription, subscription.pending)]

    lost: list[int] = []
    while len(lost) + len(kept) < 100:
        gap = await next_event(events, Gap)
        assert (gap.cause, gap.topic, gap.source.name) == ("buffer", "dropping", "a")
        assert gap.count == gap.last - gap.first + 1
        lost += range(gap.first, gap.last + 1)
    assert lost + kept == list(range(100))
    assert 0 < len(kept) < 20
    assert b.statistics().topics["dropping"].lost == len(lost)


async def test_overflow_latest_keeps_the_newest_of_each_key(pair: Pair) -> None:
    """A slow reader of states gets one message per topic and key: the last."""
    a, b = pair
    publisher, subscription = await connect(a, b, "state.x", "state.*", overflow="latest")
    other, witness = await connect(a, b, "state.y")

    for number in range(50):
        await publisher.publish(number, key="even" if number % 2 == 0 else "odd")
        await publisher.flush()
    await publish_each(other, range(10))
    await take(witness, 10)

    newest = {(m.topic, m.key): m.value for m in await take(subscription, 3)}
    assert newest == {("state.x", "even"): 48, ("state.x", "odd"): 49, ("state.y", None): 9}
    assert subscription.pending == 0


async def test_overflow_latest_is_bounded(pair: Pair) -> None:
    """More keys than fit push out the ones that changed longest ago, and that is told."""
    a, b = pair
    publisher, subscription = await connect(a, b, "state", overflow="latest", buffer_bytes=2_000)
    witness = b.subscribe("state")
    await witness.wait_for(publishers=1, timeout=TIMEOUT)

    for number in range(100):
        await publisher.publish("x" * 100, key=number)
        await publisher.flush()
    await take(witness, 100)

    kept = [message.key for message in await take(subscription, subscription.pending)]
    assert kept == list(range(100 - len(kept), 100))
    assert 1 < len(kept) < 20
    assert b.statistics().topics["state"].lost == 100 - len(kept)


# -- limits ------------------------------------------------------------------------------------


async def test_limits_are_errors_that_name_their_field(make_node: MakeNode) -> None:
    """Too many topics or subscriptions raise LimitExceeded; closing one makes room."""
    node = await make_node("node", topics_max=2, patterns_max=2)
    publishers = [node.publisher("a"), node.publisher("b")]
    subscriptions = [node.subscribe("a"), node.subscribe("b")]

    with pytest.raises(LimitExceeded) as topics:
        node.publisher("c")
    with pytest.raises(LimitExceeded) as patterns:
        node.subscribe("c")
    assert (topics.value.limit, patterns.value.limit) == ("topics_max", "patterns_max")

    await publishers[0].close()
    await subscriptions[0].close()
    node.publisher("c")
    node.subscribe("c")


async def test_batches_are_split_at_their_limits(make_node: MakeNode) -> None:
    """No batch has more messages or bytes than Config allows, and nothing is lost by splitting."""
    a = await make_node("a", batch_messages_max=10, batch_bytes=1_000)
    b = await make_node("b")
    publisher, subscription = await connect(a, b, "split")

    for number in range(95):
        publisher.publish_nowait(number)
    sizes = []
    async with asyncio.timeout(TIMEOUT):
        async for batch in subscription.batches():
            sizes.append(len(batch))
            if sum(sizes) == 95:
                break
    assert max(sizes) <= 10

    for _ in range(20):
        publisher.publish_nowait("x" * 900)
    assert await values(subscription, 20) == ["x" * 900] * 20


async def test_values_that_no_frame_can_hold_are_refused(make_node: MakeNode) -> None:
    """Rather than to lose its connection, a publisher raises LimitExceeded; what came before still arrives."""
    limits = {"frame_bytes_max": 200_000}
    a, b = await make_node("a", **limits), await make_node("b", **limits)
    publisher, subscription = await connect(a, b, "limited")

    publisher.publish_nowait("before")
    for value in ("x" * 200_001, b"x" * 200_001, ["x" * 150_000, "x" * 150_000]):
        with pytest.raises(LimitExceeded) as caught:
            publisher.publish_nowait(value)
        assert caught.value.limit == "frame_bytes_max"
    with pytest.raises(LimitExceeded):
        publisher.publish_nowait(1, headers={"x": "y" * 200_001})
    publisher.publish_nowait("after")

    assert await values(subscription, 2) == ["before", "after"]


async def test_reliable_values_fit_one_frame_with_all_their_buffers(make_node: MakeNode) -> None:
    """What may be sent again travels in one control frame then."""
    limits = {"frame_bytes_max": 200_000, "inline_bytes": 1000}
    a, b = await make_node("a", **limits), await make_node("b", **limits)
    publisher = a.publisher("limited", delivery="at-least-once")
    subscription = b.subscribe("limited")
    await publisher.wait_for(subscribers=1, timeout=TIMEOUT)

    with pytest.raises(LimitExceeded) as caught:
        publisher.publish_nowait(b"x" * 190_000)
    assert caught.value.limit == "frame_bytes_max"
    await publisher.publish(b"x" * 180_000)

    assert await values(subscription, 1) == [b"x" * 180_000]


async def test_batches_never_outgrow_a_frame(make_node: MakeNode) -> None:
    """Many values or headers in one turn, of very uneven sizes, are spread over frames that every peer accepts."""
    limits = {"frame_bytes_max": 200_000}
    a, b = await make_node("a", **limits), await make_node("b", **limits)
    publisher, subscription = await connect(a, b, "uneven")
    uneven = [n if n < 5000 else "x" * 20_000 for n in range(5100)]

    await publisher.publish_many(uneven)
    for _ in range(200):
        publisher.publish_nowait(0, headers={"x": "y" * 2_000})

    assert await values(subscription, len(uneven) + 200) == uneven + [0] * 200
