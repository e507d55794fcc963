"""The golden frames: fixed inputs, and this script to write the files once.

Run `python -m tests.vectors.make` after a deliberate change of the protocol, and say so in docs/protocol.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from msgspec import Raw, msgpack
from msgspec.structs import replace

from zfabric.security.keys import FabricKey
from zfabric.wire import queue_records as queues
from zfabric.wire.batch import FLAG_ACK_NOW, FLAG_DURABLE, FLAG_RELIABLE, BatchWriter, Buffer, Sign
from zfabric.wire.bundle import BundleWriter, address, tagged
from zfabric.wire.codec import Codec
from zfabric.wire.durable_records import Declaration, JobsKept, KeepQueue, ScheduleState
from zfabric.wire.group_records import (
    AskGroups,
    Assigned,
    Delivered,
    Fenced,
    GroupTold,
    Join,
    Joined,
    Leave,
    MemberTold,
    Move,
    Progress,
    ProgressTold,
    Released,
    Revoked,
    Skipped,
    ToldGroups,
    Transact,
    Transacted,
)
from zfabric.wire.letters import Broken, Letter, LetterAck
from zfabric.wire.loans import Block, Loan, MemoryOffer, encode_loan, proof_of
from zfabric.wire.plain_records import PlainEnd, PlainMark, PlainOffers, PlainPull, PlainTaken
from zfabric.wire.records import (
    Ack,
    Attached,
    Data,
    Denied,
    Evicted,
    Goodbye,
    Heartbeat,
    Hello,
    Identity,
    Incompatible,
    Interest,
    Mapped,
    Missing,
    PatternRequest,
    PeerAddress,
    Peers,
    Position,
    Positions,
    Record,
    Refuse,
    Repair,
    Resume,
    Returned,
    Start,
    TopicOffer,
    Unknown,
    Welcome,
    encode_envelope,
)
from zfabric.wire.service_records import Cancel, Credit, End, Failure, Item, Offer, Reply, Request, ServiceOffers
from zfabric.wire.store_records import (
    AskPositions,
    AskStreams,
    AskTopics,
    Indexed,
    Keeps,
    NamedPosition,
    Purge,
    Read,
    ReadEnd,
    ReadMore,
    ReadStop,
    Stored,
    StoreOffer,
    Storing,
    StreamTold,
    ToldPositions,
    ToldStreams,
    ToldTopics,
    TopicTold,
    Unreadable,
    Unwritten,
    Write,
    Written,
)

FOLDER = Path(__file__).parent
SENDER = bytes(range(16))
OTHER = bytes(range(16, 32))
TOKEN = bytes(range(32, 48))
PUBLISHED_NS = 1_767_225_600_000_000_000
EPOCH, BASE = 7, 2**33
DECLARED = Declaration("reports", b"\xa5daily", "0 3 * * *", 0, "Europe/Berlin", "none", 7, {"size": 3}, 60_000, 9)
BUNDLED: list[tuple[str, int, int, list[object]]] = [("a", EPOCH, BASE, [21.5]), ("b.c", 8, 0, ["x", None, {"y": 1}])]

IDENTITY = Identity(
    TOKEN,
    "plant",
    "sensor-1",
    "host-a",
    4711,
    ("ipc:///run/zfabric/0001.in", "tcp://192.0.2.1:7400"),
    ("ipc:///run/zfabric/0001.out", "tcp://192.0.2.1:7401"),
)
OFFER = MemoryOffer("zfabric-0123456789abcdef", 9, proof_of(bytes(16), SENDER))
POSITION = Position(3, "plant.line1.temp", EPOCH, 10, BASE)

QUEUES: list[queues.QueueRecord] = [
    queues.QueueOffers(["jobs", "$dead.jobs"]),
    queues.Pull(1, "jobs", 30_000, 65_536, "colour = 'red'"),
    queues.PullEnd(1),
    queues.Credit(1, 100, 50),
    queues.Jobs(1, 7, PUBLISHED_NS, 2, 40, b"\xdd\x00\x00\x00\x02\x05\x06"),
    queues.Jobs(
        1, 8, PUBLISHED_NS, 2, 42, b"\xdd\x00\x00\x00\x02\x05\x06", [b"a buffer"], [42, 44],
        queues.JobMeta({0: "k"}, {1: {"unit": "C"}}, {1: 1500}, {0: 9}, {1: 2}),
    ),
    queues.JobsDone(1, [(7, 0, 2), (8, 1, 2)]),
    queues.JobsUndone(1, 8, 0, 1, "nack", 1500, "ValueError: no"),
    queues.JobsUndone(1, 9, 0, 4, "returned"),
    queues.Backlog(1),
    queues.CreditReturned(1, 50),
    queues.Recall(1, 10),
    queues.Renew(1),
    queues.CreditRecall(1),
    queues.AckRefused(1, 8, 0, 1),
    queues.QueueQuestion(),
    queues.QueueReport([queues.QueueFigures("jobs", 9, 4, 2, 20, 10, 3, 1, 0, [OTHER], 2)]),
    queues.QueueMismatch("jobs", "at-least-once", "at-most-once"),
    queues.Unrouted("shop.order", 3),
]  # fmt: skip

CONTROL: dict[str, list[Record]] = {
    "hello": [Hello(OTHER, IDENTITY)],
    "hello-memory": [Hello(OTHER, replace(IDENTITY, memory=OFFER))],
    "mapped": [Mapped(proof_of(bytes(16), OTHER)), Mapped(b"")],
    "returned": [Returned(0), Returned(BASE, [7, 9], [8])],
    "hello-to-seed": [Hello(None, IDENTITY)],
    "welcome": [Welcome(IDENTITY)],
    "refuse": [Refuse("fabric", "this node belongs to another fabric")],
    "unknown": [Unknown()],
    "interest": [
        Interest(
            True,
            False,
            5,
            9,
            [TopicOffer("plant.line1.temp", EPOCH, "at-least-once"), TopicOffer("orders", 1, "at-least-once", True)],
            ["plant.line2.temp"],
            [
                PatternRequest(3, "plant.*.temp", ""),
                PatternRequest(4, "#", "exactly-once", Start("since", 1.5)),
                PatternRequest(5, "plant.#", "at-most-once", Start("last", 10)),
                PatternRequest(6, "orders", "at-least-once", Start("earliest"), True),
            ],
            [1, 2],
        )
    ],
    "attached": [Attached([POSITION])],
    "heartbeat": [Heartbeat(0xFEDC_BA98_7654_3210)],
    "peers": [Peers([PeerAddress(OTHER, ("tcp://192.0.2.2:7400",))])],
    "goodbye": [Goodbye()],
    "positions": [Positions([POSITION, Position(4, "x", 1, 0, 0)])],
    "ack": [Ack(3, "plant.line1.temp", EPOCH, 100, 90, [(110, 120), (130, 131)])],
    "repair": [Repair(3, "plant.line1.temp", EPOCH, [(100, 110), (120, 130)])],
    "data": [Data(3, [b"the first frame", b"a buffer"])],
    "missing": [Missing(3, "plant.line1.temp", EPOCH, 100, 110, "expired")],
    "evicted": [Evicted(3, "plant.line1.temp", EPOCH, "the window was full for 10 s")],
    "incompatible": [Incompatible(3, "plant.line1.temp", "at-most-once", "at-least-once")],
    "resume": [Resume(3, "plant.line1.temp")],
    "letter": [Letter(3, 2, 1000, [queues.QueueOffers(["jobs"]), ServiceOffers([Offer("math.add", 1, 100)])])],
    "letter-request": [
        Letter(
            1,
            2,
            5,
            [
                Request(7, "math.add", 1, Raw(b"\x92\x01\x02"), {"c": Raw(b"\x03")}, 1.5, True),
                Request(8, "log.tail", 2, Raw(b"\x90"), {}, None, False, 1024),
                Credit(8, 512),
                Cancel(8),
            ],
        )
    ],
    "letter-reply": [
        Letter(
            2,
            1,
            6,
            [
                Reply(7, Raw(b"\x06")),
                Failure(9, "error", "KeyError", "'x'", "Traceback"),
                Failure(10, "overloaded", retry_after_s=0.25),
                Item(8, Raw(b"\xa4line")),
                End(8),
            ],
        )
    ],
    "letter-queues": [Letter(3, 2, 1001, [*QUEUES])],
    "letter-plain": [
        Letter(
            3,
            2,
            1002,
            [
                PlainOffers(["jobs"]),
                PlainPull(1, "jobs", ("ipc:///run/x.1", "tcp://192.0.2.2:7410")),
                PlainTaken(1, [(0, 100), (300, 301)], 301),
                PlainMark(1, 500),
                PlainEnd(1),
            ],
        )
    ],
    "letter-store": [
        Letter(
            1,
            2,
            7,
            [
                StoreOffer(TOKEN, ["orders.#"]),
                Storing("orders", EPOCH, "the disk is full"),
                Written(1, [1000, None]),
                Unwritten(2, "sequence", "not the next", "orders", OTHER, EPOCH, 20, 10),
                ToldPositions(3, [NamedPosition("group billing", b"\x01", 4)]),
                ToldStreams(4, [StreamTold("orders", 10, 1000)]),
                Stored(5, 990, [b"the first frame", b"a buffer"], [(0, 3)]),
                Unreadable(5, 1000, 1010, "expired"),
                Indexed(6, [(1010, 5, OTHER, EPOCH, BASE)]),
                ReadEnd(5, 1015),
                JobsKept(1, [(7, 0, 2)]),
                ToldPositions(
                    8, [NamedPosition("$schedule/nightly", msgpack.encode(ScheduleState(DECLARED, 1_767_250_800)))]
                ),
                Unwritten(9, "invalid", "cron '61 * * * *': Bad minute"),
                ToldTopics(10, [TopicTold("orders", 10, 1000, 99_000, Keeps(3600.0, None, 100, False, 86_400.0))]),
                ToldTopics(11, [], "it is not here"),
                ToldPositions(12, [], "a row of the head has another checksum"),
            ],
        )
    ],
    "letter-reader": [
        Letter(
            2,
            1,
            8,
            [
                Write(1, [[b"the first frame"]], [NamedPosition("group billing", None, 5)]),
                AskPositions(3, "group "),
                AskStreams(4, "orders.#"),
                Read(5, "orders", "since", 3600.0, 1_000_000, rate=2.0),
                Read(6, "orders", "offset", 1010, 6400, bodies=False),
                ReadMore(5, 64_000),
                ReadStop(5),
                KeepQueue("jobs", 5, 100, 30_000, 300_000),
                Write(9, [], [NamedPosition("$schedule/nightly", msgpack.encode(DECLARED))]),
                AskTopics(10, "orders.#", "orders.a"),
                Purge(11, "orders", 500),
                Write(12, [[b"the first frame"]], gone=10),
            ],
        )
    ],
    "letter-member": [
        Letter(
            2,
            1,
            9,
            [
                Join(1, "billing", "orders.#", "billing-1", Start("earliest"), 1_000_000),
                Progress(1, 2**32 + 1, [Move("orders", {3: 1002})], 4096),
                Released(1, 2**32 + 1, [3, 4]),
                Transact(1, 2**32 + 1, 1, [Move("orders", {5: 1003})], [[b"the first frame", b"a buffer"]]),
                Leave(1, 2**32 + 1),
                AskGroups(7, "seek", "billing", Start("seq", 1000), ["orders"]),
            ],
        )
    ],
    "letter-groups": [
        Letter(
            1,
            2,
            9,
            [
                Joined(1, 2**32 + 1, 64),
                Assigned(1, 2**32 + 1, [3, 4, 5]),
                Delivered(1, 2**32 + 1, "orders", 1000, [1, 2], b"\x03\x05", [b"the first frame"]),
                Delivered(1, 2**32 + 1, "orders", 1010, None, b"\x04", [b"another"]),
                Skipped(1, 2**32 + 1, "orders", 1020, 1030, "expired"),
                Revoked(1, 2**32 + 1, [3, 4]),
                Transacted(1, 2**32 + 1, 1, ""),
                Fenced(1, 2**32 + 1, "it did not let go of partitions in time"),
                ToldGroups(
                    7,
                    [
                        GroupTold(
                            "billing",
                            "orders.#",
                            64,
                            False,
                            [MemberTold("a", "", 64)],
                            {"orders": ProgressTold(9, 10)},
                            0,
                        )
                    ],
                ),
            ],
        )
    ],
    "letter-ack": [LetterAck(2, 3, 1001)],
    "broken": [Broken(3)],
    "denied": [Denied("subscribe", "plant.#")],
    "several": [Heartbeat(1), Ack(1, "a", 1, 2, 2), Goodbye()],
}


def plain() -> list[Buffer]:
    """Three values, nothing else."""
    return _batch([{"c": 21.5}, [1, -1, True, None], "grün"])


def with_meta() -> list[Buffer]:
    """Keys, headers and lifetimes of some messages."""
    writer, codec = _open()
    for number, (key, headers, ttl_ms) in enumerate([("k", None, None), (None, {"unit": "C"}, 1500), (7, {}, None)]):
        codec.encode_into(number, writer.buffer)
        writer.annotate(key, headers, ttl_ms)
        writer.count += 1
    return writer.seal(BASE, PUBLISHED_NS)


def with_crc() -> list[Buffer]:
    """A checksum, as it travels between hosts."""
    return _batch(["checked"], with_crc=True)


def with_buffers() -> list[Buffer]:
    """Two values in frames of their own, one between them in the body."""
    return _batch([b"a" * 100, "small", b"b" * 64], inline_bytes=64)


def with_crc_and_buffers() -> list[Buffer]:
    """The checksum takes in the buffers, too."""
    return _batch([b"a" * 64], with_crc=True, inline_bytes=64)


def lent() -> list[Buffer]:
    """Two large values: the first in shared memory, the second in a frame."""
    frame, first, second = _batch([b"a" * 100, b"b" * 64], inline_bytes=64)
    return [frame, b"", encode_loan(Loan(12, [OTHER], [Block(3, 10, len(first)), None])), second]


def reliable() -> list[Buffer]:
    """A stream that can be repaired."""
    return _batch([1], flags=FLAG_RELIABLE)


def durable() -> list[Buffer]:
    """A stream that stores keep."""
    return _batch([1], flags=FLAG_RELIABLE | FLAG_DURABLE)


def reliable_urgent() -> list[Buffer]:
    """A reliable batch that asks for its acknowledgement at once, with a checksum."""
    return _batch([1, 2], flags=FLAG_RELIABLE | FLAG_ACK_NOW, with_crc=True)


def signed() -> list[Buffer]:
    """Signed with the key of a fabric; its meta stands before the signature."""
    writer, codec = _open(sign=FabricKey("plant", bytes(range(32))).signs())
    codec.encode_into("signed", writer.buffer)
    writer.annotate("k", None, None)
    writer.count += 1
    return writer.seal(BASE, PUBLISHED_NS, FLAG_RELIABLE)


BATCHES: dict[str, Callable[[], list[Buffer]]] = {
    "batch-plain": plain,
    "batch-meta": with_meta,
    "batch-crc": with_crc,
    "batch-buffers": with_buffers,
    "batch-crc-buffers": with_crc_and_buffers,
    "batch-lent": lent,
    "batch-reliable": reliable,
    "batch-reliable-urgent": reliable_urgent,
    "batch-durable": durable,
    "batch-signed": signed,
}


def bundle(*, with_crc: bool) -> list[Buffer]:
    """Small batches of several topics for one node."""
    writer = BundleWriter()
    for topic, epoch, base, items in BUNDLED:
        writer.topics.append(topic)
        writer.epochs.append(epoch)
        writer.bases.append(base)
        writer.counts.append(len(items))
        writer.bodies.append(b"".join(map(msgpack.encode, items)))
        writer.count += len(items)
    return [tagged(address(OTHER), "ada" if with_crc else "") + writer.seal(SENDER, PUBLISHED_NS, with_crc=with_crc)]


BUNDLES: dict[str, Callable[[], list[Buffer]]] = {
    "bundle": partial(bundle, with_crc=False),
    "bundle-crc": partial(bundle, with_crc=True),
}


def _open(*, with_crc: bool = False, inline_bytes: int = 65_536, sign: Sign | None = None) -> tuple[BatchWriter, Codec]:
    writer = BatchWriter("plant.line1.temp", SENDER, EPOCH, with_crc=with_crc, sign=sign)
    codec = Codec(inline_bytes=inline_bytes)
    codec.buffers = writer.buffers
    return writer, codec


def _batch(values: list[object], *, flags: int = 0, with_crc: bool = False, inline_bytes: int = 65_536) -> list[Buffer]:
    writer, codec = _open(with_crc=with_crc, inline_bytes=inline_bytes)
    for value in values:
        codec.encode_into(value, writer.buffer)
        writer.count += 1
    return writer.seal(BASE, PUBLISHED_NS, flags)


def files() -> dict[str, bytes]:
    """Every golden file's name and content; a batch of several frames has a file for each."""
    made = {f"{name}.bin": encode_envelope(SENDER, records) for name, records in CONTROL.items()}
    for name, batch in (BATCHES | BUNDLES).items():
        frames = batch()
        for number, frame in enumerate(frames):
            made[f"{name}.bin" if len(frames) == 1 else f"{name}.{number}.bin"] = bytes(frame)
    return made


if __name__ == "__main__":
    for name, content in files().items():
        (FOLDER / name).write_bytes(content)
