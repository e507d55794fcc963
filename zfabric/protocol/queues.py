"""The queues of one node: joins its dispatchers and its pullers to the channels of its peers, and to each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf
from typing import Any

from zfabric.config import Config
from zfabric.errors import LimitExceeded, RemoteProtocolError, SelectorError, TopicError
from zfabric.events import AckRefused, IncompatibleDelivery, JobDead, JobsExpired, JobsOrphaned, Unroutable
from zfabric.model import Delivery, Source
from zfabric.protocol.channels import Channels
from zfabric.protocol.dispatcher import Dispatcher
from zfabric.protocol.durable import DurableDispatcher
from zfabric.protocol.effects import Effects
from zfabric.protocol.jobs import Job, QueuePolicy
from zfabric.protocol.peers import PeerRecord
from zfabric.protocol.plainqueue import PlainQueue
from zfabric.protocol.plainqueues import PlainQueues
from zfabric.protocol.plainsink import PlainSink
from zfabric.protocol.pulls import TOO_LATE, Pull
from zfabric.protocol.workers import WorkerKey
from zfabric.wire import queue_records
from zfabric.wire.durable_records import JobsKept
from zfabric.wire.letters import LetterRecord
from zfabric.wire.plain_records import PlainRecord
from zfabric.wire.queue_records import (
    PULLERS_TOLD_MAX,
    QUEUES_PER_RECORD_MAX,
    Backlog,
    Credit,
    CreditRecall,
    CreditReturned,
    Jobs,
    JobsDone,
    JobsUndone,
    PullEnd,
    QueueFigures,
    QueueMismatch,
    QueueOffers,
    QueueQuestion,
    QueueRecord,
    QueueReport,
    Recall,
    Renew,
    Unrouted,
)
from zfabric.wire.topics import check_topic

__all__ = ["DEAD_PREFIX", "Queues", "dead_headers"]

DEAD_PREFIX = "$dead."
"Before a queue's name: its dead letters."


class Queues:
    """Implements `protocol.channels.Machine`."""

    def __init__(
        self,
        config: Config,
        effects: Effects,
        channels: Channels,
        not_protocol: Callable[[str, RemoteProtocolError], None],
        endpoint: Callable[[PeerRecord, tuple[str, ...], float], str | None],
    ) -> None:
        """`endpoint(peer, endpoints, now)` tells which of a peer's endpoints to connect to."""
        self.dispatchers: dict[str, Dispatcher] = {}
        self.pulls: dict[int, Pull] = {}
        self.offers: dict[bytes, dict[str, None]] = {channels.own.id: {}}
        "The queues of each peer, and of this node."
        self._config = config
        self._effects = effects
        self._channels = channels
        self._not_protocol = not_protocol
        self._peers: dict[bytes, PeerRecord] = {channels.own.id: channels.own}
        self._workers: dict[tuple[bytes, int], Dispatcher] = {}
        self.reports: dict[bytes, dict[str, QueueFigures]] = {}
        "What nodes answered to the last question."
        self.unanswered: set[bytes] = set()
        "Those that have not."
        self._pull_numbers = 0
        self.plain = PlainQueues(config, effects, self._peers, self._tell, self._refuse, endpoint)
        self.plain.offers[channels.own.id] = {}
        self.plain.offered = self._offered_plain
        self._now = 0.0
        self._hear: dict[type[Any], Callable[[bytes, Any, float], None]] = {
            QueueOffers: self._on_offers,
            queue_records.Pull: self._on_pull,
            PullEnd: self._on_pull_end,
            Credit: self._on_credit,
            CreditRecall: self._on_credit_recall,
            Jobs: self._on_jobs,
            JobsDone: self._on_done,
            JobsUndone: self._on_undone,
            Backlog: self._on_backlog,
            CreditReturned: self._on_returned,
            Recall: self._on_recall,
            Renew: self._on_renew,
            queue_records.AckRefused: self._on_refused,
            JobsKept: self._on_kept,
            QueueQuestion: self._on_question,
            QueueReport: self._on_report,
            QueueMismatch: self._on_mismatch,
            Unrouted: self._on_unrouted,
            **self.plain.hear,
        }
        self.records: dict[type[LetterRecord], Callable[[PeerRecord, Any, float], None]]
        self.records = dict.fromkeys(self._hear, self._from_peer)

    # -- users ---------------------------------------------------------------------------------

    def dispatcher(self, queue: str, policy: QueuePolicy | None = None) -> Dispatcher:
        """This node's jobs of a queue; there from the first use on. Raises LimitExceeded."""
        dispatcher = self.dispatchers.get(queue)
        if dispatcher is None:
            dispatcher = Dispatcher(queue, self._config, policy)
            self.add(dispatcher)
        return dispatcher

    @property
    def own_id(self) -> bytes:
        """This node's."""
        return self._channels.own.id

    def machines(self) -> list[Dispatcher | PlainQueue]:
        """What keeps this node's jobs, of all queues."""
        return [*self.dispatchers.values(), *self.plain.queues.values()]

    def add(self, dispatcher: Dispatcher) -> None:
        """From now on this node offers that queue. Raises LimitExceeded."""
        if len(self.dispatchers) >= self._config.queues_max:
            raise LimitExceeded("queues_max", len(self.dispatchers) + 1, self._config.queues_max)
        self.dispatchers[dispatcher.queue] = dispatcher
        for peer_id in list(self._peers):
            self._tell(peer_id, QueueOffers([dispatcher.queue]))

    def pull(self, queue: str, wake: Callable[[], None], **options: Any) -> Pull:
        """A new puller; options as of `Pull`. Raises LimitExceeded."""
        if len(self.pulls) >= self._config.pullers_max:
            raise LimitExceeded("pullers_max", len(self.pulls) + 1, self._config.pullers_max)
        self._pull_numbers += 1
        pull = Pull(self._pull_numbers, queue, self._config, self._tell, wake, **options)
        self.pulls[pull.number] = pull
        for peer_id, queues in self.offers.items():
            if queue in queues:
                pull.offered(peer_id, self._now)
        for peer_id, queues in self.plain.offers.items():
            if queue in queues:
                self._incompatible(peer_id, queue, Delivery.AT_MOST_ONCE, Delivery.AT_LEAST_ONCE)
        return pull

    def plain_pull(self, number: int, queue: str, endpoints: tuple[str, ...], wake: Callable[[], None]) -> PlainSink:
        """A new puller of a queue at-most-once."""
        for peer_id, queues in self.offers.items():
            if queue in queues:
                self._incompatible(peer_id, queue, Delivery.AT_LEAST_ONCE, Delivery.AT_MOST_ONCE)
        return self.plain.pull(number, queue, endpoints, wake)

    def give_up(self) -> None:
        """This node closes: what is in hand goes back."""
        for pull in self.pulls.values():
            pull.close()
            pull.give_up("its worker's node closed")

    # -- peers ---------------------------------------------------------------------------------

    def peer_joined(self, peer: PeerRecord, now: float) -> None:
        """Tell it of our queues."""
        self._now = now
        self._peers[peer.id] = peer
        self.offers[peer.id] = {}
        self.plain.peer_joined(peer)
        queues = list(self.dispatchers)
        for first in range(0, len(queues), QUEUES_PER_RECORD_MAX):
            self._tell(peer.id, QueueOffers(queues[first : first + QUEUES_PER_RECORD_MAX]))

    def peer_left(self, peer: PeerRecord, now: float) -> None:
        """Its leases are free; what it leased to us is nobody's any more."""
        self._now = now
        self.plain.peer_left(peer)
        del self._peers[peer.id], self.offers[peer.id]
        self.unanswered.discard(peer.id)
        for key in [key for key in self._workers if key[0] == peer.id]:
            self._workers.pop(key).leave(key, f"{peer.source.name} was lost", now)
        for pull in self.pulls.values():
            unheard = (r.done for r in self._channels.unheard if isinstance(r, JobsDone) and r.puller == pull.number)
            orphans = pull.lost(peer.id) + sum(stop - start for done in unheard for _, start, stop in done)
            if orphans:
                self._effects.emit(JobsOrphaned(pull.queue, peer.source, orphans))

    def has_room(self, peer: PeerRecord, now: float) -> None:
        """Jobs for its workers may go on."""
        for key, dispatcher in self._workers.items():
            if key[0] == peer.id:
                dispatcher.changed = True

    def _room(self, peer_id: bytes) -> bool:
        return self._channels.has_room(self._peers[peer_id])

    def _tell(self, peer_id: bytes, record: QueueRecord | PlainRecord | JobsKept, nbytes: int = 64) -> None:
        if peer_id in self._peers:
            self._channels.tell(self._peers[peer_id], record, nbytes, self._now)

    def _from_peer(self, peer: PeerRecord, record: Any, now: float) -> None:
        self._now = now
        self._hear[type(record)](peer.id, record, now)

    def _refuse(self, peer_id: bytes, reason: str) -> None:
        self._not_protocol(self._peers[peer_id].address, RemoteProtocolError(reason))

    def source(self, peer_id: bytes) -> Source:
        """A peer, for people."""
        peer = self._peers.get(peer_id)
        return Source(peer_id.hex(), "") if peer is None else peer.source

    # -- what pushers say ----------------------------------------------------------------------

    def _on_offers(self, peer_id: bytes, record: QueueOffers, now: float) -> None:
        known = self.offers[peer_id]
        for queue in record.queues:
            try:
                check_topic(queue, reserved=True, bytes_max=self._config.topic_bytes_max)
            except TopicError as error:
                self._refuse(peer_id, str(error))
                continue
            if len(known) >= self._config.queues_max:
                self._refuse(peer_id, "offers more queues than Config.queues_max")
                return
            known[queue] = None
            for pull in self.pulls.values():
                if pull.queue == queue:
                    pull.offered(peer_id, now)
            if any(puller.queue == queue for puller in self.plain.sinks.values()):
                self._incompatible(peer_id, queue, Delivery.AT_LEAST_ONCE, Delivery.AT_MOST_ONCE)

    def _offered_plain(self, peer_id: bytes, queue: str) -> None:
        if any(pull.queue == queue for pull in self.pulls.values()):
            self._incompatible(peer_id, queue, Delivery.AT_MOST_ONCE, Delivery.AT_LEAST_ONCE)

    def _incompatible(self, peer_id: bytes, queue: str, offered: str, requested: str) -> None:
        self._effects.emit(IncompatibleDelivery(queue, self.source(peer_id), offered, requested))
        self._tell(peer_id, QueueMismatch(queue, offered, requested))

    def _on_mismatch(self, peer_id: bytes, record: QueueMismatch, _now: float) -> None:
        if peer_id != self._channels.own.id:
            self._effects.emit(
                IncompatibleDelivery(record.queue, self.source(peer_id), record.offered, record.requested)
            )

    def _on_jobs(self, peer_id: bytes, record: Jobs, now: float) -> None:
        pull = self.pulls.get(record.puller)
        if pull is None or pull.closed:
            self._tell(peer_id, JobsUndone(record.puller, record.lease, 0, record.count, "returned"))
        elif len(record.ids) not in (0, record.count):
            self._refuse(peer_id, "a lease whose numbers do not fit its count")
        elif not pull.received(peer_id, record, now):
            self._refuse(peer_id, "leased more jobs than it has credit for")

    def _on_backlog(self, peer_id: bytes, record: Backlog, now: float) -> None:
        if record.puller in self.pulls:
            self.pulls[record.puller].backlog(peer_id)

    def _on_returned(self, peer_id: bytes, record: CreditReturned, now: float) -> None:
        if record.puller in self.pulls:
            self.pulls[record.puller].returned(peer_id, record.jobs)

    def _on_recall(self, peer_id: bytes, record: Recall, now: float) -> None:
        if record.puller in self.pulls:
            self.pulls[record.puller].recalled(peer_id, record.jobs, now)

    def _on_refused(self, peer_id: bytes, record: queue_records.AckRefused, now: float) -> None:
        pull = self.pulls.get(record.puller)
        if pull is not None:
            pull.kept(peer_id, [(record.lease, record.start, record.stop)], TOO_LATE)
            count = max(1, record.stop - record.start)
            self._effects.emit(AckRefused(pull.queue, self.source(peer_id), count, here=True))

    # -- what pullers say ----------------------------------------------------------------------

    def _on_pull(self, peer_id: bytes, record: queue_records.Pull, now: float) -> None:
        dispatcher = self.dispatchers.get(record.queue)
        key = peer_id, record.puller
        if dispatcher is None or len(self._workers) >= self._config.workers_max:
            self._refuse(peer_id, f"pulls from {record.queue!r}, which is not offered, or is over Config.workers_max")
            return
        try:
            dispatcher.join(key, record, now)
        except SelectorError as error:
            self._refuse(peer_id, str(error))
            return
        self._workers[key] = dispatcher

    def _on_pull_end(self, peer_id: bytes, record: PullEnd, now: float) -> None:
        if (peer_id, record.puller) in self._workers:
            self._workers[peer_id, record.puller].end((peer_id, record.puller))

    def _on_credit(self, peer_id: bytes, record: Credit, now: float) -> None:
        if (peer_id, record.puller) in self._workers:
            self._workers[peer_id, record.puller].credit((peer_id, record.puller), record, now)

    def _on_credit_recall(self, peer_id: bytes, record: CreditRecall, now: float) -> None:
        if (peer_id, record.puller) in self._workers:
            self._workers[peer_id, record.puller].credit_back((peer_id, record.puller))

    def _on_done(self, peer_id: bytes, record: JobsDone, now: float) -> None:
        if (peer_id, record.puller) in self._workers:
            self._settled(self._workers[peer_id, record.puller], peer_id, record, now)

    def _on_undone(self, peer_id: bytes, record: JobsUndone, now: float) -> None:
        if (peer_id, record.puller) in self._workers:
            self._settled(self._workers[peer_id, record.puller], peer_id, record, now)

    def _settled(self, dispatcher: Dispatcher, peer_id: bytes, record: JobsDone | JobsUndone, now: float) -> None:
        before = dispatcher.counters.refused
        key = peer_id, record.puller
        if isinstance(record, JobsDone):
            dispatcher.done(key, record, now)
        else:
            dispatcher.undone(key, record, now)
        refused = dispatcher.counters.refused - before
        if refused:
            self._effects.emit(AckRefused(dispatcher.queue, self.source(peer_id), refused, here=False))

    def kept(self, key: WorkerKey, done: list[tuple[int, int, int]]) -> None:
        """This node's disk has what a worker said of these jobs."""
        self._tell(key[0], JobsKept(key[1], done), 64 + 12 * len(done))

    def _on_kept(self, peer_id: bytes, record: JobsKept, now: float) -> None:
        if record.puller in self.pulls:
            self.pulls[record.puller].kept(peer_id, record.done)

    def _on_renew(self, peer_id: bytes, record: Renew, now: float) -> None:
        if (peer_id, record.puller) in self._workers:
            self._workers[peer_id, record.puller].renew((peer_id, record.puller), now)

    # -- bindings ------------------------------------------------------------------------------

    def unroutable(self, source: Source, topic: str, count: int) -> None:
        """No binding of this node takes these messages of a peer, or of its own."""
        self._effects.emit(Unroutable(topic, source, count, here=True))
        if source.id != self._channels.own.source.id:
            self._tell(bytes.fromhex(source.id), Unrouted(topic, count))

    def _on_unrouted(self, peer_id: bytes, record: Unrouted, _now: float) -> None:
        self._effects.emit(Unroutable(record.topic, self.source(peer_id), record.count, here=False))

    # -- questions -----------------------------------------------------------------------------

    def ask(self) -> None:
        """Ask all peers, and this node, about their queues."""
        self.reports = {peer_id: {} for peer_id in self._peers}
        self.unanswered = set(self._peers)
        for peer_id in list(self._peers):
            self._tell(peer_id, QueueQuestion())

    def _on_question(self, peer_id: bytes, _record: QueueQuestion, now: float) -> None:
        figures = [_figures(queue) for queue in self.machines()]
        for first in range(0, max(1, len(figures)), QUEUES_PER_RECORD_MAX):
            some, left = figures[first : first + QUEUES_PER_RECORD_MAX], figures[first + QUEUES_PER_RECORD_MAX :]
            nbytes = 64 * (1 + len(some)) + 18 * sum(len(queue.pullers) for queue in some)
            self._tell(peer_id, QueueReport(some, bool(left)), nbytes)

    def _on_report(self, peer_id: bytes, record: QueueReport, now: float) -> None:
        if peer_id in self.unanswered:
            known = self.reports[peer_id]
            known.update({figures.queue: figures for figures in record.queues})
            if not record.more or len(known) > self._config.queues_max:
                self.unanswered.discard(peer_id)

    # -- dead letters --------------------------------------------------------------------------

    def _bury(self, dispatcher: Dispatcher, job: Job, reason: str, now: float) -> None:
        """A hopeless job becomes a job of the dead-letter queue, which anybody can pull."""
        queue = dispatcher.queue
        if queue.startswith(DEAD_PREFIX):
            return
        config = self._config
        try:
            grave = self.dispatcher(DEAD_PREFIX + queue, QueuePolicy(max_attempts=0, queue_bytes=config.dead_bytes))
        except LimitExceeded:
            return
        headers, nbytes = dead_headers(queue, job, reason), job.nbytes + 200
        grave.push(
            job.value, job.pushed_ns, now,
            key=job.key, headers=headers, priority=job.priority, buffers=job.buffers, nbytes=nbytes,
        )  # fmt: skip
        while grave.nbytes > config.dead_bytes and grave.drop_oldest(now) is not None:
            pass

    # -- time, and what to say -----------------------------------------------------------------

    def timer(self) -> float:
        """When `handle_timer` has something to do."""
        machines: Iterator[Dispatcher | Pull] = iter((*self.dispatchers.values(), *self.pulls.values()))
        return min(min((machine.timer() for machine in machines), default=inf), self.plain.timer())

    def handle_timer(self, now: float) -> None:
        """Time has passed."""
        self._now = now
        self.plain.handle_timer(now)
        for dispatcher in list(self.dispatchers.values()):
            if dispatcher.timer() <= now:
                dispatcher.handle_timer(now)
        for pull in self.pulls.values():
            if pull.timer() <= now:
                pull.handle_timer(now)

    def flush(self, now: float) -> None:
        """Lease, acknowledge and grant, until there is nothing left to say."""
        self._now = now
        self.plain.flush(now)
        more = bool(self.dispatchers or self.pulls)
        while more:
            more = False
            for dispatcher in list(self.dispatchers.values()):
                if dispatcher.changed:
                    self._dispatch(dispatcher, now)
                    more = True
            for pull in list(self.pulls.values()):
                if pull.changed:
                    pull.flush(now)
                    more = True
                    if pull.finished:
                        del self.pulls[pull.number]
                while pull.refused:
                    peer_id, count = pull.refused.pop()
                    self._effects.emit(AckRefused(pull.queue, self.source(peer_id), count, here=True))

    def _dispatch(self, dispatcher: Dispatcher, now: float) -> None:
        dispatcher.dispatch(now, self._room)
        expired = dispatcher.take_expired()
        if expired:
            self._effects.emit(JobsExpired(dispatcher.queue, expired))
        for (peer_id, _), record, nbytes in dispatcher.take_told():
            self._tell(peer_id, record, nbytes)
        dead = dispatcher.take_dead()
        for job, reason in dead:
            self._effects.emit(JobDead(dispatcher.queue, job.id, job.attempts, reason))
        if isinstance(dispatcher, DurableDispatcher):
            dispatcher.journaled(dispatcher.take_changes(), dead)
            return
        for job, reason in dead:
            self._bury(dispatcher, job, reason, now)


def dead_headers(queue: str, job: Job, reason: str) -> dict[str, Any]:
    """The headers of a job's dead letter."""
    told = {"dead.queue": queue, "dead.reason": reason, "dead.attempts": job.attempts, "dead.id": job.id}
    return {**(job.headers or {}), **told}


def _figures(queue: Dispatcher | PlainQueue) -> QueueFigures:
    """What others may want to know of a queue."""
    counts, now = queue.counters, (queue.depth, queue.in_flight, len(queue.pullers))
    told = counts.pushed, counts.done, counts.redelivered, counts.dead, counts.expired
    pullers = sorted({peer_id for peer_id, _ in queue.pullers})[:PULLERS_TOLD_MAX]
    return QueueFigures(queue.queue, *now, *told, pullers, counts.lost)
