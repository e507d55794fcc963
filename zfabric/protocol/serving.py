"""The provider's half of services: what may begin, what waits, what is refused, and what is replayed.

A request begins if fewer than the service's concurrency are worked on, else it waits in order; it is refused at once
if it would wait too long. A service that is stopping takes no more and finishes what it has. Replies to idempotent
requests are kept for a while, and given again where the same request comes again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from math import inf
from typing import Any, Protocol

import msgspec

from zfabric.config import Config
from zfabric.errors import LimitExceeded, LocalProtocolError
from zfabric.model import Source
from zfabric.protocol.calls import RECORD_BYTES
from zfabric.protocol.channels import Channels
from zfabric.protocol.deadlines import Deadlines
from zfabric.protocol.peers import PeerRecord
from zfabric.wire.letters import LetterRecord
from zfabric.wire.service_records import Cancel, Credit, End, Failure, Item, Offer, Reply, Request, ServiceOffers

__all__ = ["Execution", "Runner", "ServiceState", "Serving"]

RETRY_AFTER_S_MIN = 0.01
MEAN_WEIGHT = 0.1
"How much the newest call counts in the mean duration."


class Runner(Protocol):
    """Runs the handler of a service."""

    def run(self, execution: Execution) -> bool:
        """Call the handler; when it is done, `Serving.finish` or `give_up`, exactly once, also after `cancel`.

        Returns whether it is still at work.
        """

    def cancel(self, execution: Execution) -> None:
        """Nobody wants the result: stop the handler if it can be stopped."""

    def resume(self, execution: Execution) -> None:
        """A stream may go on where `Serving.add_item` said no."""


class ServiceState:
    """One service that this node provides."""

    def __init__(self, offer: Offer, runner: Runner, *, streams: bool) -> None:
        self.offer = offer
        self.runner = runner
        self.streams = streams
        self.running = 0
        self.waiting: OrderedDict[Execution, None] = OrderedDict()
        self.stopping = False
        self.mean_s = 0.0
        "Duration of a call."

    @property
    def wait_s(self) -> float:
        """How long one more request would wait, about."""
        return self.mean_s * (len(self.waiting) + 1) / self.offer.concurrency


class Execution(msgspec.Struct, eq=False):
    """One request that was taken."""

    peer: PeerRecord | None
    "Who gets the reply; None while that node is lost."
    source: Source
    key: tuple[bytes, int]
    "Names the request in the whole fabric."
    request: Request
    service: ServiceState
    credit: int
    deadline: float
    began: float | None = None
    due: dict[Execution, None] | None = None
    "Where it stands among the deadlines."
    cancelled: bool = False
    state: Any = None
    "The runner's own."


class Serving:
    """The services of one node; a machine that talks over channels."""

    def __init__(self, config: Config, channels: Channels) -> None:
        self.records: dict[type[LetterRecord], Callable[[PeerRecord, Any, float], None]] = {
            Request: self._requested,
            Cancel: self._cancelled,
            Credit: self._granted,
        }
        self._config = config
        self._channels = channels
        self._services: dict[tuple[str, int], ServiceState] = {}
        self._peers: dict[bytes, PeerRecord] = {}
        self.executions: dict[tuple[bytes, int], Execution] = {}
        "What is worked on or waits, by key."
        self._blocked: dict[Execution, None] = {}
        self._deadlines: Deadlines[Execution] = Deadlines()
        self._kept: OrderedDict[tuple[bytes, int], tuple[Reply | Failure, int]] = OrderedDict()
        self._kept_bytes = 0
        self.start: Callable[[Execution], object] = self._start
        "Lets one be `run`, now or soon."

    # -- what the node does --------------------------------------------------------------------

    def offer(self, offer: Offer, runner: Runner, now: float, *, streams: bool) -> ServiceState:
        """Begin to provide a service. Raises LocalProtocolError if this node provides it already, LimitExceeded."""
        key = offer.service, offer.version
        if key in self._services:
            raise LocalProtocolError(f"this node provides version {offer.version} of {offer.service!r} already")
        if len(self._services) >= self._config.services_max:
            raise LimitExceeded("services_max", len(self._services) + 1, self._config.services_max)
        service = self._services[key] = ServiceState(offer, runner, streams=streams)
        self._announce(now)
        return service

    def drain(self, service: ServiceState, now: float) -> None:
        """Take no more requests; what was taken goes on."""
        if not service.stopping:
            service.stopping = True
            self._announce(now)

    def withdraw(self, service: ServiceState, now: float) -> None:
        """End a service: what waits is refused (it can go elsewhere), what runs is given up."""
        self.drain(service, now)
        while service.waiting:
            execution, _ = service.waiting.popitem(last=False)
            self._forget(execution)
            self._tell(execution, Failure(execution.request.number, "draining"), now)
        for execution in [e for e in self.executions.values() if e.service is service]:
            self._tell(execution, Failure(execution.request.number, "stopped"), now)
            self._stop(execution)
        if self._services.get((service.offer.service, service.offer.version)) is service:
            del self._services[service.offer.service, service.offer.version]

    def run(self, executions: Iterable[Execution], now: float) -> None:
        """Call the handlers of what may begin, unless it is too late for that."""
        for execution in executions:
            if execution.deadline <= now and not execution.cancelled:
                self._stop(execution)
            if execution.service.runner.run(execution) and not execution.cancelled:
                execution.due = self._deadlines.add(execution.deadline, execution)

    def finish(self, execution: Execution, outcome: Reply | Failure | End, nbytes: int, now: float) -> None:
        """A handler is done."""
        service = execution.service
        if execution.began is not None:
            service.mean_s += ((now - execution.began) - service.mean_s) * MEAN_WEIGHT
        if not execution.cancelled:
            self._forget(execution)
            if execution.request.idempotent and not isinstance(outcome, End):
                self._keep(execution.key, outcome, nbytes)
            if execution.peer is not None:
                self._channels.tell(execution.peer, outcome, nbytes, now)
        service.running -= 1
        if service.waiting:
            self._next(service, now)

    def give_up(self, execution: Execution, now: float) -> None:
        """A cancelled handler has ended."""
        if not execution.cancelled:
            self._tell(execution, Failure(execution.request.number, "stopped"), now)
            self._forget(execution)
        execution.service.running -= 1
        self._next(execution.service, now)

    def add_item(self, execution: Execution, item: Item, nbytes: int, now: float) -> bool:
        """One value of a stream. Returns False if the next must wait for `Runner.resume`."""
        if execution.cancelled or execution.peer is None:
            return True  # its end is near
        execution.credit -= nbytes
        self._tell(execution, item, now, nbytes)
        if execution.credit > 0 and self._channels.has_room(execution.peer):
            return True
        self._blocked[execution] = None
        return False

    @property
    def replies_kept(self) -> int:
        """Replies that the same request would be given again."""
        return len(self._kept)

    # -- what clients say ----------------------------------------------------------------------

    def _requested(self, peer: PeerRecord, request: Request, now: float) -> None:
        key = peer.id, request.number
        if key in self.executions or (request.idempotent and key in self._kept):
            self._again(peer, key, now)
            return
        service = self._services.get((request.service, request.version))
        if service is None:
            self._channels.tell(peer, Failure(request.number, "absent"), RECORD_BYTES, now)
            return
        free = service.running < service.offer.concurrency
        if not free or service.stopping or service.streams:
            refusal = self._refusal(service, request)
            if refusal is not None:
                self._channels.tell(peer, refusal, RECORD_BYTES, now)
                return
        deadline = inf if request.budget_s is None else now + request.budget_s
        began = now if free else None
        execution = Execution(peer, peer.source, key, request, service, request.credit, deadline, began)
        self.executions[key] = execution
        if free:
            service.running += 1
            start = self.start
            start(execution)
        else:
            service.waiting[execution] = None
            execution.due = self._deadlines.add(deadline, execution)

    def _again(self, peer: PeerRecord, key: tuple[bytes, int], now: float) -> None:
        """An idempotent request that was taken before, and whose client was lost meanwhile."""
        if key in self._kept:
            outcome, nbytes = self._kept[key]
            self._channels.tell(peer, outcome, nbytes, now)
        else:
            self.executions[key].peer = peer

    def _refusal(self, service: ServiceState, request: Request) -> Failure | None:
        """Why a request is not taken."""
        if service.stopping:
            return Failure(request.number, "draining")
        if service.streams and not request.credit:
            return Failure(request.number, "streams")
        if service.running >= service.offer.concurrency:
            wait_s = service.wait_s
            late = request.budget_s is not None and wait_s > request.budget_s
            if late or len(service.waiting) >= self._config.service_waiting_max:
                return Failure(request.number, "overloaded", retry_after_s=max(wait_s, RETRY_AFTER_S_MIN))
        return None

    def _cancelled(self, peer: PeerRecord, cancel: Cancel, now: float) -> None:
        execution = self.executions.get((peer.id, cancel.number))
        if execution is not None:
            self._stop(execution)

    def _granted(self, peer: PeerRecord, credit: Credit, now: float) -> None:
        execution = self.executions.get((peer.id, credit.number))
        if execution is not None:
            execution.credit = min(execution.credit + credit.nbytes, execution.request.credit)
            self._unblock((execution,))

    # -- what becomes of a request -------------------------------------------------------------

    def _start(self, execution: Execution) -> None:
        assert execution.began is not None
        self.run((execution,), execution.began)

    def _stop(self, execution: Execution) -> None:
        """Nobody wants the result."""
        self._forget(execution)
        execution.cancelled = True
        if execution.began is None:
            execution.service.waiting.pop(execution, None)
        else:
            execution.service.runner.cancel(execution)

    def _forget(self, execution: Execution) -> None:
        del self.executions[execution.key]
        if execution.due:
            execution.due.pop(execution, None)
        if self._blocked:
            self._blocked.pop(execution, None)

    def _next(self, service: ServiceState, now: float) -> None:
        """A handler has ended: who waits may begin."""
        while service.waiting and service.running < service.offer.concurrency:
            execution, _ = service.waiting.popitem(last=False)
            execution.began = now
            service.running += 1
            self.start(execution)

    def _tell(
        self, execution: Execution, record: Reply | Failure | Item | End, now: float, nbytes: int = RECORD_BYTES
    ) -> None:
        if execution.peer is not None:
            self._channels.tell(execution.peer, record, nbytes, now)

    def _keep(self, key: tuple[bytes, int], outcome: Reply | Failure, nbytes: int) -> None:
        self._kept[key] = outcome, nbytes
        self._kept_bytes += nbytes
        config = self._config
        while len(self._kept) > config.replies_kept_max or self._kept_bytes > config.replies_kept_bytes:
            self._kept_bytes -= self._kept.popitem(last=False)[1][1]

    def _unblock(self, executions: Iterable[Execution]) -> None:
        for execution in list(executions):
            if execution in self._blocked and execution.credit > 0:
                assert execution.peer is not None
                if self._channels.has_room(execution.peer):
                    del self._blocked[execution]
                    execution.service.runner.resume(execution)

    # -- who is there --------------------------------------------------------------------------

    def _announce(self, now: float) -> None:
        record, nbytes = self._offers()
        for peer in [self._channels.own, *self._peers.values()]:
            self._channels.tell(peer, record, nbytes, now)

    def _offers(self) -> tuple[ServiceOffers, int]:
        offers = [service.offer for service in self._services.values() if not service.stopping]
        return ServiceOffers(offers), RECORD_BYTES + sum(len(offer.service) + 8 for offer in offers)

    def peer_joined(self, peer: PeerRecord, now: float) -> None:
        """Tell a peer what this node provides."""
        self._peers[peer.id] = peer
        if self._services:
            self._channels.tell(peer, *self._offers(), now)

    def peer_left(self, peer: PeerRecord, now: float) -> None:
        """A client is gone: idempotent calls go on, for it may come again and ask; the others are stopped."""
        del self._peers[peer.id]
        for execution in [e for e in self.executions.values() if e.peer is peer]:
            if execution.request.idempotent:
                execution.peer = None
            else:
                self._stop(execution)

    def has_room(self, peer: PeerRecord, now: float) -> None:
        """A peer takes more: so may streams go on."""
        if self._blocked:
            self._unblock([execution for execution in self._blocked if execution.peer is peer])

    # -- time ----------------------------------------------------------------------------------

    def timer(self) -> float:
        """When `handle_timer` has something to do."""
        return self._deadlines.timer()

    def handle_timer(self, now: float) -> None:
        """Stop what is too late for its client."""
        for execution in self._deadlines.due(now):
            if self.executions.get(execution.key) is execution:
                self._stop(execution)
