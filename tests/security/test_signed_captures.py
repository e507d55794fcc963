"""Captures keep signatures: whoever edits the file is found out."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.capture.files import BEGAN, batch
from tests.security.town import Opened, Town
from tests.waiting import wait_until_async
from zfabric import CaptureError, LocalProtocolError, new_key
from zfabric.capture import CapturedBatch, CaptureReader, CaptureWriter, Player, Recorder
from zfabric.security.identities import revoke
from zfabric.testing import RealFabric

pytest.importorskip("nacl")

VALUES = [{"pay": 100}, b"beside" * 50_000, "last"]


async def recorded(town: Town, opened: Opened, path: Path) -> Path:
    """What ada signed, and bob did not, recorded by carl."""
    ada, bob, carl = await opened("ada"), await opened("bob"), await opened("carl")
    async with Recorder(carl, path, ["orders.#"]) as recorder:
        signed = ada.publisher("orders.signed", delivery="at-least-once", sign=True)
        unsigned = bob.publisher("orders.plain", delivery="at-least-once")
        for publisher in (signed, unsigned):
            await publisher.wait_for(1, timeout=30)
        for value in VALUES:
            signed.publish_nowait(value, key="k", headers={"unit": "EUR"})
        await unsigned.publish("unsigned")
        await wait_until_async(lambda: recorder.messages == 4)
    return path


def edited(path: Path, change: object) -> Path:
    """A capture with other batches, and checksums that fit."""
    reader, other = CaptureReader(path), path.with_name("edited.zfr")
    with CaptureWriter(other, started=BEGAN, fabric=reader.header.fabric, overwrite=True) as writer:
        for each in reader.batches():
            if each.frames:
                change(each)  # type: ignore[operator]
            writer.add(each)
    return other


async def test_captures_keep_signatures(town: Town, opened: Opened, tmp_path: Path) -> None:
    """Everything comes back as it was, and any member can tell who signed it, until they are revoked."""
    path = await recorded(town, opened, tmp_path / "run.zfr")
    reader = CaptureReader(path)
    messages = [message for message in reader.messages() if message.topic == "orders.signed"]
    assert [(m.value, m.seq, m.key, m.headers) for m in messages] == [
        (value, seq, "k", {"unit": "EUR"}) for seq, value in enumerate(VALUES)
    ]
    told = reader.signatures(town.root / "bob")
    assert (told.signers, told.unsigned, told.refused, reader.problems) == ({"ada": 3}, 1, 0, ())
    assert {stream.topic: stream.messages for stream in reader.summary().streams} == {
        "orders.signed": 3,
        "orders.plain": 1,
    }
    carl = await opened("carl")
    async with carl.subscribe("orders.signed", signed=True) as heard:
        async with Player(await opened("bob"), reader, rate=float("inf"), sign=True) as player:
            await player.publishers[-1].wait_for(1, timeout=30)
            await player.play()
        played = [await heard.receive(10) for _ in VALUES]
        assert [(m.value, m.key, m.headers) for m in played] == [(value, "k", {"unit": "EUR"}) for value in VALUES]
    revoke(town.root / "bob", "ada")
    assert reader.signatures(town.root / "bob").refused == 3


async def test_what_was_edited_in_a_capture_is_found_out(town: Town, opened: Opened, tmp_path: Path) -> None:
    """A value, a number, a topic, a source, or a batch that hides behind what was signed."""
    path = await recorded(town, opened, tmp_path / "run.zfr")

    def value(each: CapturedBatch) -> None:
        assert b"pay" in each.frames[0]
        each.frames = [each.frames[0].replace(b"pay", b"owe"), *each.frames[1:]]

    def number(each: CapturedBatch) -> None:
        each.base += 1

    def topic(each: CapturedBatch) -> None:
        each.topic = "orders.other"

    def source(each: CapturedBatch) -> None:
        each.source = msgspec.structs.replace(each.source, id="00" * 16)

    def nonsense(each: CapturedBatch) -> None:
        each.frames = [b"nonsense"]

    def stripped(each: CapturedBatch) -> None:
        each.frames, each.values = [], batch(*VALUES).values

    for change, refused, unsigned in [
        (value, 3, 1), (number, 3, 1), (topic, 3, 1), (source, 3, 1), (nonsense, 3, 1), (stripped, 0, 4),
    ]:  # fmt: skip
        reader = CaptureReader(edited(path, change))
        told = reader.signatures(town.root / "bob")
        assert (told.signers, told.refused, told.unsigned) == ({}, refused, unsigned)
        assert bool(reader.problems) == bool(refused)
        if change not in (value, stripped):
            with pytest.raises(CaptureError):
                list(reader.messages())


async def test_one_key_for_all(real_fabric: RealFabric, tmp_path: Path) -> None:
    """With it every member can check, and nobody else."""
    key = new_key(real_fabric.name)
    ada, bob = await real_fabric.open("ada", key=key), await real_fabric.open("bob", key=key)
    async with Recorder(bob, tmp_path / "run.zfr", signed=True) as recorder:
        publisher = ada.publisher("orders", delivery="at-least-once", sign=True)
        await publisher.wait_for(1, timeout=30)
        await publisher.publish_many(VALUES)
        await wait_until_async(lambda: recorder.messages == 3)
    reader = CaptureReader(tmp_path / "run.zfr")
    assert [message.value for message in reader.messages()] == VALUES
    assert reader.signatures(key).signers == {"member": 3}
    assert reader.signatures(new_key(real_fabric.name)).refused == 3
    with pytest.raises(LocalProtocolError, match="key of fabric"):
        reader.signatures()
