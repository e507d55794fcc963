"""The oracle is tested as well: with one mechanism switched off, some seed must fail, for the right reason.

A saboteur patches one method of the protocol. The seeds are few and fixed, so a test that fails here says that the
simulator lost its sight, or that the mechanism can be spared.
"""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from tests.simulation.saboteurs import Saboteur, first_broken, must_be_missed
from zfabric.protocol.inbox import Inbox, ReliableInbox
from zfabric.protocol.interests import Interests
from zfabric.protocol.outbox import Outbox, Reader
from zfabric.protocol.streams import Streams
from zfabric.testing.sim_truth import RULES
from zfabric.testing.simulate import main
from zfabric.wire.batch import Batch
from zfabric.wire.ranges import RangeSet
from zfabric.wire.records import Ack, PatternRequest, Start

SEEDS = range(500)


def acks_are_never_sent(patch: pytest.MonkeyPatch) -> None:
    """A subscriber keeps what it has to itself."""
    patch.setattr(ReliableInbox, "take_ack", _forget_ack)


def _forget_ack(inbox: Any, now: float) -> None:
    inbox._ack_at = inf


def acks_are_not_waited_for(patch: pytest.MonkeyPatch) -> None:
    """A publisher takes everything that it has sent for received and processed."""
    patch.setattr(Outbox, "received_by_all", lambda outbox, *, processed=False: outbox.base)


def acks_are_believed_too_early(patch: pytest.MonkeyPatch) -> None:
    """A publisher takes any ack for one of all that it has sent."""
    real = Outbox.acknowledge

    def acknowledge(outbox: Outbox, reader: Reader, ack: Ack, now: float) -> bool:
        return real(outbox, reader, Ack(ack.lane, ack.topic, ack.epoch, outbox.base, outbox.base), now)

    patch.setattr(Outbox, "acknowledge", acknowledge)


def receipt_counts_as_processing(patch: pytest.MonkeyPatch) -> None:
    """A subscriber says that it has processed what it has received."""
    real = ReliableInbox.take_ack

    def take_ack(inbox: ReliableInbox, now: float) -> Ack | None:
        ack = real(inbox, now)
        return None if ack is None else Ack(ack.lane, ack.topic, ack.epoch, ack.received, ack.received, ack.ranges)

    patch.setattr(ReliableInbox, "take_ack", take_ack)


def repair_is_not_answered(patch: pytest.MonkeyPatch) -> None:
    """A publisher ignores requests for what was lost."""
    patch.setattr(Streams, "repair", lambda streams, peer, repair, now: None)


def repair_is_not_asked_for(patch: pytest.MonkeyPatch) -> None:
    """A subscriber waits for what was lost."""

    def take_repair(inbox: Any, now: float, *, has_room: bool) -> None:
        inbox._repair_at = inf

    patch.setattr(ReliableInbox, "take_repair", take_repair)


def duplicates_are_delivered(patch: pytest.MonkeyPatch) -> None:
    """A reliable subscription takes what it had already."""
    real = ReliableInbox.accept

    def accept(inbox: Any, batch: Batch, now: float) -> None:
        if inbox.expected is not None and batch.end <= inbox.expected:
            inbox.expected = batch.base
            inbox._have = RangeSet()
        real(inbox, batch, now)

    patch.setattr(ReliableInbox, "accept", accept)


def duplicates_are_delivered_at_most_once(patch: pytest.MonkeyPatch) -> None:
    """An at-most-once subscription takes whatever comes."""
    patch.setattr(Inbox, "accept", lambda inbox, batch: (True, None))


def order_is_not_restored(patch: pytest.MonkeyPatch) -> None:
    """A reliable subscription hands on what comes as it comes."""
    real = ReliableInbox.next_batch

    def next_batch(inbox: Any) -> Batch | None:
        found = real(inbox)
        if found is None and inbox._pending and inbox.expected is not None:
            batch: Batch = inbox._pending.pop()
            inbox._pending_bytes -= batch.nbytes
            return batch
        return found

    patch.setattr(ReliableInbox, "next_batch", next_batch)


def old_epochs_are_accepted(patch: pytest.MonkeyPatch) -> None:
    """Batches of a stream that has been begun anew still count."""
    real = Inbox.accept

    def accept(inbox: Inbox, batch: Batch) -> tuple[bool, tuple[int, int] | None]:
        return (True, None) if batch.epoch < inbox.epoch else real(inbox, batch)

    patch.setattr(Inbox, "accept", accept)
    patch.setattr(Inbox, "late", lambda inbox, batch: None)


def positions_are_not_told(patch: pytest.MonkeyPatch) -> None:
    """A publisher does not repeat how far it has come."""

    def tell(streams: Streams, outbox: Outbox, now: float) -> None:
        outbox.position_at = inf

    patch.setattr(Streams, "_tell_positions", tell)


def losses_are_not_announced(patch: pytest.MonkeyPatch) -> None:
    """Nobody says what did not arrive."""
    patch.setattr(Streams, "count_lost", lambda streams, gap: None)


def gaps_are_invented(patch: pytest.MonkeyPatch) -> None:
    """A reliable subscription gives up what it was just about to ask for."""
    patch.setattr(ReliableInbox, "take_repair", _give_up)


def _give_up(inbox: ReliableInbox, now: float, *, has_room: bool) -> None:
    inbox.close(now)
    inbox._repair_at = inf
    inbox._ack_at = now + 0.01


def the_window_is_endless(patch: pytest.MonkeyPatch) -> None:
    """A publisher never waits for its readers."""
    real = Outbox._settle

    def settle(outbox: Outbox, now: float) -> None:
        real(outbox, now)
        outbox.full, outbox.full_since = False, inf

    patch.setattr(Outbox, "_settle", settle)


def the_window_forgets(patch: pytest.MonkeyPatch) -> None:
    """A publisher keeps nothing that it has sent."""
    real = Outbox._settle

    def settle(outbox: Outbox, now: float) -> None:
        while len(outbox._unacked) > 1:
            outbox.waiting_bytes -= outbox._unacked.popleft().nbytes
        real(outbox, now)

    patch.setattr(Outbox, "_settle", settle)


def nobody_is_evicted(patch: pytest.MonkeyPatch) -> None:
    """A stuck reader may hold everybody up for ever."""
    patch.setattr(Outbox, "slowest", lambda outbox: iter(()))


def nobody_is_given_up(patch: pytest.MonkeyPatch) -> None:
    """Readers that are gone are waited for without end."""
    real = Streams.give_up_reader

    def give_up_reader(streams: Streams, outbox: Outbox, reader: Reader, reason: str, now: float) -> None:
        if reason == "away":
            reader.away_since = now
        else:
            real(streams, outbox, reader, reason, now)

    patch.setattr(Streams, "give_up_reader", give_up_reader)


def there_is_no_grace(patch: pytest.MonkeyPatch) -> None:
    """Readers are given up the moment that they are away."""
    real = Interests._detach

    def detach(
        interests: Any, peer: Any, outbox: Outbox, key: tuple[bytes, int], now: float, *, for_good: bool
    ) -> None:
        real(interests, peer, outbox, key, now, for_good=True)

    patch.setattr(Interests, "_detach", detach)


def evicted_readers_stay_out(patch: pytest.MonkeyPatch) -> None:
    """A subscription that was evicted is never let in again."""
    patch.setattr(Interests, "resume", lambda interests, peer, record, now: None)


def restarted_subscribers_are_strangers(patch: pytest.MonkeyPatch) -> None:
    """A subscriber that was started again begins where any other would."""

    def returning(outbox: Outbox, peer_id: bytes, name: str, request: PatternRequest) -> Reader | None:
        return outbox.readers.get((peer_id, request.lane))

    patch.setattr(Outbox, "returning", returning)


def every_start_is_latest(patch: pytest.MonkeyPatch) -> None:
    """Subscriptions begin with the next message, whatever they asked for."""
    patch.setattr(Outbox, "start_of", lambda outbox, start, now: outbox.base)


def every_start_is_earliest(patch: pytest.MonkeyPatch) -> None:
    """Subscriptions begin with what is kept, whatever they asked for."""
    patch.setattr(Outbox, "start_of", lambda outbox, start, now: outbox.first_kept)


def history_is_not_kept(patch: pytest.MonkeyPatch) -> None:
    """A publisher forgets what everybody has acknowledged."""
    real = Outbox.__init__

    def init(outbox: Outbox, *arguments: Any, **options: Any) -> None:
        real(outbox, *arguments, **{**options, "history": min(1, options["history"])})

    patch.setattr(Outbox, "__init__", init)


def offers_are_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    """A subscription gets what it did not ask for."""
    real = Streams.take

    def take(streams: Streams, peer: Any, batch: Batch, lanes: tuple[Any, ...], now: float) -> None:
        real(streams, peer, batch, lanes, now)
        for lane in lanes:
            if lane.request.delivery and not lane.best_effort and not batch.reliable:
                lane.sink.deliver(batch, peer.source)

    patch.setattr(Streams, "take", take)


def reordering_has_no_bound(patch: pytest.MonkeyPatch) -> None:
    """A full subscription is handed more and more."""
    real = Streams._drain

    def drain(streams: Any, lane: Any, peer: Any, inbox: Any, now: float, *, wait: bool = True) -> None:
        real(streams, lane, peer, inbox, now, wait=False)

    patch.setattr(Streams, "_drain", drain)


def leftovers_are_dropped(patch: pytest.MonkeyPatch) -> None:
    """What a producer that is gone left behind is never handed on."""
    patch.setattr(Streams, "_finish", lambda streams, peer, now: None)


def interests_are_not_repeated(patch: pytest.MonkeyPatch) -> None:
    """A peer that reconnects is not told again what is published and read here."""
    real = Interests.peer_joined

    def peer_joined(interests: Any, peer: Any, now: float) -> None:
        if peer.id not in interests.remote:
            real(interests, peer, now)

    patch.setattr(Interests, "peer_joined", peer_joined)


STUCK = {"stuck-acks", "stuck-delivery", "stuck-flush", "stuck-reader", "held-up"}

CASES: list[tuple[Saboteur, set[str]]] = [
    (acks_are_never_sent, STUCK),
    (acks_are_not_waited_for, {"confirmed-not-received", "confirmed-not-processed", "dropped-unacked"}),
    (acks_are_believed_too_early, {"confirmed-not-received", "dropped-unacked", "restart", "confirmed-not-processed"}),
    (receipt_counts_as_processing, {"confirmed-not-processed", "restart"}),
    (repair_is_not_answered, {"stuck-delivery", "hole-without-cause"}),
    (repair_is_not_asked_for, {"stuck-delivery"}),
    (duplicates_are_delivered, {"duplicate"}),
    (duplicates_are_delivered_at_most_once, {"duplicate", "order", "false-gap"}),
    (order_is_not_restored, {"order", "silent-hole"}),
    (old_epochs_are_accepted, {"fencing", "duplicate"}),
    (positions_are_not_told, {"stuck-announcement", "stuck-delivery", "stuck-acks"}),
    (losses_are_not_announced, {"silent-hole", "stuck-announcement", "swallowed"}),
    (gaps_are_invented, {"hole-without-cause"}),
    (the_window_is_endless, {"window"}),
    (the_window_forgets, {"dropped-unacked"}),
    (nobody_is_evicted, {"held-up"}),
    (nobody_is_given_up, {"stuck-reader"}),
    (there_is_no_grace, {"evicted-early"}),
    (evicted_readers_stay_out, {"stuck-attach"}),
    (restarted_subscribers_are_strangers, {"restart"}),
    (every_start_is_latest, {"start"}),
    (every_start_is_earliest, {"start"}),
    (history_is_not_kept, {"retention", "start"}),
    (offers_are_not_looked_at, {"incompatible"}),
    (reordering_has_no_bound, {"memory"}),
    (leftovers_are_dropped, {"swallowed"}),
    (interests_are_not_repeated, {"stuck-attach", "stuck-delivery", "stuck-announcement", "stuck-acks"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("saboteur", "rules"), CASES, ids=lambda value: getattr(value, "__name__", None))
def test_a_mechanism_that_is_switched_off_is_missed(
    monkeypatch: pytest.MonkeyPatch, saboteur: Saboteur, rules: set[str]
) -> None:
    """Some seed fails, and the rule that it violates is one that the mechanism is there for."""
    must_be_missed(monkeypatch, saboteur, rules, SEEDS)


def test_a_failure_tells_how_to_see_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command stops at the first failure, prints rule, trace and replay line, and exits with the rule's code."""
    there_is_no_grace(monkeypatch)

    code = main(["--seeds", "120"])

    printed = capsys.readouterr().out
    assert code == RULES["evicted-early"][0]
    assert "evicted-early" in printed
    assert " event " in printed
    assert "replay: python -m zfabric.testing.simulate --seed " in printed


def test_a_wrong_payload_is_invented(monkeypatch: pytest.MonkeyPatch) -> None:
    """Payloads are compared with what was published, value by value."""
    monkeypatch.setattr("zfabric.testing.sim_oracle.payload", lambda key, seq, size: [key[0].hex(), seq])

    outcome = first_broken(range(20))

    assert outcome is not None
    assert outcome.rule == "invented"


def test_an_exception_of_the_core_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the core raises becomes a violation with its seed."""

    def broken(outbox: Outbox, start: Start, now: int) -> int:
        raise KeyError("gone")

    monkeypatch.setattr(Outbox, "start_of", broken)

    outcome = first_broken(range(20))

    assert outcome is not None
    assert outcome.rule == "exception"
    assert "KeyError" in outcome.report()
