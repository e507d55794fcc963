"""What nodes say to each other about queues. Tags 32 to 47, and 101; all of it travels in letters.

A node that has jobs offers its queues to every peer. A puller answers an offer with `Pull` and then grants credit;
`Jobs` are leases, numbered by the pusher's node, and everything that happens to a job names its lease: who no longer
has the lease can change nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from zfabric.wire.fields import Count, Id, Name

__all__ = [
    "PULLERS_TOLD_MAX",
    "QUEUES_PER_RECORD_MAX",
    "AckRefused",
    "Backlog",
    "Credit",
    "CreditRecall",
    "CreditReturned",
    "JobMeta",
    "Jobs",
    "JobsDone",
    "JobsUndone",
    "LeaseNumber",
    "Pull",
    "PullEnd",
    "QueueFigures",
    "QueueMismatch",
    "QueueOffers",
    "QueueQuestion",
    "QueueRecord",
    "QueueReport",
    "Recall",
    "Renew",
    "Undone",
    "Unrouted",
]

QUEUES_PER_RECORD_MAX = 1000
DONE_MAX = 10_000
PULLERS_TOLD_MAX = 1000
"Of each queue, in a report."
REASON_MAX = 1000

Reason = Annotated[str, msgspec.Meta(max_length=REASON_MAX)]
LeaseNumber: TypeAlias = Count
Undone = Literal["nack", "reject", "expired", "hung", "returned"]
"""Why jobs come back: the handler wants them again; never again; their ttl passed; their handler shows no sign of life;
or nobody has begun with them, and their attempt does not count."""


class QueueOffers(msgspec.Struct, array_like=True, tag=32, frozen=True):
    """Queues that the sender has or may have jobs for, beside those it offered before."""

    queues: Annotated[list[Name], msgspec.Meta(max_length=QUEUES_PER_RECORD_MAX)]


class Pull(msgspec.Struct, array_like=True, tag=33, frozen=True):
    """The sender takes jobs of a queue; both sides name this puller by its number from then on."""

    puller: Count
    queue: Name
    lease_ms: Count
    "Its leases end this long after its last RENEW."
    nbytes: Count
    "Bytes of jobs that the receiver may lease to it and are not settled, about: one lease may go beyond."
    selector: Annotated[str, msgspec.Meta(max_length=65_536)] = ""


class PullEnd(msgspec.Struct, array_like=True, tag=34, frozen=True):
    """The puller takes no more, and has no lease any more."""

    puller: Count


class Credit(msgspec.Struct, array_like=True, tag=35, frozen=True):
    """The receiver may lease that many jobs more to this puller."""

    puller: Count
    jobs: Count
    keep: Count
    "What of its credit the receiver may keep while it has no jobs; it returns what is more."


class JobMeta(msgspec.Struct, array_like=True, frozen=True):
    """Sparse metadata, by position in the lease."""

    keys: dict[int, Any] = {}
    headers: dict[int, dict[str, Any]] = {}
    ttl_ms: dict[int, int] = {}
    "What is left of it."
    priorities: dict[int, int] = {}
    "Where it is not 4."
    attempts: dict[int, int] = {}
    "Where it is not the first."


class Jobs(msgspec.Struct, array_like=True, tag=36, frozen=True):
    """A lease of some jobs."""

    puller: Count
    lease: LeaseNumber
    pushed_ns: Count
    "When they were pushed: nanoseconds since 1970, UTC."
    count: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    first: Count
    "Number of the first job; the others follow it unless `ids` tells."
    body: bytes
    "A MessagePack array of `count` values."
    buffers: list[bytes] = []
    ids: list[Count] = []
    "All numbers, where they do not follow each other."
    meta: JobMeta | None = None
    durable: bool = False
    "The sender keeps them on its disk, and answers each JobsDone with JobsKept once that is there, too."


class JobsDone(msgspec.Struct, array_like=True, tag=37, frozen=True):
    """Jobs are done: (lease, start, stop), by position in the lease."""

    puller: Count
    done: Annotated[list[tuple[LeaseNumber, Count, Count]], msgspec.Meta(max_length=DONE_MAX)]


class JobsUndone(msgspec.Struct, array_like=True, tag=38, frozen=True):
    """Jobs at positions from `start` to before `stop` of a lease are not done, and the lease no longer has them."""

    puller: Count
    lease: LeaseNumber
    start: Count
    stop: Count
    why: Undone
    delay_ms: Count | None = None
    "How long they rest before they are leased again; null for as long as the queue's back-off says."
    reason: Reason = ""


class Backlog(msgspec.Struct, array_like=True, tag=39, frozen=True):
    """The sender has jobs for this puller and no credit."""

    puller: Count


class CreditReturned(msgspec.Struct, array_like=True, tag=40, frozen=True):
    """The sender does not need this credit, which others may use: it has no jobs, or was asked for it."""

    puller: Count
    jobs: Count


class Recall(msgspec.Struct, array_like=True, tag=41, frozen=True):
    """Another puller has nothing to do: give back up to that many jobs that nobody has begun with."""

    puller: Count
    jobs: Count


class CreditRecall(msgspec.Struct, array_like=True, tag=44, frozen=True):
    """Give all credit of this puller back: nobody is there to take jobs."""

    puller: Count


class Renew(msgspec.Struct, array_like=True, tag=42, frozen=True):
    """The puller's node runs, and still has its leases."""

    puller: Count


class AckRefused(msgspec.Struct, array_like=True, tag=43, frozen=True):
    """What the receiver said of these jobs came too late: the lease had ended."""

    puller: Count
    lease: LeaseNumber
    start: Count
    stop: Count


class QueueFigures(msgspec.Struct, array_like=True, frozen=True):
    """One queue of the sender, as of now."""

    queue: Name
    depth: Count
    in_flight: Count
    workers: Count
    pushed: Count
    done: Count
    redelivered: Count
    dead: Count
    expired: Count
    pullers: Annotated[list[Id], msgspec.Meta(max_length=PULLERS_TOLD_MAX)] = []
    "The nodes that pull from it."
    lost: Count = 0


class QueueQuestion(msgspec.Struct, array_like=True, tag=45, frozen=True):
    """How are your queues?"""


class QueueReport(msgspec.Struct, array_like=True, tag=46, frozen=True):
    """The answer to a question, in one record or several."""

    queues: Annotated[list[QueueFigures], msgspec.Meta(max_length=QUEUES_PER_RECORD_MAX)]
    more: bool = False
    "Others follow."


class QueueMismatch(msgspec.Struct, array_like=True, tag=47, frozen=True):
    """The sender pulls from this queue with another delivery than the receiver pushes to it, and gets nothing."""

    queue: Name
    offered: Name
    requested: Name


class Unrouted(msgspec.Struct, array_like=True, tag=101, frozen=True):
    """No binding of the sender took these messages of the receiver, although it subscribes to the topic for some."""

    topic: Name
    count: Count


QueueRecord: TypeAlias = (
    QueueOffers
    | Pull
    | PullEnd
    | Credit
    | CreditRecall
    | Jobs
    | JobsDone
    | JobsUndone
    | Backlog
    | CreditReturned
    | Recall
    | Renew
    | AckRefused
    | QueueQuestion
    | QueueReport
    | QueueMismatch
    | Unrouted
)
