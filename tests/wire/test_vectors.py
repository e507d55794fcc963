"""Golden frames: our encoder gives exactly these bytes, and another MessagePack finds what docs/protocol.md says."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.vectors import make
from zfabric.wire.batch import parse_batch
from zfabric.wire.bundle import addressee, parse_bundle
from zfabric.wire.records import decode_envelope

FILES = {path.name: path.read_bytes() for path in sorted(Path(make.FOLDER).glob("*.bin"))}
IDENTITY = [
    bytes(range(32, 48)),
    "plant",
    "sensor-1",
    "host-a",
    4711,
    ["ipc:///run/zfabric/0001.in", "tcp://192.0.2.1:7400"],
    ["ipc:///run/zfabric/0001.out", "tcp://192.0.2.1:7401"],
    67_108_864,
    None,
]
PROOFS = [
    hashlib.blake2b(node, digest_size=16, key=bytes(16), person=b"zfabric-memory").digest()
    for node in (bytes(range(16)), bytes(range(16, 32)))
]  # fmt: skip
TOPIC = "plant.line1.temp"
BASE = 2**33
SIGNING_KEY = hashlib.blake2b(b"plant", key=bytes(range(32)), person=b"zfabric-sign-1").digest()
POSITION = [3, TOPIC, 7, 10, BASE]
DECLARED = ["reports", b"\xa5daily", "0 3 * * *", 0, "Europe/Berlin", "none", 7, {"size": 3}, 60_000, 9]
PUSHED_NS = 1_767_225_600_000_000_000
FIVE_AND_SIX = b"\xdd\x00\x00\x00\x02\x05\x06"

DOCUMENTED: dict[str, list[list[Any]]] = {
    "hello": [[1, bytes(range(16, 32)), IDENTITY]],
    "hello-memory": [[1, bytes(range(16, 32)), [*IDENTITY[:-1], ["zfabric-0123456789abcdef", 9, PROOFS[0]]]]],
    "mapped": [[22, PROOFS[1]], [22, b""]],
    "returned": [[23, 0, [], []], [23, BASE, [7, 9], [8]]],
    "hello-to-seed": [[1, None, IDENTITY]],
    "welcome": [[2, IDENTITY]],
    "refuse": [[3, "fabric", "this node belongs to another fabric"]],
    "unknown": [[4]],
    "interest": [[
        5, True, False, 5, 9, [[TOPIC, 7, "at-least-once", False], ["orders", 1, "at-least-once", True]],
        ["plant.line2.temp"],
        [
            [3, "plant.*.temp", "", ["latest", 0], False],
            [4, "#", "exactly-once", ["since", 1.5], False],
            [5, "plant.#", "at-most-once", ["last", 10], False],
            [6, "orders", "at-least-once", ["earliest", 0], True],
        ],
        [1, 2],
    ]],
    "attached": [[6, [POSITION]]],
    "heartbeat": [[7, 0xFEDC_BA98_7654_3210]],
    "peers": [[8, [[bytes(range(16, 32)), ["tcp://192.0.2.2:7400"]]]]],
    "goodbye": [[9]],
    "positions": [[10, [POSITION, [4, "x", 1, 0, 0]]]],
    "ack": [[11, 3, TOPIC, 7, 100, 90, [[110, 120], [130, 131]]]],
    "repair": [[12, 3, TOPIC, 7, [[100, 110], [120, 130]]]],
    "data": [[13, 3, [b"the first frame", b"a buffer"]]],
    "missing": [[14, 3, TOPIC, 7, 100, 110, "expired"]],
    "evicted": [[15, 3, TOPIC, 7, "the window was full for 10 s"]],
    "incompatible": [[16, 3, TOPIC, "at-most-once", "at-least-once"]],
    "resume": [[17, 3, TOPIC]],
    "letter": [[18, 3, 2, 1000, [[32, ["jobs"]], [48, [["math.add", 1, 100]]]]]],
    "letter-request": [[18, 1, 2, 5, [
        [49, 7, "math.add", 1, [1, 2], {"c": 3}, 1.5, True, 0],
        [49, 8, "log.tail", 2, [], {}, None, False, 1024],
        [54, 8, 512],
        [55, 8],
    ]]],
    "letter-reply": [[18, 2, 1, 6, [
        [50, 7, 6],
        [51, 9, "error", "KeyError", "'x'", "Traceback", 0.0],
        [51, 10, "overloaded", "", "", None, 0.25],
        [52, 8, "line"],
        [53, 8],
    ]]],
    "letter-queues": [[18, 3, 2, 1001, [
        [32, ["jobs", "$dead.jobs"]],
        [33, 1, "jobs", 30_000, 65_536, "colour = 'red'"],
        [34, 1],
        [35, 1, 100, 50],
        [36, 1, 7, PUSHED_NS, 2, 40, FIVE_AND_SIX, [], [], None, False],
        [
            36, 1, 8, PUSHED_NS, 2, 42, FIVE_AND_SIX, [b"a buffer"], [42, 44],
            [{0: "k"}, {1: {"unit": "C"}}, {1: 1500}, {0: 9}, {1: 2}], False,
        ],
        [37, 1, [[7, 0, 2], [8, 1, 2]]],
        [38, 1, 8, 0, 1, "nack", 1500, "ValueError: no"],
        [38, 1, 9, 0, 4, "returned", None, ""],
        [39, 1],
        [40, 1, 50],
        [41, 1, 10],
        [42, 1],
        [44, 1],
        [43, 1, 8, 0, 1],
        [45],
        [46, [["jobs", 9, 4, 2, 20, 10, 3, 1, 0, [bytes(range(16, 32))], 2]], False],
        [47, "jobs", "at-least-once", "at-most-once"],
        [101, "shop.order", 3],
    ]]],
    "letter-plain": [[18, 3, 2, 1002, [
        [96, ["jobs"]],
        [97, 1, "jobs", ["ipc:///run/x.1", "tcp://192.0.2.2:7410"]],
        [99, 1, [[0, 100], [300, 301]], 301],
        [100, 1, 500],
        [98, 1],
    ]]],
    "letter-store": [[18, 1, 2, 7, [
        [64, bytes(range(32, 48)), ["orders.#"]],
        [65, "orders", 7, "the disk is full"],
        [67, 1, [1000, None]],
        [68, 2, "sequence", "not the next", "orders", bytes(range(16, 32)), 7, 20, 10],
        [70, 3, [["group billing", b"\x01", 4]], ""],
        [72, 4, [["orders", 10, 1000]]],
        [76, 5, 990, [b"the first frame", b"a buffer"], [[0, 3]]],
        [77, 5, 1000, 1010, "expired"],
        [79, 6, [[1010, 5, bytes(range(16, 32)), 7, BASE]]],
        [78, 5, 1015],
        [113, 1, [[7, 0, 2]]],
        [70, 8, [["$schedule/nightly", msgpack.packb([DECLARED, 1_767_250_800, 0]), 0]], ""],
        [68, 9, "invalid", "cron '61 * * * *': Bad minute", "", b"", 0, 0, 0],
        [130, 10, [["orders", 10, 1000, 99_000, [3600.0, None, 100, False, 86_400.0]]], ""],
        [130, 11, [], "it is not here"],
        [70, 12, [], "a row of the head has another checksum"],
    ]]],
    "letter-reader": [[18, 2, 1, 8, [
        [66, 1, [[b"the first frame"]], [["group billing", None, 5]], None],
        [69, 3, "group "],
        [71, 4, "orders.#"],
        [73, 5, "orders", "since", 3600.0, 1_000_000, True, 2.0],
        [73, 6, "orders", "offset", 1010, 6400, False, 0.0],
        [74, 5, 64_000],
        [75, 5],
        [112, "jobs", 5, 100, 30_000, 300_000],
        [66, 9, [], [["$schedule/nightly", msgpack.packb(DECLARED), 0]], None],
        [128, 10, "orders.#", "orders.a"],
        [129, 11, "orders", 500],
        [66, 12, [[b"the first frame"]], [], 10],
    ]]],
    "letter-member": [[18, 2, 1, 9, [
        [80, 1, "billing", "orders.#", "billing-1", ["earliest", 0], 1_000_000],
        [89, 1, 2**32 + 1, [["orders", {3: 1002}]], 4096],
        [85, 1, 2**32 + 1, [3, 4]],
        [90, 1, 2**32 + 1, 1, [["orders", {5: 1003}]], [[b"the first frame", b"a buffer"]]],
        [81, 1, 2**32 + 1],
        [92, 7, "seek", "billing", ["seq", 1000], ["orders"]],
    ]]],
    "letter-groups": [[18, 1, 2, 9, [
        [82, 1, 2**32 + 1, 64],
        [83, 1, 2**32 + 1, [3, 4, 5]],
        [87, 1, 2**32 + 1, "orders", 1000, [1, 2], b"\x03\x05", [b"the first frame"]],
        [87, 1, 2**32 + 1, "orders", 1010, None, b"\x04", [b"another"]],
        [88, 1, 2**32 + 1, "orders", 1020, 1030, "expired"],
        [84, 1, 2**32 + 1, [3, 4]],
        [91, 1, 2**32 + 1, 1, ""],
        [86, 1, 2**32 + 1, "it did not let go of partitions in time", False],
        [93, 7, [["billing", "orders.#", 64, False, [["a", "", 64]], {"orders": [9, 10]}, 0]], ""],
    ]]],
    "letter-ack": [[19, 2, 3, 1001]],
    "broken": [[20, 3]],
    "denied": [[21, "subscribe", "plant.#"]],
    "several": [[7, 1], [11, 1, "a", 1, 2, 2, []], [9]],
}  # fmt: skip
BATCHES: dict[str, tuple[list[Any], Any, int, int]] = {
    "batch-plain": ([{"c": 21.5}, [1, -1, True, None], "grün"], None, 0, 0),
    "batch-meta": ([0, 1, 2], [{0: "k", 2: 7}, {1: {"unit": "C"}}, {1: 1500}], 0, 0),
    "batch-crc": (["checked"], None, 1, 0),
    "batch-buffers": ([msgpack.ExtType(1, b"\x00"), "small", msgpack.ExtType(1, b"\x01")], None, 0, 2),
    "batch-crc-buffers": ([msgpack.ExtType(1, b"\x00")], None, 1, 1),
    "batch-reliable": ([1], None, 2, 0),
    "batch-durable": ([1], None, 10, 0),
    "batch-signed": (["signed"], [{0: "k"}, {}, {}], 18, 0),
    "batch-reliable-urgent": ([1, 2], None, 7, 0),
}


def test_the_files_are_what_the_encoder_gives() -> None:
    """Byte for byte, every file and none besides."""
    assert make.files() == FILES


def test_every_record_has_a_vector() -> None:
    """Every tag of the control plane and of queues appears."""
    records = [msgpack.unpackb(FILES[f"{name}.bin"], strict_map_key=False)[2][0] for name in DOCUMENTED]
    inside = [other[0] for record in records if record[0] == 18 for other in record[4]]

    assert {record[0] for record in records} == set(range(1, 24))
    assert set(inside) >= set(range(32, 47))


@pytest.mark.parametrize("name", DOCUMENTED)
def test_control_frames_have_the_documented_structure(name: str) -> None:
    """[version, sender, records] as the table in docs/protocol.md says."""
    assert msgpack.unpackb(FILES[f"{name}.bin"], strict_map_key=False) == [1, bytes(range(16)), DOCUMENTED[name]]


@pytest.mark.parametrize("name", DOCUMENTED)
def test_control_frames_by_another_encoder_are_understood(name: str) -> None:
    """What `msgpack` encodes from the documented structure decodes to the same records."""
    other = msgpack.packb([1, bytes(range(16)), DOCUMENTED[name]])

    assert decode_envelope(other, 10) == (make.SENDER, make.CONTROL[name])
    assert decode_envelope(FILES[f"{name}.bin"], 10) == (make.SENDER, make.CONTROL[name])


def test_elements_with_a_default_may_be_left_out() -> None:
    """A shorter array from an older or thriftier client is the same record."""
    short = msgpack.packb([1, bytes(range(16)), [[5, True, False, 5, 9], [11, 1, "a", 1, 2, 2]]])

    _, (interest, ack) = decode_envelope(short, 10)

    assert (interest.topics, interest.patterns_gone, ack.ranges) == ([], [], [])  # type: ignore[union-attr]


@pytest.mark.parametrize("name", BATCHES)
def test_batches_have_the_documented_structure(name: str) -> None:
    """Topic, NUL, bin8 of a header of 61 bytes, body, meta; buffers behind."""
    values, meta, flags, buffers = BATCHES[name]
    frame = FILES.get(f"{name}.bin") or FILES[f"{name}.0.bin"]

    topic, _, rest = frame.partition(b"\0")
    assert (topic, rest[:2]) == (TOPIC.encode(), b"\xc4\x3d")
    version, producer, epoch, base, count, published, got_flags, body_bytes, crc = msgpack.unpackb(rest[2:63])
    content = rest[63:]
    body, trailer = content[:body_bytes], content[body_bytes:]
    trailer, signature = (trailer[:-72], trailer[-72:]) if flags & 16 else (trailer, b"")

    assert (version, producer, epoch, base) == (1, bytes(range(16)), 7, BASE)
    assert (count, published, got_flags) == (len(values), 1_767_225_600_000_000_000, flags)
    assert body[0] == 0xDD
    assert msgpack.unpackb(body) == values
    assert (msgpack.unpackb(trailer, strict_map_key=False) if trailer else None) == meta
    beside = [FILES[f"{name}.{number}.bin"] for number in range(1, buffers + 1)]
    covered = frame[: len(topic) + 1 + 63 - 4] + content + b"".join(beside)
    assert crc == (zlib.crc32(covered) if flags & 1 else 0)
    assert sum(file.startswith(f"{name}.") for file in FILES) == 1 + buffers
    if signature:
        made = hashlib.blake2b(key=SIGNING_KEY, person=b"zfabric-batch-1")
        for part in (frame[:-72], *beside):
            made.update(len(part).to_bytes(8, "big") + part)
        assert signature[8:] == made.digest()


@pytest.mark.parametrize("name", BATCHES)
def test_batches_are_parsed_back(name: str) -> None:
    """Our own parser gives what was put in."""
    frames = [content for file, content in FILES.items() if file.startswith(f"{name}.")]

    batch = parse_batch(frames, messages_max=10, buffers_max=2, topic_bytes_max=255)

    assert (batch.topic, batch.producer, batch.epoch, batch.base) == (TOPIC, make.SENDER, 7, BASE)
    assert (batch.count, batch.end, batch.flags) == (len(BATCHES[name][0]), BASE + batch.count, BATCHES[name][2])
    assert batch.reliable is bool(batch.flags & 2)
    assert batch.nbytes == sum(map(len, frames))
    assert msgpack.unpackb(batch.body) == BATCHES[name][0]


def test_a_loan_names_blocks_and_holders() -> None:
    """The frames of a batch with lent buffers: its own, an empty one, the loan, and what was not lent."""
    frames = [FILES[f"batch-lent.{number}.bin"] for number in range(4)]

    assert frames[1] == b"" and frames[3] == b"b" * 64
    assert msgpack.unpackb(frames[2]) == [12, [bytes(range(16, 32))], [[3, 10, 100], None]]
    loan = parse_batch(frames, messages_max=10, buffers_max=2, topic_bytes_max=255, loans=True).loan
    assert loan is not None and loan.number == 12 and loan.blocks[1] is None


@pytest.mark.parametrize("name", make.BUNDLES)
def test_bundles_have_the_documented_structure(name: str) -> None:
    """FE, node id, tag, CRC, the header's length, a header of columns, the body; and they are parsed back."""
    frame = FILES[f"{name}.bin"]
    tag = hashlib.blake2b(b"ada", digest_size=8).digest() if "crc" in name else bytes(8)

    assert frame[:25] == b"\xfe" + make.OTHER + tag
    crc, header_bytes = int.from_bytes(frame[25:29], "big"), int.from_bytes(frame[29:33], "big")
    header, body = frame[33 : 33 + header_bytes], frame[33 + header_bytes :]
    assert msgpack.unpackb(header) == [
        1, make.SENDER, PUSHED_NS, int("crc" in name), ["a", "b.c"], [7, 8], [BASE, 0], [1, 3],
    ]  # fmt: skip
    assert body[:1] == b"\xdd"
    assert msgpack.unpackb(body) == [21.5, "x", None, {"y": 1}]
    assert crc == (zlib.crc32(frame[29:]) if "crc" in name else 0)

    found = parse_bundle([frame], messages_max=4)
    assert addressee([frame]) == make.OTHER
    assert (found.producer, found.published_ns, found.count) == (make.SENDER, PUSHED_NS, 4)
    assert list(zip(found.topics, found.epochs, found.bases, found.counts, strict=True)) == [
        (topic, epoch, base, len(items)) for topic, epoch, base, items in make.BUNDLED
    ]
