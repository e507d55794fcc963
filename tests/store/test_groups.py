"""Groups under every fault, in virtual time; and each mechanism switched off once, to be caught by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count
from math import inf
from typing import Any

import pytest

from tests.store.groupmembers import CONFIG, Broken
from tests.store.groupsim import GroupWorld
from zfabric.errors import PositionFenced
from zfabric.store import Commit, Key
from zfabric.store.cursors import Cursor, partitions_of
from zfabric.store.group import Group
from zfabric.store.groups import Groups
from zfabric.store.memory import MemoryLog
from zfabric.store.sharing import Ask, Fence, Grant, Member, Sharing

SEEDS = 20


@pytest.mark.parametrize("mode", ["plain", "transactions"])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_groups_keep_their_promises_under_faults(mode: str, seed: int) -> None:
    """Members and the store crash, stop, leave and return: nothing is lost or out of order, no effect stands twice."""
    world = GroupWorld(seed, mode=mode)
    world.play()

    assert world.commits > 20


def test_nothing_comes_twice_when_members_only_come_and_go_in_order() -> None:
    """Cooperative hand-over: members that join while others work repeat nothing.

    Positions are committed `Config.group_commit_s` after they were reached.
    """
    for seed in range(5):
        world = GroupWorld(seed, calm_only=True)
        for step in range(3):
            world.at(2.0 + step, world.join)
        world.play()

        assert len({member.share.epoch for member in world.members}) == 5


# -- saboteurs: each mechanism off, once -----------------------------------------------------------


def caught(mode: str, name: str) -> bool:
    """Whether the promise of that name is broken in one of many runs."""
    for seed in range(200):
        try:
            GroupWorld(seed, mode=mode).play()
        except Broken as broken:
            if str(broken).startswith(f"{name}:"):
                return True
    return False


def test_without_the_epoch_check_stale_commits_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memberships that have ended must not commit."""
    ended: dict[int, Any] = {}
    unseat = Group.unseat
    find = Groups._find

    def remember(self: Group, seat: Any) -> None:
        ended[seat.member.epoch] = self, seat
        unseat(self, seat)

    def trusting(self: Groups, peer: Any, share: int, epoch: int) -> Any:
        group, seat = find(self, peer, share, epoch)
        return (group, seat) if seat is not None else ended.get(epoch, (None, None))

    def on_leave(*_: Any) -> None:
        """Not looked at here."""

    monkeypatch.setattr(Group, "unseat", remember)
    monkeypatch.setattr(Groups, "_find", trusting)
    monkeypatch.setattr(Groups, "_on_leave", on_leave)
    monkeypatch.setattr(Sharing, "owns", lambda *_: True)
    monkeypatch.setattr(Sharing, "fence", lambda *_: None)

    assert caught("plain", "stale commit")


def test_without_waiting_for_the_hand_over_two_owners_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A partition must not go on before its owner has let go."""
    ask = Sharing._ask

    def hasty(self: Sharing, member: Member, partitions: list[int], now: float) -> None:
        ask(self, member, partitions, now)
        self.released(member, partitions, now)

    monkeypatch.setattr(Sharing, "_ask", hasty)

    assert caught("plain", "two owners")


def test_a_new_owner_that_begins_after_what_was_sent_loses_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The new owner must begin at what is committed."""

    def careless(self: Cursor, partitions: Iterable[int]) -> None:
        for partition in partitions:
            self.committed[partition] = self.sent[partition]

    monkeypatch.setattr(Cursor, "rewind", careless)

    assert caught("plain", "lost")


def test_outputs_without_their_position_stand_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and position must be one commit."""
    init = Groups.__init__

    def apart(self: Groups, log: Any, config: Any, voice: Any, commit: Callable[..., None], *rest: Any) -> None:
        def split(whole: Commit, done: Any) -> None:
            if not whole.appends:
                commit(whole, done)
                return
            rest = Commit(positions=whole.positions)
            commit(Commit(whole.appends), lambda error: commit(rest, done) if error is None else done(error))

        init(self, log, config, voice, split, *rest)

    monkeypatch.setattr(Groups, "__init__", apart)

    assert caught("transactions", "effect twice")


def test_a_refused_transaction_that_is_not_taken_back_loses_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be stored must be done again, by whoever has it then."""
    settle = Group.settle
    monkeypatch.setattr(Group, "settle", lambda self, *args, stored, now: settle(self, *args, stored=True, now=now))

    assert caught("transactions", "lost")


# -- the parts -------------------------------------------------------------------------------------


def sharing(partitions: int = 8) -> Sharing:
    """One whose times are short."""
    return Sharing(partitions, count(1), release_s=5.0, return_s=4.0)


def test_partitions_move_only_as_far_as_they_must() -> None:
    """A third member takes from both others, and nothing moves between those."""
    group = sharing(9)
    one = group.join("1", "", 0.0)
    two = group.join("2", "", 0.0)
    group.released(one, sorted(one.asked), 0.0)
    before = set(one.owned), set(two.owned)
    three = group.join("3", "", 1.0)
    group.released(one, sorted(one.asked), 1.0)
    group.released(two, sorted(two.asked), 1.0)

    assert (len(one.owned), len(two.owned), len(three.owned)) == (3, 3, 3)
    assert one.owned <= before[0]
    assert two.owned <= before[1]


def test_a_partition_that_is_not_let_go_in_time_costs_the_membership() -> None:
    """The owner is fenced after `Config.group_release_s`, and only then others get what it had."""
    group = sharing()
    slow = group.join("slow", "", 0.0)
    quick = group.join("quick", "", 1.0)
    group.notices()
    group.handle_timer(5.9)

    assert not quick.owned
    assert group.timer() == 6.0
    group.handle_timer(6.0)

    assert [type(notice) for notice in group.notices()] == [Fence, Grant]
    assert quick.owned == set(range(8))
    assert slow.epoch not in group.members


def test_a_member_with_a_name_keeps_its_partitions_over_a_quick_restart() -> None:
    """Nobody else gets them meanwhile, and its old epoch is worth nothing."""
    group = sharing()
    old = group.join("node1", "billing-1", 0.0)
    other = group.join("node2", "", 0.0)
    group.released(old, sorted(old.asked), 0.0)
    mine = set(old.owned)
    group.lost(old, 1.0)
    group.handle_timer(4.9)
    new = group.join("node3", "billing-1", 4.9)

    assert new.owned == mine
    assert other.owned == set(range(8)) - mine
    assert all(group.owns(new.epoch, p) and not group.owns(old.epoch, p) for p in mine)


def test_a_member_with_a_name_that_stays_away_is_given_up() -> None:
    """After `Config.group_return_s` the others take over."""
    group = sharing()
    old = group.join("node1", "billing-1", 0.0)
    other = group.join("node2", "", 0.0)
    group.lost(old, 1.0)

    assert not other.owned
    assert group.timer() == 5.0
    group.handle_timer(5.0)

    assert other.owned == set(range(8))
    assert group.timer() == inf


def test_two_members_with_one_name_do_not_fight_for_it() -> None:
    """The earlier one is told for good."""
    group = sharing()
    old = group.join("node1", "a", 0.0)
    group.notices()
    new = group.join("node2", "a", 0.0)
    first, second, *_ = group.notices()

    assert first == Fence(old, "another member took the name 'a'", final=True)
    assert second == Grant(new, tuple(range(8)))


def test_more_members_than_partitions_wait_their_turn() -> None:
    """Of `Config.group_partitions`; who has none gets one as soon as one is free."""
    group = sharing(1)
    first = group.join("1", "", 0.0)
    second = group.join("2", "", 0.0)

    assert (len(first.owned), len(second.owned)) == (1, 0)
    assert not any(isinstance(notice, Ask) for notice in group.notices())
    group.leave(first, 0.0)

    assert second.owned == {0}


def test_epochs_are_never_given_twice() -> None:
    """Not by another run of the store, nor to a group whose name was forgotten."""
    world = GroupWorld(3, calm_only=True)
    epochs = []
    for _ in range(2):
        for _ in range(2):
            member = world.join()
            world.run(world.now + 2.0)
            epochs.append(member.share.epoch)
            world.crash(member)
            world.run(world.now + 10.0)
            forgotten: list[Any] = []
            world.groups.forget("g", forgotten.append)
            world.run(world.now + 1.0)
            assert forgotten == [None]
            assert list(world.log.positions()) == ["$groups"]
        world.crash_store()
        world.run(world.now + 2.0)

    assert epochs == sorted(set(epochs))


def test_keys_decide_and_batches_without_keys_stay_together() -> None:
    """Equal keys have equal partitions in every batch; messages without one share their batch's."""
    keys = [Key(0, b"a"), Key(2, b"b"), Key(3, b"a")]
    first, second = partitions_of(0, 5, keys, 64), partitions_of(100, 1, [Key(0, b"a")], 64)

    assert first[0] == first[3] == second[0]
    assert first[1] == first[4]
    assert len({partitions_of(offset, 1, (), 64)[0] for offset in range(64)}) > 20


def test_a_member_is_sent_only_its_own_places() -> None:
    """And after a hand-over only those that were not committed."""
    cursor = Cursor([0] * 4)
    parts = bytes([0, 1, 2, 1, 3])

    assert cursor.choose([1], 10, parts, ()) == ([1, 3], b"\1")
    assert cursor.choose([0, 2, 3], 10, parts, ()) == ([0, 2, 4], bytes([0, 2, 3]))
    assert cursor.refusal({1: 15}) == "partition 1 was sent up to 14, not 15"
    cursor.commit({1: 12})
    cursor.rewind([1, 2])

    assert cursor.choose([1, 2], 10, parts, [(2, 3)]) == ([3], b"\1")
    assert cursor.refusal({1: 12}) == "partition 1 is at 13 already, not before 12"
    assert cursor.position(2) == 15


def test_a_partition_is_no_further_behind_than_its_oldest_open_message() -> None:
    """One that had nothing for long and gets a message is behind by that one, and a new owner begins there."""
    cursor = Cursor([0] * 4)
    cursor.choose([0, 1, 2, 3], 0, bytes([0] * 1000), ())
    cursor.commit({0: 1000})
    cursor.choose([0, 1, 2, 3], 1000, bytes([2, 1, 1, 2]), ())
    assert [cursor.position(partition) for partition in range(4)] == [1004, 1001, 1000, 1004]

    cursor.rewind([1])
    assert cursor.next_scan([1]) == 1001
    assert cursor.choose([1], 1000, bytes([2, 1, 1, 2]), ()) == ([1, 2], b"\1")


def test_an_arbiter_that_was_replaced_can_write_nothing() -> None:
    """The log refuses whatever an earlier term writes."""
    log = MemoryLog(CONFIG)
    world = GroupWorld(3)
    world.log = log
    world.start_store()
    world.join()
    for _ in range(30):
        world.publish()
        world.run(world.now + 0.1)
    (earlier,) = world.groups._groups.values()
    world.crash_store()
    world.run(world.now + 30.0)
    (name,) = [name for name in log.positions("group/g/in.a/") if name.endswith("/0")]
    before = log.position(name)
    earlier.dirty["in.a"] = {0}
    (outcome,) = log.commit([Commit(positions=earlier.take_dirty())])

    assert isinstance(outcome, PositionFenced)
    assert log.position(name) == before
