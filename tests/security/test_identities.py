"""Fabrics with identities, over ZeroMQ: who gets in, who may do what, and what changes while nodes run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.conftest import next_event
from tests.security.town import SEEDS_ONLY, Opened, Town, exchange
from tests.waiting import wait_until_async
from zfabric import (
    AccessDenied,
    AuthenticationFailed,
    InvalidKey,
    Node,
    NoResponders,
    NotAuthorized,
    PeerLeft,
    ProtocolError,
    RequestTimeout,
)
from zfabric.security.identities import Identities, admit, create, revoke, rotate
from zfabric.wire.bundle import address, tagged


async def test_identities_talk(town: Town, opened: Opened) -> None:
    """They are found by the registry, or by a seed that names whose key must answer there."""
    town.invite("ada")
    town.invite("bob")
    mayor, ada = await town.open("mayor"), await town.open("ada")
    await exchange(mayor, ada)
    await exchange(ada, mayor)
    address = next(e for e in mayor.endpoints if e.startswith("tcp://127")).partition("#")[0]
    bob = await town.open("bob", config=SEEDS_ONLY, seeds=[f"{address}#mayor"])
    await exchange(mayor, bob)
    await exchange(bob, ada)
    for seed in (address, f"{address}#nobody"):
        with pytest.raises(InvalidKey, match="#name"):
            await town.open("bob", seeds=[seed])
    deceived = await town.open("ada", config=SEEDS_ONLY, seeds=[f"{address}#bob"])
    await next_event(deceived.events(), AuthenticationFailed)
    assert deceived.peers == ()


async def test_revoked_identities_lose_their_links(town: Town, opened: Opened) -> None:
    """Taking somebody out ends its live links within Config.identities_poll_s, and it cannot come back."""
    town.invite("ada")
    eve = await opened("eve")
    mayor, ada = await town.open("mayor"), await town.open("ada")
    async with eve.subscribe("plant.#") as spying, ada.subscribe("plant.#") as reading:
        publisher = mayor.publisher("plant.a.temp", delivery="at-least-once")
        await publisher.wait_for(2, timeout=30)
        await publisher.publish(0)
        assert (await spying.receive(timeout=30)).value == 0
        events, at_eve = mayor.events(), eve.events()

        revoke(town.root / "mayor", "eve")

        left: PeerLeft = await next_event(events, PeerLeft)
        assert (left.peer.name, left.reason) == ("eve", "revoked")
        await next_event(events, AuthenticationFailed)
        await next_event(at_eve, AuthenticationFailed, lambda e: ".out" in e.peer and "does not trust" in e.reason)
        for number in range(1, 50):
            await publisher.publish(number)
        assert [(await reading.receive(timeout=30)).value for _ in range(50)] == list(range(50))
        assert spying.pending == 0
    assert [peer.name for peer in mayor.peers] == ["ada"]


async def test_no_identity_speaks_for_another(town: Town, opened: Opened) -> None:
    """Batches and control frames with the node id of somebody else's node are dropped and reported."""
    mayor, eve = await opened("mayor"), await opened("eve")
    ada = await opened("ada")
    async with mayor.subscribe("#") as subscription:
        publishers = [node.publisher(f"from.{node.name}") for node in (eve, ada)]
        for publisher in publishers:
            await publisher.wait_for(1, timeout=30)
        events = mayor.events()
        eves, adas = eve._driver, ada._driver
        assert eves is not None
        assert adas is not None
        outbox = next(iter(eves.core.interests.outboxes.values()))
        forged = outbox.writer.__class__("from.ada", adas.core.me, outbox.epoch, with_crc=False)
        forged.buffer += b"\xa4evil"
        forged.count += 1
        eves._transport.publish(forged.seal(0, 1))
        failure: AuthenticationFailed = await next_event(events, AuthenticationFailed)
        assert ("'eve' publishes" in failure.reason, "ada" in failure.peer) == (True, True)

        eves.core._effects._me = adas.core.me
        await publishers[0].close()
        failure = await next_event(events, AuthenticationFailed, lambda e: "speaks" in e.reason)
        assert ("'eve' speaks" in failure.reason, "ada" in failure.peer) == (True, True)
        eves.core._effects._me = eves.core.me

        await publishers[1].publish("mine")
        assert (await subscription.receive(timeout=30)).value == "mine"
        assert subscription.pending == 0


async def test_roles_bind_the_asker_at_once(opened: Opened) -> None:
    """What an identity may not do raises where it is asked for, and names identity, action and topic."""
    sensor, viewer = await opened("thermo", "sensor"), await opened("screen", "viewer")
    await exchange(sensor, viewer)
    for node, call, action in (
        (sensor, lambda: sensor.publisher("plant.a.command"), "publish"),
        (sensor, lambda: sensor.subscribe("plant.#"), "subscribe"),
        (viewer, lambda: viewer.publisher("plant.a.temp"), "publish"),
        (viewer, lambda: viewer.subscribe("log.app"), "subscribe"),
        (viewer, lambda: viewer.subscribe("#"), "subscribe"),
    ):
        with pytest.raises(NotAuthorized) as caught:
            call()
        assert (caught.value.identity, caught.value.action) == (node.name, action)
    viewer.subscribe("plant.a.temp")
    viewer.subscribe("plant.*.temp")


@pytest.mark.parametrize(
    ("who", "roles", "action"), [("reads", ("sensor",), "subscribe"), ("writes", ("viewer",), "publish")]
)
async def test_roles_are_enforced_by_the_other_side(
    town: Town, opened: Opened, who: str, roles: tuple[str, ...], action: str
) -> None:
    """Whoever skips its own check gets nothing and reaches nobody; both sides are told, and it is counted."""
    mayor, cheat = await opened("mayor"), await opened(who, *roles)
    assert cheat._driver is not None
    cheat._driver.rights.identities = None
    at_mayor, at_cheat = mayor.events(), cheat.events()
    reader, writer = (cheat, mayor) if action == "subscribe" else (mayor, cheat)
    async with reader.subscribe("plant.#") as subscription:
        publisher = writer.publisher("plant.secret")
        for events, here in ((at_mayor, True), (at_cheat, False)):
            denied: AccessDenied = await next_event(events, AccessDenied)
            assert (denied.action, denied.here) == (action, here)
            assert denied.peer.name == (who if here else "mayor")
        for number in range(100):
            await publisher.publish(number)
        await exchange(mayor, await opened("ada"), "log.app", "log.#")
        assert subscription.pending == 0
        assert mayor.statistics().denials > 0


async def test_queues_and_services_have_rights(opened: Opened) -> None:
    """Push, pull, serve and request: allowed ones work, others raise at the asker."""
    boss, worker = await opened("boss", "boss"), await opened("worker", "worker")
    async with worker.puller("jobs.paint") as puller:
        await boss.pusher("jobs.paint").push("red")
        job = await puller.receive(timeout=30)
        assert job.value == "red"
        await job.ack()

    @worker.service("math.add")
    async def add(one: int, other: int) -> int:
        return one + other

    await boss.wait_for_service("math.add", timeout=10)
    assert await boss.request("math.add", 1, 2, timeout=10) == 3
    for call in (
        lambda: boss.puller("jobs.paint"),
        lambda: worker.pusher("jobs.paint"),
        lambda: boss.pusher("orders"),
        lambda: boss.service("math.add"),
    ):
        with pytest.raises(NotAuthorized):
            call()
    with pytest.raises(NotAuthorized, match=r"may not request 'math\.add'"):
        await worker.request("math.add", 1, 2)


async def test_queues_and_services_deny_others(opened: Opened) -> None:
    """Offers, pulls and requests of who skips its own check are not heard; both sides are told."""
    boss, worker = await opened("boss", "boss"), await opened("worker", "worker")
    cheat = await opened("cheat", "viewer")
    assert cheat._driver is not None
    cheat._driver.rights.identities = None
    asked = []

    @worker.service("math.ask")
    async def ask(what: str) -> str:
        asked.append(what)
        return what

    @cheat.service("math.lie")
    async def lie() -> str:
        return "lie"

    at_boss, at_worker, at_cheat = (node.events() for node in (boss, worker, cheat))
    cheat.puller("jobs.paint")
    cheat.pusher("jobs.paint")
    pusher, puller = boss.pusher("jobs.paint"), worker.puller("jobs.paint")
    await cheat.wait_for_service("math.ask", timeout=10)
    with pytest.raises(RequestTimeout):
        await cheat.request("math.ask", "forbidden", timeout=0.5)

    for events, actions in ((at_boss, {"serve", "pull"}), (at_worker, {"push", "request"})):
        seen: set[str] = set()
        while seen < actions:
            seen.add((await next_event(events, AccessDenied)).action)
    assert not (await next_event(at_cheat, AccessDenied)).here
    await pusher.wait_for(1, timeout=30)
    assert (pusher.workers, puller.pushers) == (1, 1)
    assert await boss.request("math.ask", "allowed", timeout=10) == "allowed"
    assert asked == ["allowed"]
    with pytest.raises(NoResponders):
        await boss.request("math.lie", timeout=0.5)


async def test_libzmq_sends_no_more_than_is_allowed(town: Town, opened: Opened) -> None:
    """The publisher's own socket filters: a feed that subscribes to everything gets what its identity may see."""
    mayor, clerk = await opened("mayor"), await opened("clerk", "clerk")
    async with clerk.subscribe("log.app") as subscription:
        topics = ("log.app", "log.apple", "log.app.debug", "plant.a")
        publishers = [mayor.publisher(topic) for topic in topics]
        async with (await opened("ada")).subscribe("#") as all_of_it:
            for publisher in publishers:
                await publisher.wait_for(1, timeout=30)
            driver = clerk._driver
            assert driver is not None
            seen: list[bytes] = []
            take = driver.on_batch
            driver.on_batch = lambda frames, user="": (seen.append(bytes(frames[0])), take(frames, user))[1]  # type: ignore[method-assign,func-returns-value]
            driver._transport.add_filter(b"")
            driver._transport.add_filter(b"log.app")
            await subscription.wait_for(1, timeout=30)
            for publisher in publishers:
                await publisher.publish(publisher.topic)
            assert {(await all_of_it.receive(timeout=30)).value for _ in topics} == set(topics)
            assert (await subscription.receive(timeout=30)).value == "log.app"
            assert [frame.partition(b"\0")[0] for frame in seen] == [b"log.app"]


async def test_bundles_go_to_their_own_identity_only(town: Town, opened: Opened) -> None:
    """What travels together is what its receiver may see; who subscribes to another node's bundles gets none."""
    mayor, ada, clerk = await opened("mayor"), await opened("ada", "viewer"), await opened("clerk", "clerk")
    topics = [f"plant.t{number}" for number in range(20)]
    publishers = [mayor.publisher(topic) for topic in (*topics, "log.app")]
    async with ada.subscribe("plant.*") as at_ada, clerk.subscribe("log.app") as at_clerk:
        for publisher in publishers:
            await publisher.wait_for(1, timeout=30)
        driver = clerk._driver
        assert driver is not None
        seen: list[bytes] = []
        take = driver.on_batch
        driver.on_batch = lambda frames, user="": (seen.append(bytes(frames[0])), take(frames, user))[1]  # type: ignore[method-assign,func-returns-value]
        for prefix in (b"\xfe", address(bytes.fromhex(ada.id)), tagged(address(bytes.fromhex(ada.id)), "ada")):
            driver._transport.add_filter(prefix)
        clerk.subscribe("log.app")
        await wait_until_async(lambda: publishers[-1].subscribers == 2)

        for publisher in publishers:
            publisher.publish_nowait(publisher.topic)

        assert {(await at_ada.receive(timeout=30)).value for _ in topics} == set(topics)
        assert (await at_clerk.receive(timeout=30)).value == "log.app"
        assert [frame.partition(b"\0")[0] for frame in seen] == [b"log.app"]
        assert mayor.statistics().batches_sent == 2


async def test_bundles_hold_only_what_their_publisher_may(town: Town, opened: Opened) -> None:
    """Topics of a bundle that its sender has no right to publish are dropped and told; the others arrive."""
    mayor, sensor = await opened("mayor"), await opened("sensor", "sensor")
    names = [f"plant.a{number}.temp" for number in range(10)]
    async with mayor.subscribe("plant.*.temp") as subscription:
        publishers = [sensor.publisher(name) for name in names]
        for publisher in publishers:
            await publisher.wait_for(1, timeout=30)
        forged = sensor._driver.core.interests.outboxes[names[0]]  # type: ignore[union-attr]
        forged.topic = "plant.a0.secret"

        for publisher in publishers:
            publisher.publish_nowait(1)

        assert {(await subscription.receive(timeout=30)).topic for _ in names[1:]} == set(names[1:])
        await wait_until_async(lambda: mayor.statistics().denials == 1)
        forged.topic = names[0]


async def test_rights_change_while_nodes_run(town: Town, opened: Opened) -> None:
    """A role that is taken away, or given, counts for live links after a moment."""
    mayor, ada = await opened("mayor"), await opened("ada", "viewer")
    subscription = ada.subscribe("plant.#")
    publisher = mayor.publisher("plant.a", delivery="at-least-once")
    await publisher.wait_for(1, timeout=30)
    trusted = town.root / "mayor" / "trusted" / "ada.toml"
    before, events = trusted.read_text(), mayor.events()

    trusted.write_text(before.replace("viewer", "sensor"))
    await next_event(events, AccessDenied, lambda event: event.action == "subscribe")
    await wait_until_async(lambda: publisher.subscribers == 0)
    await publisher.publish("unseen")

    trusted.write_text(before)
    await publisher.wait_for(1, timeout=30)
    await publisher.publish("seen")
    assert (await subscription.receive(timeout=30)).value == "seen"


async def test_keys_rotate(town: Town, opened: Opened) -> None:
    """A new key works beside the old one until the old one is given up."""
    town.invite("ada")
    mayor, old = await town.open("mayor"), await town.open("ada")
    await exchange(mayor, old)

    rotate(town.root / "ada", town.fabric.name)
    shutil.copy(town.root / "ada/trusted/ada.toml", town.root / "mayor/trusted/ada.toml")
    new = await town.open("ada")
    await exchange(mayor, new)
    rotate(town.root / "ada", town.fabric.name, finish=True)
    shutil.copy(town.root / "ada/trusted/ada.toml", town.root / "mayor/trusted/ada.toml")
    await wait_until_async(lambda: mayor.statistics().authentication_failures)

    await exchange(mayor, new)


@pytest.mark.parametrize("delivery", ["at-most-once", "at-least-once"])
async def test_a_publisher_hears_that_its_right_is_gone(town: Town, opened: Opened, delivery: str) -> None:
    """Where its own directory says so, publishing raises, until the right is back; others go on."""
    roles, clerk, mayor = town.root / "clerk" / "roles.toml", await opened("clerk", "clerk"), await opened("mayor")
    async with mayor.subscribe("orders.b") as subscription:
        orders, other = (
            clerk.publisher("orders.a", delivery=delivery),
            clerk.publisher("orders.b", delivery="at-least-once"),
        )
        mayor.subscribe("orders.a")
        for publisher in (orders, other):
            await publisher.wait_for(1, timeout=30)
        roles.write_text('[clerk]\npublish = ["orders.b"]\n')
        await wait_until_async(lambda: orders._outbox.denied)
        with pytest.raises(NotAuthorized, match=r"publish 'orders\.a'"):
            await orders.publish("x")
        with pytest.raises(NotAuthorized):
            await orders.publish_many(["x", "y"])
        await other.publish("y")
        assert (await subscription.receive(timeout=30)).value == "y"

        roles.write_text('[clerk]\npublish = ["#"]\n')
        await wait_until_async(lambda: not orders._outbox.denied)
        await orders.publish_many(["x", "y"])


async def test_a_broken_directory_changes_nothing(town: Town, opened: Opened) -> None:
    """Nodes go on with what they read before; a node that starts is told."""
    mayor, ada = await opened("mayor"), await opened("ada")
    await exchange(mayor, ada)
    (town.root / "mayor" / "roles.toml").write_text("[")
    await exchange(mayor, ada)
    with pytest.raises(InvalidKey, match=r"roles\.toml"):
        await town.open("mayor")
    assert [event async for event in ended(mayor) if isinstance(event, ProtocolError)] == []


@pytest.mark.parametrize("key", ["short", "\xe9" * 40, "#" * 40, "rq:rM>}U?@ns4E1%L7kR.o@n%FcmmsL/@{H8]yf7"])
def test_what_is_no_public_key_is_refused(tmp_path: Path, key: str) -> None:
    """Forty characters of Z85 that are too large a number are no key, either."""
    create(tmp_path, "plant", "ada")
    (tmp_path / "trusted" / "bob.toml").write_text(f'public = ["{key}"]\n', "utf-8")
    with pytest.raises(InvalidKey, match="40 characters of Z85"):
        Identities(tmp_path, "plant")
    with pytest.raises(InvalidKey, match="40 characters of Z85"):
        admit(tmp_path, "carol", key, key, ("member",))


def ended(node: Node) -> Any:
    """What has happened; nothing more will be told."""
    events = node.events()
    events.close()
    return events
