"""A simulated store with groups and their members: virtual time, one seed, every fault that a group must survive.

The network is weaker than the real channels: what was said in a session that has ended still arrives, late. Members
stop and wake, crash, leave and come back; the store crashes and loses what it had not stored. After the faults comes a
calm, in which everything must be done.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from random import Random
from typing import Any

import msgspec

from tests.store.groupmembers import CONFIG, Broken, Link, Member, StoreVoice, parse, seal
from zfabric.errors import NotStored
from zfabric.protocol.peers import PeerRecord
from zfabric.protocol.shares import Parcel
from zfabric.store import Commit, StoredBatch
from zfabric.store.group import Group
from zfabric.store.groups import Groups
from zfabric.store.keeper import append_of
from zfabric.store.memory import MemoryLog
from zfabric.wire.group_records import Move

KEYS = 12
TIMEOUT_S = 3.0
"""Silence after which the store takes a member for lost."""


class GroupWorld:
    """Everything together."""

    def __init__(self, seed: int, *, mode: str = "plain", calm_only: bool = False) -> None:
        self.random = Random(seed)
        self.mode = mode
        self.calm_only = calm_only
        self.now = 0.0
        self.faulty = not calm_only
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._order = count()
        self.log = MemoryLog(CONFIG)
        self.links: dict[bytes, Link] = {}
        self.members: list[Member] = []
        self._numbers = count(1)
        self.published: dict[str, list[int]] = {}
        self.effects: list[tuple[int, str, int]] = []
        "(member, key, number), in order."
        self.store_up = False
        self._run = 0
        self._steps = 0
        self.commits = self.handovers = self.crashes = 0
        self.start_store()

    # -- time ----------------------------------------------------------------------------------

    def at(self, when: float, call: Callable[[], object]) -> None:
        """Call it then."""
        heapq.heappush(self._events, (max(when, self.now), next(self._order), call))

    def lateness(self) -> float:
        """Most of the time the network is quick."""
        return self.random.uniform(0.1, 1.5) if self.faulty and self.random.random() < 0.02 else 0.0

    def run(self, until: float) -> None:
        """Let time pass."""
        while self._events and self._events[0][0] <= until:
            self.now, _, call = heapq.heappop(self._events)
            call()
            self._steps += 1
            if not self._steps % 16:
                self._check_owners()
        self.now = until

    # -- the store -----------------------------------------------------------------------------

    def start_store(self) -> None:
        """A new run of the store over the same log."""
        self.store_up = True
        self._run += 1
        run = self._run
        self._queue: list[tuple[Commit, Callable[[Any], None]]] = []

        def commit(commit: Commit, done: Callable[[Any], None]) -> None:
            if run == self._run:
                self._queue.append((commit, done))
                self.at(self.now + self.random.uniform(0.001, 0.01), lambda: self._write(run))

        self.groups = Groups(self.log, CONFIG, StoreVoice(self), commit, lambda: self._soon(run))
        self._watch(self.groups)
        self._soon(run)

    def _watch(self, groups: Groups) -> None:
        find = groups._find
        world = self

        def watched(peer: PeerRecord, share: int, epoch: int) -> Any:
            group, seat = find(peer, share, epoch)
            if group is not None and not getattr(group, "watched", False):
                for verb in ("commit", "begin"):
                    setattr(group, verb, world._checked(group, verb))
                group.watched = True  # type: ignore[attr-defined]
            return group, seat

        groups._find = watched  # type: ignore[method-assign]

    def _checked(self, group: Group, verb: str) -> Callable[..., Any]:
        original = getattr(group, verb)

        def check(*arguments: Any) -> Any:
            moves: list[Move] = arguments[-1]
            speaker = arguments[0].member.epoch if verb == "commit" else self._speaker
            for move in moves:
                for partition in move.ends:
                    owner = group.sharing.owner(partition)
                    if owner is None or owner.epoch != speaker or speaker not in group.sharing.members:
                        raise Broken(f"stale commit: of epoch {speaker} for partition {partition}, owned by {owner}")
            self.commits += 1
            return original(*arguments)

        return check

    def _write(self, run: int) -> None:
        """The disk takes the oldest commit; now and then it is full."""
        if run != self._run or not self._queue:
            return
        commit, done = self._queue.pop(0)
        if self.faulty and commit.appends and self.random.random() < 0.03:
            done(NotStored("the disk is full"))
            return
        (outcome,) = self.log.commit([commit])
        if isinstance(outcome, NotStored):
            raise Broken(f"refused: {outcome}")
        done(None)

    def _soon(self, run: int) -> None:
        self.at(self.now, lambda: self._turn(run))

    def _turn(self, run: int) -> None:
        if run != self._run or not self.store_up:
            return
        self.groups.handle_timer(self.now) if self.groups.timer() <= self.now else None
        self.groups.flush(self.now)
        for group, read in list(self.groups.reads()):
            at = self.now + self.random.uniform(0.0, 0.01)
            self.at(at, lambda group=group, read=read: self._serve(run, group, read))  # type: ignore[misc]
        if self.groups.timer() < float("inf"):
            self.at(self.groups.timer(), lambda: self._turn(run))

    def _serve(self, run: int, group: Group, read: Any) -> None:
        if run == self._run and self.store_up:
            items = self.log.read(read.stream, read.offset, self.random.choice([1, 500, 5000]))
            self.groups.serve(group, read, items, self.now)

    def store_hears(self, link: Link, record: Any) -> None:
        """A record arrives at the store, perhaps from a session that is over."""
        if not self.store_up:
            return
        self._speaker = getattr(record, "epoch", 0)
        if type(record).__name__ == "Join" and not link.up:
            return  # a session that is over begins nothing
        self.groups.records[type(record)](link.peer, record, self.now)
        self._soon(self._run)

    def crash_store(self) -> None:
        """What was not written is lost; a new run begins a little later."""
        self.crashes += 1
        self.store_up = False
        self._run += 1
        for link in self.links.values():
            link.up = False
        for member in self.members:
            member.disconnected()
        self.at(self.now + self.random.uniform(0.1, 1.0), self.start_store)

    # -- members -------------------------------------------------------------------------------

    def join(self, name: str = "") -> Member:
        """A new member."""
        member = Member(self, next(self._numbers), self.mode, name)
        self.members.append(member)
        member._reconnect()
        return member

    def lose(self, member: Member) -> None:
        """The store takes a member for lost."""
        link = self.links.get(member.id)
        if link is not None and link.up:
            link.up = False
            if self.store_up:
                self.groups.peer_left(link.peer, self.now)
            member.disconnected()

    def crash(self, member: Member) -> None:
        """Killed; the store notices at once, or later."""
        member.alive = False
        self.members.remove(member)
        link = member.link
        if link is not None:
            self.at(self.now + self.random.choice([0.0, TIMEOUT_S]), lambda: self.lose(member))
        if member.name:
            self.at(self.now + self.random.uniform(0.1, 6.0), lambda: self.join(member.name))

    def stop(self, member: Member) -> None:
        """SIGSTOP for a while; longer than the timeout is a loss."""
        member.stopped_until = self.now + self.random.uniform(0.1, 3 * TIMEOUT_S)
        link = member.link
        if member.stopped_until - self.now > TIMEOUT_S and link is not None:
            self.at(self.now + TIMEOUT_S, lambda: self.lose(member) if member.link is link else None)

    # -- publishing ----------------------------------------------------------------------------

    def publish(self) -> None:
        """One batch of messages with keys."""
        topic = self.random.choice(["in.a", "in.b"])
        values = []
        for _ in range(self.random.randint(1, 8)):
            key = f"{topic}{self.random.randrange(KEYS)}"
            numbers = self.published.setdefault(key, [])
            values.append((key, len(numbers)))
            numbers.append(len(numbers))
        producer = topic.encode().ljust(16, b".")
        mark = self.log.mark(producer, topic)
        base = 0 if mark is None else mark.next
        frame = seal(topic, producer, 1, base, values)
        self.log.commit([Commit([append_of(parse([frame]))])])
        if self.store_up:
            self.groups.appended(topic, self.log.info(topic).next)  # type: ignore[union-attr]

    # -- what happened -------------------------------------------------------------------------

    def handed(self, member: Member, parcel: Parcel, places: range) -> None:
        """A member begins with messages."""

    def effect(self, member: Member, key: str, number: int) -> None:
        """A member has processed a message."""
        self.effects.append((id(member), key, number))

    def _check_owners(self) -> None:
        """Among memberships that are in force nobody believes to own what another one does."""
        if not self.store_up:
            return
        for group in self.groups._groups.values():
            owners: dict[int, int] = {}
            for member in self.members:
                share = member.share
                if share.epoch in group.sharing.members:
                    for partition in share.owned:
                        other = owners.setdefault(partition, share.epoch)
                        if other != share.epoch:
                            raise Broken(f"two owners: of partition {partition}, epochs {other} and {share.epoch}")

    # -- a whole run ---------------------------------------------------------------------------

    def fault(self) -> None:
        """Something happens."""
        kind = self.random.random()
        if kind < 0.3 and len(self.members) < 6:
            self.join(self.random.choice(["", "", "one", "two"]))
        elif kind < 0.5 and len(self.members) > 1:
            self.crash(self.random.choice(self.members))
        elif kind < 0.7 and self.members:
            self.stop(self.random.choice(self.members))
        elif kind < 0.8 and self.members:
            self.lose(self.random.choice(self.members))
        elif kind < 0.9 and self.store_up:
            self.crash_store()
        elif self.members and self.members[0].share.epoch:
            member = self.random.choice(self.members)
            member.shares.rejoin(member.share, self.now)
            member.turn()

    def play(self, faults: int = 25) -> None:
        """Faults, then a calm; raises Broken."""
        self.join()
        self.join("one")
        for step in range(faults * 4):
            self.publish()
            if self.faulty and step % 4 == 0:
                self.fault()
            self.run(self.now + self.random.uniform(0.05, 0.5))
        self.faulty = False
        if not self.members:
            self.join()
        self.run(self.now + 60.0)
        self._check_end()

    def _check_end(self) -> None:
        for info in self.groups.describe():
            if any(stream.position < stream.next for stream in info.streams.values()):
                raise Broken(f"no progress: {info}")
        if self.mode == "transactions":
            self._check_outputs()
            return
        seen: dict[str, list[int]] = {}
        for _, key, number in self.effects:
            seen.setdefault(key, []).append(number)
        for key, numbers in self.published.items():
            found = seen.get(key, [])
            if missing := sorted(set(numbers) - set(found)):
                raise Broken(f"lost: {missing} of {key}")
            firsts = list(dict.fromkeys(found))
            if firsts != sorted(firsts):
                raise Broken(f"order: {key} came as {firsts}")
            if self.calm_only and len(found) != len(numbers):
                raise Broken(f"twice: {key} came as {found} although nothing happened")

    def _check_outputs(self) -> None:
        seen: dict[str, list[int]] = {}
        offset = 0
        while items := self.log.read("out", offset, 1_000_000):
            for item in items:
                assert isinstance(item, StoredBatch)
                batch = parse(list(item.frames))
                assert batch.meta is not None
                for place, value in enumerate(msgspec.msgpack.decode(batch.body)):
                    seen.setdefault(batch.meta.keys[place], []).append(value)
                offset = item.next
        for key, numbers in self.published.items():
            found = seen.get(key, [])
            if missing := sorted(set(numbers) - set(found)):
                raise Broken(f"lost: {missing} of {key}")
            if len(found) != len(set(found)):
                raise Broken(f"effect twice: {key} came as {found}")
            if found != numbers:
                raise Broken(f"order: {key} came as {found}")
