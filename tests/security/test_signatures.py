"""Signed batches: what a store, a relay, or whoever edits a file has changed is not delivered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.hostile.conftest import next_event
from tests.security.town import QUICK, Opened, Town
from tests.waiting import wait_until_async
from zfabric import Config, FabricError, Gap, LocalProtocolError, Node, NotStored, SignatureRefused, new_key
from zfabric.security import signing
from zfabric.security.identities import Identities, create, revoke, rotate
from zfabric.security.keys import FabricKey
from zfabric.store import Store
from zfabric.testing import RealFabric
from zfabric.wire import store_records
from zfabric.wire.batch import Batch, BatchWriter, Buffer, parse_batch
from zfabric.wire.group_records import Delivered
from zfabric.wire.signatures import BadSignature

pytest.importorskip("nacl")

PRICE, FORGED = b"pay 100", b"pay 999"


def parse(frames: list[Buffer]) -> Batch:
    """A batch, as nodes parse it."""
    return parse_batch(frames, messages_max=1000, buffers_max=8, topic_bytes_max=255)


def written(signer: FabricKey | Identities, producer: bytes, topic: str = "orders", **options: Any) -> list[Buffer]:
    """A signed batch with meta and a buffer."""
    writer = BatchWriter(topic, producer, 3, sign=signer.signs())
    writer.buffer += msgspec.msgpack.encode(PRICE)
    writer.annotate("key", {"unit": "EUR"}, None)
    writer.buffers.append(b"beside")
    writer.count += 1
    return writer.seal(7, 5, **options)


def one_key(_: Path) -> tuple[FabricKey, bytes]:
    """A fabric's key, and some node's id."""
    return FabricKey.parse(new_key("plant")), bytes(16)


def identity(path: Path) -> tuple[Identities, bytes]:
    """An identity, and the id of a node of its own."""
    create(path / "ada", "plant", "ada")
    ada = Identities(path / "ada", "plant")
    return ada, ada.node_id(bytes(8))


@pytest.mark.parametrize("make", [one_key, identity])
def test_no_bit_of_a_signed_batch_can_change(
    make: Callable[[Path], tuple[FabricKey | Identities, bytes]], tmp_path: Path
) -> None:
    """Whatever is altered, left out or added: it is no batch, unsigned, or refused."""
    signer, producer = make(tmp_path)
    frames = written(signer, producer)
    assert signer.signer_of(parse(frames)) == signer.name
    for number, frame in enumerate(frames):
        for position in range(len(frame)):
            changed = list(frames)
            changed[number] = bytearray(frame)
            changed[number][position] ^= 1  # type: ignore[index] # a bytearray
            try:
                batch = parse(changed)
            except FabricError:
                continue
            if batch.signature:
                with pytest.raises(BadSignature):
                    signer.signer_of(batch)
    for other in (frames[:1], [*frames, b"more"], [frames[0], b"besid", b"e"]):
        with pytest.raises(BadSignature):
            signer.signer_of(parse(other))


def test_a_signature_is_worth_what_its_maker_is(tmp_path: Path) -> None:
    """Another identity's node, a topic without the right, an unknown key, one that was revoked: refused."""
    for name in ("ada", "eve"):
        create(tmp_path / name, "plant", name)
    files = {name: tmp_path / name / "trusted" / f"{name}.toml" for name in ("ada", "eve")}
    ada, eve = (Identities(tmp_path / name, "plant") for name in ("ada", "eve"))
    frames = written(eve, eve.node_id(bytes(8)))
    with pytest.raises(BadSignature, match="nobody is trusted"):
        ada.signer_of(parse(frames))
    (tmp_path / "ada" / "trusted" / "eve.toml").write_bytes(files["eve"].read_bytes())
    (tmp_path / "ada" / "roles.toml").write_text('[clerk]\npublish = ["orders"]\n')
    text = files["eve"].read_text().replace("member", "clerk")
    (tmp_path / "ada" / "trusted" / "eve.toml").write_text(text)
    ada.reload()
    assert ada.signer_of(parse(frames)) == "eve"
    with pytest.raises(BadSignature, match="may not publish"):
        ada.signer_of(parse(written(eve, eve.node_id(bytes(8)), "payments")))
    with pytest.raises(BadSignature, match="another identity"):
        ada.signer_of(parse(written(eve, ada.node_id(bytes(8)))))
    retired = "\n".join("public = []" if line.startswith("public") else line for line in text.splitlines())
    (tmp_path / "ada" / "trusted" / "eve.toml").write_text(retired)
    assert ada.reload()
    assert (ada.signer_of(parse(frames)), ada.trusts("eve")) == ("eve", False)
    revoke(tmp_path / "ada", "eve")
    ada.reload()
    with pytest.raises(BadSignature, match="nobody is trusted"):
        ada.signer_of(parse(frames))


def test_what_an_old_key_signed_stays_good(tmp_path: Path) -> None:
    """Rotation changes the signing key, too, and the old one is believed for what it signed."""
    ada, producer = identity(tmp_path)
    frames = written(ada, producer)
    rotate(ada.directory, "plant")
    rotate(ada.directory, "plant", finish=True)
    renewed = Identities(ada.directory, "plant")
    assert renewed.signer_of(parse(frames)) == "ada"
    again = written(renewed, producer)
    assert (renewed.signer_of(parse(again)), frames != again) == ("ada", True)


def test_keys_and_signatures_are_those_of_rfc_8032() -> None:
    """Section 7.1, test 1; and what is signed is BLAKE2b of lengths and frames, as docs/protocol.md says."""
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    public = signing.public_key(seed)
    assert public.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    signature = bytes.fromhex(
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b"
    )
    signing.verify(public, b"", signature)
    with pytest.raises(BadSignature):
        signing.verify(public, b"x", signature)
    assert signing.signer(seed)([b"frame", b"buffer"]).hex() == (
        "d9fe75fc180712d0"
        "8010b73612d8b0ee0246c6ee7d36d69d22915b3e409cc94eeebcb66eb12e2da3809984c59e9e67d9e6927e81589bac00"
        "8da117fe5d8f5bbc5411302c9f12450e"
    )


# -- nodes -------------------------------------------------------------------------------------


async def send(publisher: Node, *, listeners: int = 1, values: tuple[Any, ...] = (), **options: Any) -> None:
    """Publish once without a signature, and then with one, once so many listen."""
    unsigned = publisher.publisher("orders.unsigned", **options)
    signed = publisher.publisher("orders.signed", sign=True, **options)
    for outgoing in (unsigned, signed):
        await outgoing.wait_for(listeners, timeout=30)
    await unsigned.publish("unsigned")
    await unsigned.flush()
    await signed.publish_many(values or ("signed",))
    await signed.flush()


@pytest.mark.parametrize("delivery", ["at-most-once", "at-least-once"])
async def test_a_subscription_may_ask_for_signatures(town: Town, opened: Opened, delivery: str) -> None:
    """Signed messages come, unsigned ones are a gap; who did not ask gets both."""
    ada, bob = await opened("ada"), await opened("bob")
    events = bob.events()
    strict, lax = bob.subscribe("orders.#", signed=True), bob.subscribe("orders.#")
    await send(ada, listeners=2, delivery=delivery)
    assert {(await lax.receive(10)).value for _ in range(2)} == {"unsigned", "signed"}
    assert (await strict.receive(10)).value == "signed"
    refused = await next_event(events, SignatureRefused)
    gap = await next_event(events, Gap)
    assert (refused.reason, refused.source.name, refused.first) == ("it is not signed", "ada", 0)
    assert (gap.cause, gap.count) == ("signature", 1)
    statistics = bob.statistics()
    assert (statistics.signatures_refused, statistics.topics["orders.unsigned"].lost) == (1, 1)


@pytest.mark.parametrize("delivery", ["at-most-once", "at-least-once"])
async def test_forged_signatures_are_never_delivered(town: Town, opened: Opened, delivery: str) -> None:
    """Not even where nobody asked for signatures; the stream goes on, and the publisher is not held up."""
    ada, bob = await opened("ada"), await opened("bob")
    events = bob.events()
    subscription = bob.subscribe("orders")
    outgoing = ada.publisher("orders", delivery=delivery, sign=True)
    await outgoing.wait_for(1, timeout=30)
    good = outgoing._outbox.writer.sign
    assert good is not None
    await outgoing.publish("first")
    await outgoing.flush()
    outgoing._outbox.writer.sign = lambda frames: good([b"something else"])
    await outgoing.publish("forged")
    await outgoing.flush()
    outgoing._outbox.writer.sign = good
    await outgoing.publish("last")
    assert [(await subscription.receive(10)).value for _ in range(2)] == ["first", "last"]
    assert "forged" in (await next_event(events, SignatureRefused)).reason
    await outgoing.close()


async def test_a_nodes_own_messages_need_a_signature_too(town: Town, opened: Opened) -> None:
    """Policy is policy; and no signature of one's own is checked."""
    ada = await opened("ada", config=replace(QUICK, require_signatures=True))
    subscription = ada.subscribe("orders.#")
    await send(ada)
    assert (await subscription.receive(10)).value == "signed"
    assert ada.statistics().signatures_refused == 1


async def test_one_key_for_all_signs_against_outsiders(real_fabric: RealFabric) -> None:
    """Every member can make and check such signatures; without a key, nobody."""
    key = new_key(real_fabric.name)
    ada, bob = await real_fabric.open("ada", key=key), await real_fabric.open("bob", key=key)
    subscription = bob.subscribe("orders.signed", start="earliest", signed=True)
    await send(ada, listeners=0, values=(b"x" * 100_000, "small"), delivery="at-least-once", history=10)
    assert [(await subscription.receive(10)).value for _ in range(2)] == [b"x" * 100_000, "small"]
    keyless = await real_fabric.open("eve", fabric=f"{real_fabric.name}-2")
    with pytest.raises(LocalProtocolError, match="need a key"):
        keyless.publisher("orders", sign=True)
    with pytest.raises(LocalProtocolError, match="need a key"):
        keyless.subscribe("orders", signed=True)


async def test_without_pynacl_signing_names_the_cure(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to install; who does not ask for signatures gets signed messages like others."""
    ada = await opened("ada")
    monkeypatch.setattr("zfabric.security.identities.available", lambda: False)
    bob = await opened("bob")
    subscription = bob.subscribe("orders.signed", start="earliest")
    await send(ada, listeners=0, delivery="at-least-once", history=10)
    assert (await subscription.receive(10)).value == "signed"
    monkeypatch.setattr(signing, "available", lambda: False)
    with pytest.raises(LocalProtocolError, match="pip install"):
        bob.subscribe("orders", signed=True)


# -- stores ------------------------------------------------------------------------------------


def forge(frames: list[bytes]) -> list[bytes]:
    """What a dishonest store makes of a batch."""
    return [frame.replace(PRICE, FORGED) for frame in frames]


@pytest.fixture
def lying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores change what they hand out."""
    monkeypatch.setattr(
        "zfabric.store.readings.Stored",
        lambda reading, offset, frames, dropped: store_records.Stored(reading, offset, forge(frames), dropped),
    )
    monkeypatch.setattr(
        "zfabric.store.group.Delivered",
        lambda share, epoch, stream, offset, places, partitions, frames: Delivered(
            share, epoch, stream, offset, places, partitions, forge(frames)
        ),
    )


async def open_store(town: Town, config: Config = QUICK) -> Store:
    """A store with an identity."""
    town.invite("vault", "store")
    store = Store("memory:", node=town.fabric.node("vault", key=town.root / "vault", config=config), config=config)
    await store.open()
    return store


@pytest.mark.parametrize("group", [None, "billing"])
@pytest.mark.usefixtures("lying")
async def test_a_store_cannot_change_what_was_signed(town: Town, opened: Opened, group: str | None) -> None:
    """For readers and groups: what it altered is a gap and an event, and the stream goes on behind it."""
    store = await open_store(town)
    try:
        ada, bob = await opened("ada"), await opened("bob")
        events = bob.events()
        outgoing = ada.publisher("orders", durable=True, sign=True)
        await outgoing.wait_for(stores=1, timeout=30)
        for value in ("before", PRICE, "after"):
            await outgoing.publish(value)
            await outgoing.flush()
        options: dict[str, Any] = {} if group is None else {"group": group}
        subscription = bob.subscribe("orders", start="earliest", **options)
        assert [(await subscription.receive(10)).value for _ in range(2)] == ["before", "after"]
        refused = await next_event(events, SignatureRefused)
        gap = await next_event(events, Gap)
        assert ("changed" in refused.reason, refused.first, gap.cause) == (True, 1, "signature")
    finally:
        await store.close()


async def test_what_is_signed_comes_from_a_store_as_it_was(town: Town, opened: Opened) -> None:
    """History, groups and the outputs of transactions, after their publisher has gone."""
    store = await open_store(town)
    try:
        ada, bob = await opened("ada"), await opened("bob")
        outgoing = ada.publisher("orders", durable=True, sign=True)
        await outgoing.wait_for(stores=1, timeout=30)
        await outgoing.publish_many(range(10))
        await outgoing.flush()
        await ada.close()
        history = bob.subscribe("#", start="earliest", signed=True)
        assert [(await history.receive(10)).value for _ in range(10)] == list(range(10))
        member = bob.subscribe("orders", group="billing", start="earliest", delivery="exactly-once", signed=True)
        first = await member.receive(10)
        async with member.transaction(sign=True) as transaction:
            await transaction.publish("bills", first.value)
        assert (await history.receive(10)).topic == "bills"
        assert bob.statistics().signatures_refused == 0
    finally:
        await store.close()


async def test_a_store_may_ask_for_signatures(town: Town, opened: Opened) -> None:
    """What is not signed is not confirmed."""
    store = await open_store(town, replace(QUICK, require_signatures=True))
    try:
        ada = await opened("ada")
        signed = ada.publisher("orders", durable=True, sign=True)
        unsigned = ada.publisher("notes", durable=True)
        await signed.wait_for(stores=1, timeout=30)
        await unsigned.wait_for(stores=1, timeout=30)
        await signed.publish(1)
        await signed.flush()
        await unsigned.publish(1)
        with pytest.raises(NotStored, match="not signed"):
            await unsigned.flush()
        await wait_until_async(lambda: store.node.statistics().signatures_refused == 1)
    finally:
        await store.close()
