"""Rights at stores, over ZeroMQ: who may be one, what others may do there, and one that lies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.hostile.conftest import next_event
from tests.security.town import QUICK, Opened, Town
from tests.waiting import wait_until_async
from zfabric import AccessDenied, GroupRefused, Node, NotAuthorized, NotStored, ProtocolError
from zfabric.node.rights import Rights
from zfabric.node.storeclient import StoreClient
from zfabric.store import Store
from zfabric.wire import store_records
from zfabric.wire.batch import BatchWriter
from zfabric.wire.group_records import Delivered
from zfabric.wire.store_records import NamedPosition

ROLES = """
[orders-store]
store = ["orders.#"]
[clerk]
publish = ["orders.#"]
subscribe = ["orders.#"]
[planner]
push = ["orders.#"]
[outsider]
publish = ["news"]
subscribe = ["news"]
"""


@pytest.fixture(autouse=True)
def roles(town: Town) -> None:
    """What these tests need beside the built-in roles."""
    (town.root / "mayor" / "roles.toml").write_text(ROLES)


async def open_store(town: Town, *roles: str, name: str = "vault", topics: tuple[str, ...] = ("orders.#",)) -> Store:
    """A store with an identity of those roles."""
    town.invite(name, *roles)
    node = town.fabric.node(name, key=town.root / name, config=QUICK)
    store = Store("memory:", node=node, config=QUICK, topics=topics)
    await store.open()
    return store


def unchecked(node: Node) -> Node:
    """A node that asks for what it has no right to."""
    assert node._driver is not None
    mine = node._driver.rights
    node._driver.rights = Rights(None)
    node._driver.rights.signs = mine.signs  # type: ignore[method-assign] # a stub
    return node


async def test_a_store_keeps_what_it_has_the_right_to(town: Town, opened: Opened) -> None:
    """`store` is enough: it hears those topics, and only those, confirms them and serves them."""
    with pytest.raises(NotAuthorized, match="store"):
        await open_store(town, "member", name="thief")
    store = await open_store(town, "orders-store")
    try:
        clerk = await opened("clara", "clerk")
        outgoing = clerk.publisher("orders.a", durable=True)
        await outgoing.wait_for(stores=1, timeout=30)
        await outgoing.publish_many(range(3))
        await outgoing.flush()
        subscription = clerk.subscribe("orders.a", start="earliest")
        assert [(await subscription.receive(10)).value for _ in range(3)] == [0, 1, 2]
        assert store.node.statistics().denials == 0
    finally:
        await store.close()


async def test_a_member_cannot_make_itself_a_store(town: Town, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Publishers take no confirmation from it, readers no history; both sides are told."""
    monkeypatch.setattr(Rights, "check_stores", lambda *_: None)
    thief = await open_store(town, "member", name="thief", topics=("#",))
    try:
        clerk = await opened("clara", "clerk")
        events, at_thief = clerk.events(), thief.node.events()
        outgoing = clerk.publisher("orders.a", durable=True)
        denied = [await next_event(events, AccessDenied) for _ in range(2)]
        told = await next_event(at_thief, AccessDenied)
        assert {(event.action, event.name, event.here) for event in denied} == {
            ("store", "#", True),
            ("store", "orders.a", True),
        }
        assert (told.action, told.here) == ("store", False)
        with pytest.raises(NotStored):
            await outgoing.publish(1)
        assert (outgoing.stores, clerk.peers[0].stores) == (0, ())
    finally:
        await thief.close()


async def test_a_store_serves_nobody_without_the_right_to_subscribe(town: Town, opened: Opened) -> None:
    """Neither readings nor lists of topics nor membership in a group, whatever the other node thinks of itself."""
    store = await open_store(town, "orders-store")
    try:
        clerk, spy = await opened("clara", "clerk"), unchecked(await opened("spy", "outsider"))
        outgoing = clerk.publisher("orders.a", durable=True)
        await outgoing.wait_for(stores=1, timeout=30)
        await outgoing.publish("secret")
        await outgoing.flush()
        events = store.node.events()
        history = spy.subscribe("orders.a", start="earliest")
        member = spy.subscribe("orders.#", group="spies", start="earliest")
        for _ in range(2):
            assert (await next_event(events, AccessDenied)).action == "subscribe"
        core = spy._opened().core
        await wait_until_async(core.stores.all)
        core.stores.read(core.stores.all()[0], history.history._joint("orders.a"), "orders.a", "earliest", credit=9999)  # type: ignore[union-attr]
        spy._opened().schedule_pump()
        await wait_until_async(lambda: store.node.statistics().denials >= 3)
        assert (history.pending, member.pending) == (0, 0)
        with pytest.raises(TimeoutError):
            await history.receive(0.2)
    finally:
        await store.close()


async def test_groups_and_topics_are_there_for_those_who_may_read_them(town: Town, opened: Opened) -> None:
    """For all others they are not there; removing takes more."""
    store = await open_store(town, "orders-store")
    try:
        clerk, spy = await opened("clara", "clerk"), await opened("spy", "outsider")
        await clerk.subscribe("orders.#", group="billing").wait_for(timeout=30)
        assert [group.name for group in await clerk.groups.list()] == ["billing"]
        assert await spy.groups.list() == ()
        with pytest.raises(GroupRefused, match="there are: none"):
            await spy.groups.pause("billing")
        known = spy._opened().core.stores.all()[0]
        with pytest.raises(GroupRefused, match="may not subscribe"):
            await StoreClient(spy._opened()).groups(known, "pause", "billing")
        assert not (await clerk.groups.get("billing")).paused
        outgoing = clerk.publisher("orders.a", durable=True, confirm="stored")
        await outgoing.wait_for(stores=1, timeout=30)
        await outgoing.publish(1)
        assert [stored.next for stored in await clerk.stores.topics()] == [1]
        assert await spy.stores.topics() == ()
        with pytest.raises(NotStored, match="no store in sight"):
            await spy.stores.purge("orders.a")
        with pytest.raises(NotStored, match="right to be a store"):
            await clerk.stores.purge("orders.a")
        assert [stored.first for stored in await clerk.stores.topics()] == [0]
    finally:
        await store.close()


async def test_writes_need_the_right_to_publish(town: Town, opened: Opened) -> None:
    """A topic of others, a batch in another identity's name, and the state of groups: refused, nothing is stored."""
    store = await open_store(town, "orders-store")
    try:
        clerk, spy = await opened("clara", "clerk"), await opened("spy", "outsider")

        def batch(node: Node, producer: Node) -> tuple[StoreClient, list[bytes]]:
            writer = BatchWriter("orders.a", bytes.fromhex(producer.id), 1)
            writer.buffer += b"\x01"
            writer.count = 1
            return StoreClient(node._opened()), [bytes(frame) for frame in writer.seal(0, 1)]

        async def write(node: Node, producer: Node, **options: Any) -> list[int | None]:
            client, frames = batch(node, producer)
            known = await client.wait_for(lambda: next(iter(node._opened().core.stores.all()), None))
            return await client.write(known, [frames], **options)

        with pytest.raises(NotStored, match="may not publish"):
            await write(spy, spy)
        with pytest.raises(NotStored, match="another identity's"):
            await write(clerk, spy)
        with pytest.raises(NotStored, match="belong to the store"):
            await write(clerk, clerk, positions=[NamedPosition("group/billing", b"", 2**60)])
        assert list(store.log.streams()) == []
        assert await write(clerk, clerk) == [0]
    finally:
        await store.close()


def huge(reading: int, offset: int, frames: list[bytes], _: Any) -> store_records.Stored:
    """Says that more messages are dropped than there are."""
    return store_records.Stored(reading, offset, frames, [(0, 2**60)])


def renamed(reading: int, offset: int, frames: list[bytes], dropped: Any) -> store_records.Stored:
    """Reads out another topic."""
    return store_records.Stored(
        reading, offset, [frames[0].replace(b"orders.a\0", b"orders.b\0"), *frames[1:]], dropped
    )


def twice(
    share: int, epoch: int, stream: str, offset: int, _: Any, partitions: bytes, frames: list[bytes]
) -> Delivered:
    """Delivers one message as two."""
    return Delivered(share, epoch, stream, offset, [0, 0], partitions[:1] * 2, frames)


def elsewhere(share: int, epoch: int, stream: str, *rest: Any) -> Delivered:
    """Delivers a topic that the group does not read."""
    return Delivered(share, epoch, "orders.b", *rest)


@pytest.mark.parametrize(
    ("what", "lie"),
    [
        ("zfabric.store.readings.Stored", huge),
        ("zfabric.store.readings.Stored", renamed),
        ("zfabric.store.group.Delivered", twice),
        ("zfabric.store.group.Delivered", elsewhere),
    ],
)
async def test_a_store_that_lies_is_reported(
    town: Town, opened: Opened, monkeypatch: pytest.MonkeyPatch, what: str, lie: Callable[..., Any]
) -> None:
    """Ranges that are not there, topics that nobody asked for, places that repeat: malformed, and not delivered."""
    monkeypatch.setattr(what, lie)
    store = await open_store(town, "orders-store")
    try:
        clerk = await opened("clara", "clerk")
        events = clerk.events()
        outgoing = clerk.publisher("orders.a", durable=True)
        await outgoing.wait_for(stores=1, timeout=30)
        await outgoing.publish("stored")
        await outgoing.flush()
        options: dict[str, Any] = {"group": "billing"} if "group" in what else {}
        subscription = clerk.subscribe("orders.a", start="earliest", **options)
        failure = await next_event(events, ProtocolError)
        assert ("vault" in failure.address, subscription.pending) == (True, 0)
    finally:
        await store.close()


async def test_schedules_are_for_those_who_may_push(town: Town, opened: Opened) -> None:
    """Declaring, replacing, removing and seeing them: all need the right to push to the queue."""
    store = await open_store(town, "orders-store")
    try:
        planner, outsider = await opened("paula", "planner"), await opened("otto", "outsider")
        await planner.schedule("nightly", queue="orders.reports", every=1000)
        with pytest.raises(NotAuthorized, match="push"):
            await outsider.schedule("mine", queue="orders.reports", every=1000)
        unchecked(outsider)
        for name, queue in (("mine", "orders.reports"), ("nightly", "orders.reports")):
            with pytest.raises(NotStored, match="may not push"):
                await outsider.schedule(name, queue=queue, every=5)
        with pytest.raises(NotStored, match="may not push"):
            await StoreClient(outsider._opened()).write(
                outsider._opened().core.stores.all()[0], positions=[NamedPosition("$schedule/nightly", None)]
            )
        assert await outsider.schedules() == []
        (seen,) = await planner.schedules()
        assert (seen.name, seen.every) == ("nightly", 1000)
    finally:
        await store.close()
