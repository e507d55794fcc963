"""Control frames: read back, bounded, and harmless whatever they hold."""

from __future__ import annotations

import random

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vectors import make
from tests.wire.test_batch import mutate
from zfabric.errors import RemoteProtocolError
from zfabric.wire.records import (
    Heartbeat,
    Record,
    Refuse,
    VersionMismatch,
    decode_envelope,
    encode_envelope,
)

GOLDEN = [encode_envelope(make.SENDER, records) for records in make.CONTROL.values()]
ALL = [record for records in make.CONTROL.values() for record in records]
messagepack = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=30,
)


@given(st.lists(st.sampled_from(ALL), max_size=50))
def test_records_are_read_as_they_were_written(records: list[Record]) -> None:
    """Any mixture, in order."""
    assert decode_envelope(encode_envelope(make.SENDER, records), 50) == (make.SENDER, records)


def test_the_number_of_records_is_bounded() -> None:
    """The reason names the limit."""
    frame = encode_envelope(make.SENDER, [Heartbeat(0)] * 11)

    assert len(decode_envelope(frame, 11)[1]) == 11
    with pytest.raises(RemoteProtocolError, match=r"11 records in a frame; Config\.control_records_max is 10"):
        decode_envelope(frame, 10)


@pytest.mark.parametrize("version", [0, 2, 255, 2**32, -1])
def test_another_version_is_recognised(version: int) -> None:
    """Whatever its records look like, as long as the first two elements are in place."""
    for records in ([], [[1, 2, 3]], {"new": "shape"}, [[4]]):
        with pytest.raises(VersionMismatch, match=f"version {version}; this node speaks 1") as caught:
            decode_envelope(msgpack.packb([version, make.SENDER, records, "more"]), 10)
        assert caught.value.version == version


def test_refuse_is_understood_in_any_version() -> None:
    """Two versions can tell each other why they do not talk."""
    frame = msgpack.packb([9, make.SENDER, [[3, "version", "speaks 1"]]])

    assert decode_envelope(frame, 10) == (make.SENDER, [Refuse("version", "speaks 1")])


@given(st.binary(max_size=300))
def test_arbitrary_bytes_give_records_or_a_protocol_error(frame: bytes) -> None:
    """Nothing else ever comes out."""
    try:
        decode_envelope(frame, 10)
    except RemoteProtocolError as error:
        assert error.reason


@settings(max_examples=50)
@given(st.lists(messagepack, max_size=5))
def test_arbitrary_structures_give_records_or_a_protocol_error(records: list[object]) -> None:
    """Well-formed MessagePack in a good envelope is checked just as well."""
    try:
        decode_envelope(msgpack.packb([1, make.SENDER, records]), 10)
    except RemoteProtocolError as error:
        assert error.reason


@given(st.sampled_from(GOLDEN), st.integers(0, 2**32), st.integers(1, 8))
def test_mutated_frames_give_records_or_a_protocol_error(golden: bytes, seed: int, changes: int) -> None:
    """What is accepted can be encoded again: no number in it is too large for the wire."""
    try:
        sender, records = decode_envelope(mutate(golden, random.Random(seed), changes), 10)
    except RemoteProtocolError:
        return

    assert decode_envelope(encode_envelope(sender, records), 10) == (sender, records)


@pytest.mark.parametrize("bomb", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91"])
def test_bombs_are_refused(bomb: bytes) -> None:
    """Claims of four billion elements, and a hundred thousand levels, at every place of an envelope."""
    for before in (b"", b"\x93", b"\x93\x01", b"\x93\x01\xc4\x10" + make.SENDER, GOLDEN[5][:-1]):
        with pytest.raises(RemoteProtocolError):
            decode_envelope(before + bomb * 100_000, 10)
