"""Groups, transactions, tables and bindings from threads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from tests.sync.support import TIMEOUT_S
from tests.waiting import wait_until
from zfabric import Change, Config, LocalProtocolError
from zfabric.store import Store
from zfabric.sync import Node, Transaction
from zfabric.sync.loop import LoopThread

ROOT = Path(__file__).parents[2]
FAST = Config(mdns=False, heartbeat_interval_s=0.2, peer_timeout_s=1.0)
COUNT = 60

TAKES_FIVE = """
import os, sys
from tests.sync.test_durable import FAST
from zfabric.sync import Node
node = Node("first", fabric=sys.argv[1], config=FAST)
node.open()
todo = node.subscribe("t", group="g", start="earliest")
print([todo.receive(timeout=30).value for _ in range(5)])
with Node("eye", fabric=sys.argv[1], config=FAST) as eye:
    eye.wait_for_peers(2, 20)  # time for whatever it commits
sys.stdout.flush()
os._exit(0)
"""


@pytest.fixture
def fabric() -> Iterator[str]:
    """A fabric with a store in memory."""
    import uuid

    name = f"sync-{uuid.uuid4().hex[:8]}"
    thread = LoopThread("store")

    async def make() -> Store:
        store = Store("memory:", fabric=name, config=FAST)
        await store.open()
        return store

    store = thread.run(make)
    yield name
    thread.finish(store.close, TIMEOUT_S)


@pytest.fixture
def node(fabric: str) -> Iterator[Node]:
    """A node of it."""
    with Node("reader", fabric=fabric, config=FAST) as opened:
        yield opened


def publish(node: Node, topic: str = "t", count: int = COUNT) -> None:
    """Numbers, each a batch of its own."""
    publisher = node.publisher(topic, durable=True, confirm="stored")
    publisher.wait_for(stores=1, timeout=TIMEOUT_S)
    for number in range(count):
        publisher.publish(number, key=number % 3)


def test_what_a_killed_reader_had_not_taken_comes_to_others(fabric: str, node: Node) -> None:
    """Only what its thread had taken before it asked for more counts as done."""
    publish(node)
    taken = subprocess.run(
        [sys.executable, "-c", TAKES_FIVE, fabric], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    seen = set(msgspec.json.decode(taken.stdout, type=list[int]))
    with node.subscribe("t", group="g", start="earliest") as rest:
        while seen < set(range(COUNT)):
            seen.add(rest.receive(timeout=TIMEOUT_S).value)


def give_up(transaction: Transaction) -> None:
    """A block that raises."""
    with transaction:
        transaction.publish("out", "never")
        raise ZeroDivisionError


def test_a_transaction_covers_what_was_taken(node: Node) -> None:
    """Message by message, out of one batch: each output once, also after a block that raised."""
    publisher = node.publisher("t", durable=True, confirm="stored")
    publisher.wait_for(stores=1, timeout=TIMEOUT_S)
    publisher.publish_many(range(20))
    failed = False
    for _ in range(2):  # the second one goes on where the first one was
        with node.subscribe("t", group="g", start="earliest", delivery="exactly-once") as todo:
            for _ in range(10):
                message = todo.receive(timeout=TIMEOUT_S)
                if message.value == 5 and not failed:
                    failed = True
                    with pytest.raises(ZeroDivisionError):
                        give_up(todo.transaction())
                    message = todo.receive(timeout=TIMEOUT_S)
                with todo.transaction() as transaction:
                    transaction.publish("out", message.value)
    with node.subscribe("out", start="earliest") as out:
        assert [out.receive(timeout=TIMEOUT_S).value for _ in range(20)] == list(range(20))
    with node.subscribe("t") as plain, pytest.raises(LocalProtocolError, match="transactions need"):
        plain.transaction()


def test_a_table(fabric: str, node: Node) -> None:
    """It has what the store has, follows, and tells of changes."""
    with ExitStack() as stack:
        admin = stack.enter_context(Node("admin", fabric=fabric, config=FAST))
        config = admin.publisher("config", durable=True, confirm="stored")
        config.wait_for(stores=1, timeout=TIMEOUT_S)
        config.publish(1, key="a")
        config.publish(2, key="b")
        with node.table("config", timeout=TIMEOUT_S) as table:
            assert (dict(table), table["a"], len(table), table.topic) == ({"a": 1, "b": 2}, 1, 2, "config")
            watch = table.watch()
            config.publish(None, key="a")
            assert watch.receive(timeout=TIMEOUT_S) == Change("a", None)
            snapshot = table.snapshot()
        assert list(watch) == []
        with node.table("config", snapshot=snapshot, timeout=TIMEOUT_S) as again:
            assert dict(again) == {"b": 2}


def test_a_binding(node: Node) -> None:
    """What is published becomes jobs, of one queue or the other."""
    with node.bind("shop.#", "audit", selector="total > 10", otherwise="small") as binding:
        assert (binding.pattern, binding.queue) == ("shop.#", "audit")
        publisher = node.publisher("shop.orders", delivery="at-least-once")
        binding.wait_for(1, TIMEOUT_S)
        for total in (5, 50):
            publisher.publish(total, headers={"total": total})
        with node.puller("audit") as audit, node.puller("small") as small:
            assert audit.receive(timeout=TIMEOUT_S).value == 50
            assert small.receive(timeout=TIMEOUT_S).value == 5
        wait_until(lambda: (binding.routed, binding.unrouted) == (1, 1))


def test_schedules(node: Node) -> None:
    """They are declared, seen and removed."""
    node.schedule("beat", queue="beats", value=[1], every=1)
    with node.puller("beats") as beats:
        first = beats.receive(TIMEOUT_S)
    (seen,) = node.schedules()

    assert (first.value, (first.headers or {})["schedule"]) == ([1], "beat")
    assert (seen.name, seen.queue, seen.every) == ("beat", "beats", 1)
    assert node.unschedule("beat")
    assert node.schedules() == []


def test_groups_are_operated(fabric: str, node: Node) -> None:
    """List, get, lag, seek, reset, pause and resume, from a thread; and what the store holds."""
    orders = node.publisher("orders", durable=True, confirm="stored")
    orders.wait_for(stores=1, timeout=TIMEOUT_S)
    orders.publish_many(range(10))
    with node.subscribe("orders", group="billing", start="earliest") as bills:
        assert [bills.receive(timeout=TIMEOUT_S).value for _ in range(10)] == list(range(10))
        assert node.groups.pause("billing").paused
        assert node.groups.seek("billing", 8).lag == 2
        assert node.groups.lag("billing") == 2
        assert [group.name for group in node.groups.list()] == ["billing"]
        assert not node.groups.resume("billing").paused
        assert [bills.receive(timeout=TIMEOUT_S).value for _ in range(2)] == [8, 9]
        assert node.groups.reset("billing").topics["orders"].lag == 10
        assert bills.receive(timeout=TIMEOUT_S).value == 0
    assert node.groups.get("billing").pattern == "orders"
    node.groups.forget("billing")
    assert node.groups.list() == ()
    assert [(stored.topic, stored.next) for stored in node.stores.topics()] == [("orders", 10)]
    assert [(stored.first, stored.next) for stored in node.stores.purge("orders")] == [(10, 10)]


def test_a_durable_queue(node: Node) -> None:
    """Jobs are stored when `push` returns, and done for good when `ack` does; a rejected one is a dead letter."""
    jobs = node.pusher("jobs", durable=True)
    jobs.wait_for(stores=1, timeout=TIMEOUT_S)
    jobs.push("first", priority=9)
    jobs.push_many(range(10))
    jobs.flush()
    with node.puller("jobs", ack="manual") as todo:
        got = [todo.receive(timeout=TIMEOUT_S) for _ in range(11)]
        todo.reject(got[0], "broken")
        for job in got[1:]:
            todo.ack(job)
    with node.puller("jobs") as todo, pytest.raises(TimeoutError):
        todo.receive(timeout=0.3)
    with node.puller("$dead.jobs") as letters:
        letter = letters.receive(timeout=TIMEOUT_S)

    assert [job.value for job in got] == ["first", *range(10)]
    assert (letter.value, (letter.headers or {})["dead.reason"]) == ("first", "broken")
