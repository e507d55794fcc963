"""Queues at-most-once in a simulator of their own: what is lost is counted, neither too low nor without a cause."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from math import inf
from typing import cast

import pytest

from tests.simulation.plain_jobs import Broken, World
from zfabric.protocol.effects import DisconnectPush, Effects
from zfabric.protocol.plainqueue import PlainQueue
from zfabric.protocol.plainqueues import PlainQueues
from zfabric.protocol.plainsink import PlainSink

SEEDS = 2000
SABOTAGED_SEEDS = 300


@pytest.mark.slow
def test_the_books_agree_under_every_fault() -> None:
    """Nothing is read twice or counted as done unread; what nobody read is lost, and little else."""
    totals: Counter[str] = Counter()
    for seed in range(SEEDS):
        world = World(seed)
        try:
            world.run()
        except Broken as broken:
            raise AssertionError(f"seed {seed}: {broken}") from broken
        totals.update(world.faults)
        for node in world.pushers:
            counters = cast("PlainQueue", node.queue).counters
            totals.update(done=counters.done, lost=counters.lost, excused=world.excused[node.id])
    assert {kind for kind in ("join", "crash", "close", "part", "reset", "move") if totals[kind] < SEEDS // 2} == set()
    assert totals["done"] > 100 * SEEDS
    assert totals["lost"] > 50 * SEEDS
    assert totals["excused"] < totals["lost"] // 4, "else too much is forgiven"


Saboteur = Callable[[pytest.MonkeyPatch], None]


def losses_are_not_reported(patch: pytest.MonkeyPatch) -> None:
    """They are counted alone."""
    patch.setattr(PlainQueue, "take_lost", lambda queue: 0)


def one_puller_beyond_is_enough(patch: pytest.MonkeyPatch) -> None:
    """What the others may have is lost."""

    def judge(queue: PlainQueue) -> None:
        floor = max((target.before for target in queue.targets.values()), default=queue._unsent_from)
        lost = [parcel for first, parcel in queue._sent.items() if first < floor]
        for parcel in lost:
            queue._end(parcel)
            queue.counters.lost += parcel.count
            queue._lost += parcel.count

    patch.setattr(PlainQueue, "_judge", judge)


def pushers_do_not_ask(patch: pytest.MonkeyPatch) -> None:
    """Silence stays silence."""
    real = PlainQueue.to_mark
    patch.setattr(PlainQueue, "to_mark", lambda queue, now: real(queue, now)[:0])


def marks_are_answered_at_once(patch: pytest.MonkeyPatch) -> None:
    """Though batches wait to be read."""

    def marked(sink: PlainSink, peer_id: bytes, before: int, now: float) -> None:
        if peer_id in sink.origins:
            sink.origins[peer_id].before = before
            sink._report(peer_id, sink.origins[peer_id])

    patch.setattr(PlainSink, "marked", marked)


def closing_pullers_keep_what_they_know(patch: pytest.MonkeyPatch) -> None:
    """What their readers were through with is not told."""
    real = PlainSink.close

    def close(sink: PlainSink, now: float) -> None:
        for origin in sink.origins.values():
            origin.taken = []
        real(sink, now)

    patch.setattr(PlainSink, "close", close)


def sessions_are_not_told_apart(patch: pytest.MonkeyPatch) -> None:
    """A puller goes on as if nothing had been."""
    patch.setattr(PlainSink, "lost", lambda sink, peer_id: None)


def lost_nodes_stay_pullers(patch: pytest.MonkeyPatch) -> None:
    """And are waited for."""
    patch.setattr(PlainQueues, "peer_left", lambda queues, peer: None)


def connections_stay(patch: pytest.MonkeyPatch) -> None:
    """To pullers that are gone, too."""
    real = Effects.do
    patch.setattr(
        Effects, "do", lambda effects, action: None if isinstance(action, DisconnectPush) else real(effects, action)
    )


def reports_count_for_nothing(patch: pytest.MonkeyPatch) -> None:
    """What is read counts as lost."""
    real = PlainQueue.taken
    patch.setattr(PlainQueue, "taken", lambda queue, key, ranges, before, now: real(queue, key, (), before, now))


def what_is_not_sent_can_be_behind(patch: pytest.MonkeyPatch) -> None:
    """A new puller is beyond all that will ever be."""
    real = PlainQueue.join

    def join(queue: PlainQueue, key: tuple[bytes, int], endpoint: str) -> None:
        real(queue, key, endpoint)
        queue.targets[key].before = 10**9

    patch.setattr(PlainQueue, "join", join)


def pullers_that_move_are_not_followed(patch: pytest.MonkeyPatch) -> None:
    """Their pushers keep connections to nowhere."""
    patch.setattr(PlainSink, "moved", lambda sink, endpoints: None)


def pushers_do_not_wait(patch: pytest.MonkeyPatch) -> None:
    """However much they hold."""
    patch.setattr(PlainQueue, "full", property(lambda queue: False))


def pullers_that_do_not_look_answer(patch: pytest.MonkeyPatch) -> None:
    """One whose socket is full of one pusher's jobs says that it has none of another's."""
    real = PlainSink.handle_timer

    def handle_timer(sink: PlainSink, now: float) -> None:
        nbytes, sink.nbytes = sink.nbytes, 0
        real(sink, now)
        sink.nbytes = nbytes

    patch.setattr(PlainSink, "handle_timer", handle_timer)


def pullers_take_all_there_is(patch: pytest.MonkeyPatch) -> None:
    """However much waits for their readers."""
    patch.setattr(PlainSink, "full", property(lambda sink: False))


def readers_tell_at_the_end_alone(patch: pytest.MonkeyPatch) -> None:
    """When they are asked."""
    real = PlainSink.done

    def done(sink: PlainSink, now: float) -> None:
        real(sink, now)
        for origin in sink.origins.values():
            origin.tell_at = inf

    patch.setattr(PlainSink, "done", done)


SABOTEURS: Iterable[Saboteur] = [
    losses_are_not_reported,
    one_puller_beyond_is_enough,
    pushers_do_not_ask,
    marks_are_answered_at_once,
    closing_pullers_keep_what_they_know,
    sessions_are_not_told_apart,
    lost_nodes_stay_pullers,
    connections_stay,
    reports_count_for_nothing,
    what_is_not_sent_can_be_behind,
    pullers_that_move_are_not_followed,
    pushers_do_not_wait,
    pullers_that_do_not_look_answer,
    pullers_take_all_there_is,
    readers_tell_at_the_end_alone,
]


@pytest.mark.parametrize("saboteur", SABOTEURS, ids=lambda saboteur: saboteur.__name__)
def test_a_mechanism_that_is_switched_off_is_missed(monkeypatch: pytest.MonkeyPatch, saboteur: Saboteur) -> None:
    """In some seed."""
    saboteur(monkeypatch)
    with pytest.raises(Broken):
        run_all(SABOTAGED_SEEDS)


def run_all(seeds: int) -> None:
    """Raises Broken."""
    for seed in range(seeds):
        World(seed).run()
