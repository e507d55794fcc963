"""The client's half of services: which provider gets a call, what becomes of it, and when it is tried again.

A call is given to one provider (to two if it is hedged) of those that offer the service: the less busy of two taken at
random. It ends exactly once: with a reply, with the error that the provider sent, or with one of ours. One that was
not begun (`draining`, `overloaded`, `absent`) goes to the next provider, whatever it is; one whose provider is lost
only if it is idempotent. Each round asks every provider once; idempotent calls begin another after a pause.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf
from typing import Any, Protocol

import msgspec

from zfabric.config import Config
from zfabric.errors import (
    FabricError,
    InvalidArguments,
    LimitExceeded,
    LocalProtocolError,
    NoResponders,
    Overloaded,
    ProviderLost,
    RemoteError,
    RequestTimeout,
)
from zfabric.model import ServiceOffer
from zfabric.protocol.channels import Channels
from zfabric.protocol.deadlines import Deadlines
from zfabric.protocol.inbox import Jitter
from zfabric.protocol.peers import PeerRecord
from zfabric.wire.letters import LetterRecord
from zfabric.wire.service_records import Cancel, Credit, End, Failure, Item, Offer, Reply, Request, ServiceOffers

__all__ = ["Call", "Caller", "Calls", "Provider", "StreamCaller"]

RECORD_BYTES = 64
"What a record takes beside its body, about."
RETRY_DOUBLINGS_MAX = 10


class Caller(Protocol):
    """Who waits for a call's end; an asyncio future is one."""

    def done(self) -> bool:
        """Whether it waits no more."""

    def set_result(self, body: msgspec.Raw, /) -> None:
        """The reply. A stream that is given one has no other items."""

    def set_exception(self, error: Exception, /) -> None:
        """There is no reply, or no more of it."""


class StreamCaller(Caller, Protocol):
    """Who waits for a reply that streams."""

    def add_item(self, body: msgspec.Raw, /) -> None:
        """One more value. The call must be granted credit again when it was read."""

    def end(self) -> None:
        """That was all."""


class Provider:
    """One service of one node, as the client knows it."""

    __slots__ = ("concurrency", "outstanding", "peer")

    def __init__(self, peer: PeerRecord, concurrency: int) -> None:
        self.peer = peer
        self.concurrency = concurrency
        self.outstanding = 0

    def __repr__(self) -> str:
        return f"<Provider {self.peer.source.name} {self.outstanding} of {self.concurrency}>"


class Call(msgspec.Struct, eq=False):
    """One request of this node, from `begin` to its end."""

    caller: Caller
    service: str
    version: int
    arguments: msgspec.Raw
    options: dict[str, msgspec.Raw]
    nbytes: int
    "What it takes on its way, about."
    timeout: float
    deadline: float
    idempotent: bool = False
    credit: int = 0
    only: Provider | None = None
    hedge_s: float = inf
    number: int = 0
    wait_until: float = -inf
    due: dict[Call, None] | None = None
    later: dict[Call, None] | None = None
    "Where it stands among the deadlines, and among those that are tried again."
    at: tuple[Provider, ...] = ()
    "Who works on it."
    tried: tuple[bytes, ...] = ()
    "Who was asked in this round and does not work on it."
    rounds: int = 0
    overload: Overloaded | None = None


class Calls:
    """The calls of one node; a machine that talks over channels."""

    def __init__(self, config: Config, channels: Channels, jitter: Jitter) -> None:
        self.records: dict[type[LetterRecord], Callable[[PeerRecord, Any, float], None]] = {
            ServiceOffers: self._offered,
            Reply: self._replied,
            Failure: self._failed,
            Item: self._item,
            End: self._ended,
        }
        self._offers: dict[bytes, tuple[Offer, ...]] = {}
        self._config = config
        self._calls_max = config.requests_max
        self._channels = channels
        self._jitter = jitter
        self._providers: dict[tuple[str, int], list[Provider]] = {}
        self.outstanding: dict[int, Call] = {}
        "Calls that have not ended, by number."
        self._numbers = 0
        self._deadlines: Deadlines[Call] = Deadlines()
        self._later: Deadlines[Call] = Deadlines()
        self.deliver: Callable[[tuple[Caller, msgspec.Raw]], object] = _deliver
        "Tells a caller its only reply, now or soon."
        self._parked: dict[Call, None] = {}
        "They wait for a provider, or for room on the way to one."

    # -- what the node does --------------------------------------------------------------------

    def providers(self, service: str, version: int) -> list[Provider]:
        """Who offers it now."""
        return self._providers.get((service, version), [])

    def nobody(self, service: str, version: int) -> NoResponders:
        """The error for a service that nobody offers, naming the versions that are offered."""
        versions = sorted(other for name, other in self._providers if name == service)
        return NoResponders(service, version, tuple(versions))

    def begin(self, call: Call, now: float, wait: float = 0.0) -> None:
        """Start a call. Its caller may be told of its end before this returns.

        Raises NoResponders if nobody offers the service for `wait` seconds, and LimitExceeded.
        """
        if len(self.outstanding) >= self._calls_max:
            raise LimitExceeded("requests_max", len(self.outstanding) + 1, self._calls_max)
        self._numbers = call.number = number = self._numbers + 1
        if wait > 0:
            call.wait_until = now + min(wait, call.timeout)
        provider = self._choose(call)
        if provider is None and wait <= 0 and not self._blocked(call):
            raise self.nobody(call.service, call.version)
        self.outstanding[number] = call
        call.due = self._deadlines.add(call.deadline, call)
        if provider is None:
            self._try(call, now)
        else:
            self._give(call, provider, now)

    def offered_by(self, peer_id: bytes) -> tuple[ServiceOffer, ...]:
        """What a node provides, as users see it."""
        offers = self._offers.get(peer_id, ())
        return tuple(ServiceOffer(offer.service, offer.version, offer.concurrency) for offer in offers)

    def give_up(self, error: FabricError, now: float) -> None:
        """End all calls: the node closes."""
        for call in list(self.outstanding.values()):
            self._fail(call, error, now)

    def cancel(self, call: Call, now: float) -> None:
        """Nobody waits for the call any more."""
        if self.outstanding.get(call.number) is call:
            self._end(call, now)

    def grant(self, call: Call, nbytes: int, now: float) -> None:
        """The items of a stream that were read make room for more."""
        if self.outstanding.get(call.number) is call:
            for provider in call.at:
                self._channels.tell(provider.peer, Credit(call.number, nbytes), RECORD_BYTES, now)

    # -- giving a call to a provider -----------------------------------------------------------

    def _try(self, call: Call, now: float) -> None:
        """Give the call to a provider, or do whatever is to be done when there is none."""
        provider = self._choose(call)
        if provider is not None:
            self._give(call, provider, now)
        elif call.at:  # a hedge finds nobody else
            return
        elif self._blocked(call):
            self._park(call)
        elif call.wait_until > now and call.overload is None:
            self._park(call)
            self._again(call, call.wait_until)
        elif call.idempotent and (call.tried or call.rounds):
            self._pause(call, now)
        else:
            self._fail(call, call.overload or self.nobody(call.service, call.version), now)

    def _choose(self, call: Call) -> Provider | None:
        """The less busy of two."""
        usable = self._providers.get((call.service, call.version), [])
        if call.only is not None:
            usable = [] if call.tried else [call.only]
        elif call.tried or call.at:
            asked = _asked(call)
            usable = [provider for provider in usable if provider.peer.id not in asked]
        has_room = self._channels.has_room
        count = len(usable)
        if count == 1:
            return usable[0] if has_room(usable[0].peer) else None
        if count:
            random = self._jitter.random
            first = int(random() * count)
            second = (first + 1 + int(random() * (count - 1))) % count
            one, other = usable[first], usable[second]
            if one.outstanding * other.concurrency > other.outstanding * one.concurrency:
                one = other
            if has_room(one.peer):
                return one
        return next((provider for provider in usable if has_room(provider.peer)), None)

    def _blocked(self, call: Call) -> bool:
        """Whether there is a provider that only lacks room on the way."""
        if call.only is not None:
            return not call.tried
        providers = self._providers.get((call.service, call.version), [])
        return not _asked(call).issuperset(provider.peer.id for provider in providers)

    def _give(self, call: Call, provider: Provider, now: float) -> None:
        call.at = (*call.at, provider) if call.at else (provider,)
        provider.outstanding += 1
        if call.later:
            call.later.pop(call, None)
            call.later = None
        if call.hedge_s < inf and len(call.at) == 1:
            self._again(call, now + call.hedge_s)
        deadline = call.deadline
        record = Request(
            call.number,
            call.service,
            call.version,
            call.arguments,
            call.options,
            None if deadline == inf else max(0.0, deadline - now),
            call.idempotent,
            call.credit,
        )
        self._channels.tell(provider.peer, record, call.nbytes, now)

    def _park(self, call: Call) -> None:
        self._parked[call] = None

    def _again(self, call: Call, when: float) -> None:
        if call.later:
            call.later.pop(call, None)
        call.later = self._later.add(when, call)

    def _pause(self, call: Call, now: float) -> None:
        """Everybody was asked: begin another round, later."""
        config = self._config
        pause = min(config.request_retry_s * 2 ** min(call.rounds, RETRY_DOUBLINGS_MAX), config.request_retry_s_max)
        pause *= 0.5 + self._jitter.random() / 2
        if call.overload is not None:
            pause = max(pause, call.overload.retry_after)
        call.rounds += 1
        call.tried = ()
        call.overload = None
        self._again(call, now + pause)

    def _reconsider(self, now: float) -> None:
        """Providers came or went."""
        for call in list(self._parked):
            if call in self._parked and (self._choose(call) is not None or not self._blocked(call)):
                del self._parked[call]
                self._try(call, now)

    # -- how a call ends -----------------------------------------------------------------------

    def _end(self, call: Call, now: float, by: PeerRecord | None = None) -> None:
        """Forget a call, and tell whoever still works on it, besides the one that has ended it."""
        del self.outstanding[call.number]
        if call.due:
            call.due.pop(call, None)
        if call.later:
            call.later.pop(call, None)
        if self._parked:
            self._parked.pop(call, None)
        for provider in call.at:
            provider.outstanding -= 1
            if provider.peer is not by:
                self._channels.tell(provider.peer, Cancel(call.number), RECORD_BYTES, now)

    def _fail(self, call: Call, error: FabricError, now: float) -> None:
        self._end(call, now)
        if not call.caller.done():
            call.caller.set_exception(error)

    def _answered(self, peer: PeerRecord, number: int) -> Call | None:
        """The call that this peer has worked on; it does so no more."""
        call = self.outstanding.get(number)
        return call if call is not None and _leaves(call, peer) else None

    # -- what providers say --------------------------------------------------------------------

    def _replied(self, peer: PeerRecord, reply: Reply, now: float) -> None:
        call = self.outstanding.get(reply.number)
        if call is None:
            return
        for provider in call.at:
            if provider.peer is peer:
                break
        else:
            return  # it does not work on it
        self._end(call, now, peer)
        if call.credit:
            call.caller.set_result(reply.body)
        else:
            deliver = self.deliver
            deliver((call.caller, reply.body))

    def _failed(self, peer: PeerRecord, failure: Failure, now: float) -> None:
        call = self._answered(peer, failure.number)
        if call is None:
            return
        name, service = peer.source.name, call.service
        if failure.code in ("absent", "draining", "overloaded"):
            call.tried += (peer.id,)
            if failure.code == "overloaded":
                call.overload = Overloaded(service, name, failure.retry_after_s)
            self._go_on(call, now)
        elif failure.code == "stopped":
            self._lost(call, peer, now)
        elif failure.code == "streams":
            self._fail(call, LocalProtocolError(f"{service!r} streams its reply: use node.stream()"), now)
        else:
            kind = InvalidArguments if failure.code == "arguments" else RemoteError
            self._fail(call, kind(service, name, failure.kind, failure.message, failure.trace), now)

    def _lost(self, call: Call, peer: PeerRecord, now: float) -> None:
        """A provider will not finish what it may have begun."""
        call.tried += (peer.id,)
        if call.idempotent:
            self._go_on(call, now)
        else:
            self._fail(call, ProviderLost(call.service, peer.source.name), now)

    def _go_on(self, call: Call, now: float) -> None:
        if not call.at:
            self._try(call, now)

    def _item(self, peer: PeerRecord, item: Item, now: float) -> None:
        call = self.outstanding.get(item.number)
        if call is not None and call.credit and any(provider.peer is peer for provider in call.at):
            call.caller.add_item(item.body)  # type: ignore[attr-defined] # who gives credit can take items

    def _ended(self, peer: PeerRecord, end: End, now: float) -> None:
        call = self._answered(peer, end.number)
        if call is not None:
            self._end(call, now)
            if call.credit:
                call.caller.end()  # type: ignore[attr-defined] # who gives credit can take items

    # -- who is there --------------------------------------------------------------------------

    def _offered(self, peer: PeerRecord, record: ServiceOffers, now: float) -> None:
        """What a peer, or this node, provides from now on."""
        offers = record.offers[: self._config.services_max]
        self._withdraw(peer, {(offer.service, offer.version) for offer in offers})
        for offer in offers:
            providers = self._providers.setdefault((offer.service, offer.version), [])
            for provider in providers:
                if provider.peer is peer:
                    provider.concurrency = offer.concurrency
                    break
            else:
                providers.append(Provider(peer, offer.concurrency))
        self._offers[peer.id] = tuple(offers)
        self._reconsider(now)

    def _withdraw(self, peer: PeerRecord, kept: set[tuple[str, int]]) -> None:
        """Forget what a peer provided, but for this."""
        for offer in self._offers.get(peer.id, ()):
            key = offer.service, offer.version
            if key not in kept and key in self._providers:
                providers = [provider for provider in self._providers[key] if provider.peer is not peer]
                if providers:
                    self._providers[key] = providers
                else:
                    del self._providers[key]

    def peer_joined(self, peer: PeerRecord, now: float) -> None:
        """Its offers will come."""

    def peer_left(self, peer: PeerRecord, now: float) -> None:
        """A peer is gone, and so are its replies."""
        self._withdraw(peer, set())
        self._offers.pop(peer.id, None)
        for call in list(self.outstanding.values()):
            if self.outstanding.get(call.number) is call and _leaves(call, peer):
                self._lost(call, peer, now)
        self._reconsider(now)

    def has_room(self, peer: PeerRecord, now: float) -> None:
        """A peer takes more."""
        for call in list(self._parked):
            if not self._channels.has_room(peer):
                break
            provider = self._choose(call) if call in self._parked else None
            if provider is not None:
                del self._parked[call]
                self._give(call, provider, now)

    # -- time ----------------------------------------------------------------------------------

    def timer(self) -> float:
        """When `handle_timer` has something to do."""
        return min(self._deadlines.timer(), self._later.timer())

    def handle_timer(self, now: float) -> None:
        """End what took too long; try again what had to wait."""
        for call in self._deadlines.due(now):
            self._fail(call, RequestTimeout(call.service, call.timeout, tuple(self._names(call))), now)
        for call in self._later.due(now):
            if self.outstanding.get(call.number) is not call:
                continue
            call.later = None
            if not call.at or (call.hedge_s < inf and len(call.at) == 1):
                self._parked.pop(call, None)
                self._try(call, now)

    def _names(self, call: Call) -> Iterator[str]:
        return (provider.peer.source.name for provider in call.at)


def _asked(call: Call) -> set[bytes]:
    """Who need not be asked again in this round."""
    return {*call.tried, *(provider.peer.id for provider in call.at)}


def _leaves(call: Call, peer: PeerRecord) -> bool:
    """A peer works on the call no more. Returns whether it did."""
    for provider in call.at:
        if provider.peer is peer:
            provider.outstanding -= 1
            call.at = tuple(other for other in call.at if other is not provider) if len(call.at) > 1 else ()
            return True
    return False


def _deliver(reply: tuple[Caller, msgspec.Raw]) -> None:
    caller, body = reply
    if not caller.done():
        caller.set_result(body)
