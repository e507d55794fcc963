"""What can be fuzzed: every parser of bytes that come from outside, each with seeds and the errors that it documents.

A target takes bytes and returns; it raises only if the parser did what it must not do. `split` cuts the bytes into
frames, or feeds them in pieces, where a parser takes several.
"""

from __future__ import annotations

import atexit
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgpack
import msgspec

from tests.capture.files import batch as capture_batch
from tests.capture.files import write
from zfabric import (
    CaptureError,
    Config,
    DecodeFailed,
    InvalidKey,
    LimitExceeded,
    NotStored,
    RemoteProtocolError,
    SelectorError,
    Source,
    StoreNotFound,
    TopicError,
)
from zfabric.capture.format import KIND_CHUNK, KIND_HEADER, KIND_INDEX, Header, encode_block, encode_end, open_block
from zfabric.capture.reader import CaptureReader
from zfabric.discovery._endpoints import ipc_path, parse_tcp
from zfabric.discovery._txt import MalformedRecord, decode, instance_name
from zfabric.security import enrolment
from zfabric.security.acl import Permissions, covers
from zfabric.security.enrolment import Invitation
from zfabric.security.identities import Identities, accept, create
from zfabric.security.keys import FabricKey
from zfabric.store import Append, Commit, Key, PositionUpdate, Retention
from zfabric.store.memory import MemoryLog
from zfabric.store.transfer import read_records, records, restore_records, write_records
from zfabric.wire.batch import parse_batch
from zfabric.wire.bundle import parse_bundle
from zfabric.wire.codec import Codec
from zfabric.wire.records import decode_envelope, encode_envelope
from zfabric.wire.selectors import Selector
from zfabric.wire.signatures import BadSignature
from zfabric.wire.topics import Pattern, check_topic

__all__ = ["TARGETS", "Target"]

SIGNER = FabricKey("plant", bytes(range(32)))
VECTORS = Path(__file__).parents[1] / "vectors"
LIMITS = Config()
NODE = bytes(range(16))


@dataclass(frozen=True)
class Target:
    """A parser to be fuzzed."""

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


def split(data: bytes) -> list[bytes]:
    """The first byte says into how many pieces the rest is cut."""
    if not data:
        return []
    count, rest = 1 + data[0] % 4, data[1:]
    size = max(1, -(-len(rest) // count))
    return [rest[start : start + size] for start in range(0, len(rest), size)]


def frame(data: bytes) -> None:
    """A control frame: what was decoded can be encoded, and stays what it is."""
    try:
        again = encode_envelope(*decode_envelope(data, 1000))
    except RemoteProtocolError:
        return
    assert encode_envelope(*decode_envelope(again, 1000)) == again


def batch(data: bytes) -> None:
    """A batch, whole and in several frames, and the values in it."""
    for frames in ([data], split(data)):
        try:
            found = parse_batch(frames, messages_max=1000, buffers_max=8, topic_bytes_max=255, loans=True)
            values(bytes(found.body))
            if found.signature:
                SIGNER.signer_of(found)
        except (RemoteProtocolError, BadSignature):
            continue


def bundle(data: bytes) -> None:
    """A bundle, each of its batches by itself, and the values in all of them."""
    try:
        found = parse_bundle([data], messages_max=1000)
    except RemoteProtocolError:
        return
    assert [each.count for each in found.batches()] == found.counts
    assert found.select([0]).count == found.counts[0]
    values(bytes(found.body))


def values(data: bytes) -> None:
    """Payloads: all at once, one by one, and with frames beside them."""
    codec = Codec(inline_bytes=LIMITS.inline_bytes)
    first, *others = split(data) or [b""]
    for body, buffers in ((data, []), (first, others)):
        try:
            codec.decode_many(body, buffers)
        except DecodeFailed:
            pass
        try:
            for _ in codec.decode_each(body, buffers):
                continue
        except DecodeFailed:
            continue


def topic(data: bytes) -> None:
    """Topics and patterns; a pattern matches the topic that it is."""
    text = data.decode("utf-8", "replace")
    try:
        check_topic(text)
        assert Pattern(text).matches(text)
        assert covers(text, text)
    except TopicError:
        pass
    try:
        pattern = Pattern(text)
        pattern.matches("plant.line1.temp")
        assert covers("#", text)
        Permissions({"subscribe": [text]}).filters(pattern.prefix)
    except TopicError:
        return


def txt(data: bytes) -> None:
    """TXT records and endpoints."""
    try:
        found = decode(data, instance_name(NODE), endpoints_max=4, loopback=False, zones=("eth0",))
        assert 0 < len(found.endpoints) <= 4
    except MalformedRecord:
        pass
    text = data.decode("utf-8", "replace")
    parse_tcp(text)
    ipc_path(text)


def key(data: bytes) -> None:
    """Keys of fabrics, tokens of identities, invitations and what is said because of them."""
    try:
        assert FabricKey.parse(data).text.encode() == data.strip()
    except InvalidKey:
        pass
    for read in (accept, Invitation.parse):
        try:
            read(data.decode("utf-8", "replace"))
        except InvalidKey:
            continue
    word = enrolment.decode(data)
    assert word is None or enrolment.decode(enrolment.encode(word)) == word


def selector(data: bytes) -> None:
    """Selectors, and what they say about some headers."""
    try:
        found = Selector(data.decode("utf-8", "replace"))
    except SelectorError:
        return
    found.matches({"a": 1, "b": "x", "c": None, "d": 1.5, "e": True}, key="k")


_MEMORY = Path("/dev/shm")
_SCRATCH = Path(tempfile.mkdtemp(prefix="zfabric-fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None))
atexit.register(shutil.rmtree, _SCRATCH, ignore_errors=True)
_CAPTURE = _SCRATCH / "run.zfr"
_HEADER = encode_block(KIND_HEADER, Header(run="0" * 32))


def capture(data: bytes) -> None:
    """Capture files: whatever is in them is read, or counted as a problem.

    As the first byte says it is a chunk or an index in a file whose checksums are right, or all of a file.
    """
    if data[:1] == b"c":
        data = _HEADER + encode_block(KIND_CHUNK, msgspec.Raw(data[1:]))
    elif data[:1] == b"i":
        data = _HEADER + encode_block(KIND_INDEX, msgspec.Raw(data[1:])) + encode_end(len(_HEADER))
    _CAPTURE.write_bytes(data)
    try:
        reader = CaptureReader(_CAPTURE)
        for found in reader.batches():
            with suppress(DecodeFailed):
                found.messages()
        reader.check()
        reader.summary()
    except CaptureError:
        return


def identities(data: bytes) -> None:
    """The files of identities, read again as a running node does: a member's, or the roles, as the first byte says."""
    known = _house()
    path = known.directory / ("roles.toml" if data[:1] == b"r" else "trusted/bob.toml")
    path.write_bytes(data[1:])
    try:
        known._read()
        for name in known.trusted:
            known.may(name, "publish", "plant.temp")
            known.filters(name, b"plant.")
    except InvalidKey:
        pass
    path.unlink()


@cache
def _house() -> Identities:
    directory = _SCRATCH / "house"
    create(directory, "plant", "ada")
    return Identities(directory, "plant")


def export(data: bytes) -> None:
    """Exports of a log, as MessagePack and as JSON lines: whatever can be imported is a log that works."""
    with MemoryLog(LIMITS) as log:
        try:
            restore_records(read_records(io.BytesIO(data), as_json=data[:1] == b"{"), log)
        except (RemoteProtocolError, StoreNotFound, NotStored, TopicError, LimitExceeded):
            pass
        for info in log.streams():
            log.compact(info.name)
        log.enforce()
        assert write_records(records(log), io.BytesIO(), as_json=True)


def _exports() -> Iterator[bytes]:
    with MemoryLog() as log:
        keys = [Key(0, b"k"), Key(2, b"l", tombstone=True)]
        for base, stream in enumerate("aab"):
            held = Append(
                stream=stream,
                producer=NODE,
                epoch=1,
                base=3 * (base % 2),
                count=3,
                published_ns=1,
                frames=[b"x"],
                keys=keys,
            )
            log.commit([Commit([held])])
        log.retain("a", Retention(messages=4, compact=True))
        log.trim("a", 1)
        log.commit([Commit(positions=[PositionUpdate("p", b"value", 3), PositionUpdate("q", None)])])
        for as_json in (False, True):
            file = io.BytesIO()
            write_records(records(log), file, as_json=as_json)
            yield file.getvalue()


def _vectors(*names: str) -> Iterator[bytes]:
    for path in sorted(VECTORS.glob("*.bin")):
        if not names or path.name.startswith(names):
            yield path.read_bytes()


def _captures() -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as directory:
        for closed in (False, True):
            path = Path(directory) / f"{closed}.zfcap"
            frames = [(VECTORS / "batch-signed.bin").read_bytes()]
            sealed = parse_batch(frames, messages_max=1000, buffers_max=8, topic_bytes_max=255)
            signed = capture_batch(
                topic=sealed.topic, base=sealed.base, source=Source(sealed.producer.hex(), "x"), at=2
            )
            signed.count, signed.frames = sealed.count, frames
            write(path, capture_batch(1, "x", {"a": None}), capture_batch(2.5, base=3, at=1.0), signed, closed=closed)
            yield path.read_bytes()
        for values in msgpack.Unpacker(io.BytesIO(path.read_bytes())):
            kind, payload = open_block(values, LIMITS.capture_block_bytes_max)
            if kind in _BLOCKS:
                yield _BLOCKS[kind] + payload


_BLOCKS = {KIND_CHUNK: b"c", KIND_INDEX: b"i"}
_KEY = b"zfk1:plant:" + FabricKey("plant", bytes(32)).text.rpartition(":")[2].encode()
_TRUSTED = b'tpublic = ["rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"]\nsigning = []\nroles = ["member"]\n'
_ROLES = b'r[sensor]\npublish = ["plant.*.temp"]\nsubscribe = []\n[worker]\npull = ["jobs.#"]\n'
TARGETS = {
    "frame": Target(frame, tuple(_vectors())),
    "batch": Target(batch, tuple(_vectors("batch", "empty", "crc")) or tuple(_vectors())),
    "bundle": Target(bundle, tuple(_vectors("bundle"))),
    "values": Target(values, (b"\x93\x01\xa1a\xc0", b"\xdd\xff\xff\xff\xff", b"\x91" * 100, b"\xc7\x05\x01abcde")),
    "topic": Target(topic, (b"plant.line1.temp", b"plant.*.temp", b"a.#.b.*", b"$sys.x")),
    "txt": Target(txt, (b"\x03v=1\x23id=000102030405060708090a0b0c0d0e0f\x07f=plant\x18e0=tcp://192.168.1.5:7400",)),
    "key": Target(key, (_KEY, _KEY.replace(b"zfk1", b"zfi1"))),
    "selector": Target(selector, (b"a = 1 AND b LIKE 'x%' OR NOT c IS NULL", b"d BETWEEN 1 AND 2", b"e IN ('x', 'y')")),
    "identities": Target(identities, (_TRUSTED, _TRUSTED.replace(b"member", b"nobody"), _ROLES)),
    "export": Target(export, tuple(_exports())),
    "capture": Target(capture, tuple(_captures())),
}
