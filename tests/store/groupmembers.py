"""Members of a simulated group: nodes with one share each, and their sessions with the store."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import msgspec

from zfabric.config import Config
from zfabric.protocol.peers import PeerRecord
from zfabric.protocol.shares import Parcel, Share, Shares
from zfabric.wire.batch import Batch, BatchWriter, parse_batch
from zfabric.wire.fields import Start
from zfabric.wire.group_records import Skipped
from zfabric.wire.records import Identity

if TYPE_CHECKING:
    from tests.store.groupsim import GroupWorld

CONFIG = Config(group_partitions=8, group_release_s=5.0, group_return_s=4.0, group_commit_s=0.05)


class Broken(AssertionError):
    """A promise was broken; the message begins with its name."""


def parse(frames: list[bytes]) -> Batch:
    """A batch of the simulation."""
    return parse_batch(frames, messages_max=65_536, buffers_max=16, topic_bytes_max=255)


def seal(topic: str, producer: bytes, epoch: int, base: int, values: list[tuple[str, int]]) -> bytes:
    """A batch whose messages are (key, number)."""
    writer = BatchWriter(topic, producer, epoch)
    for key, number in values:
        writer.buffer += msgspec.msgpack.encode(number)
        writer.annotate(key, None, None)
        writer.count += 1
    (frame,) = writer.seal(base, 0)
    return bytes(frame)


class Link:
    """One session between a member's node and the store; each side's voice."""

    def __init__(self, world: GroupWorld, member: Member) -> None:
        self.world = world
        self.member = member
        self.peer = PeerRecord(member.id, Identity(bytes(16), "", member.name, "", 0, (), ()), 0.0)
        self.up = True
        self._last = {"store": 0.0, "member": 0.0}

    def send(self, to: str, deliver: Callable[[], None]) -> None:
        """In order, each way."""
        world = self.world
        at = max(self._last[to], world.now + world.random.uniform(0.0, 0.02) + world.lateness())
        self._last[to] = at
        world.at(at, deliver)


class StoreVoice:
    """How the store speaks to members."""

    def __init__(self, world: GroupWorld) -> None:
        self._world = world

    def tell(self, peer: PeerRecord, record: Any, nbytes: int, now: float) -> None:
        """Over the session that the peer stands for."""
        link = self._world.links.get(peer.id)
        if link is None or not link.up:
            raise Broken(f"told nobody: {record} for a member that is not there")
        link.send("member", lambda: link.member.hear(link, record))

    def has_room(self, peer: PeerRecord) -> bool:
        """Windows are the only bound here."""
        return True


class MemberVoice:
    """How a member speaks to the store."""

    def __init__(self, member: Member) -> None:
        self._member = member

    def tell(self, peer: PeerRecord, record: Any, nbytes: int, now: float) -> None:
        """What was said in a session that has ended arrives all the same."""
        link, world = self._member.link, self._member.world
        if link is not None:
            link.send("store", lambda: world.store_hears(link, record))


class Member:
    """A node with one share, and the loop that works on its messages."""

    def __init__(self, world: GroupWorld, number: int, mode: str, name: str) -> None:
        self.world = world
        self.id = number.to_bytes(16)
        self.name = name
        self.mode = mode
        self.link: Link | None = None
        self.alive = True
        self.stopped_until = 0.0
        self.store_peer = PeerRecord(bytes(15) + b"s", Identity(bytes(16), "", "store", "", 0, (), ()), 0.0)
        self._home: tuple[bytes, PeerRecord] | None = None
        self.shares = Shares(CONFIG, MemberVoice(self), parse, self._not_protocol, lambda *_: self._home)
        self.share: Share = self.shares.join("g", "in.#", name, Start("earliest"), 4000, self, world.now)
        self._working = False
        self._parcel: Parcel | None = None
        self._consumed = 0
        self._bases: Counter[int] = Counter()
        self._transacting: tuple[int, Parcel, int] | None = None
        self._unread: deque[tuple[Link, Any]] = deque()

    def _not_protocol(self, address: str, error: Exception) -> None:
        raise Broken(f"protocol: {error}")

    # -- what happens to it --------------------------------------------------------------------

    def connect(self) -> None:
        """A new session with the store."""
        self.link = self.world.links[self.id] = Link(self.world, self)
        self._home = bytes(16), self.store_peer
        self.shares.stores_changed(self.world.now)
        self.turn()

    def disconnected(self) -> None:
        """The session has ended; a stopped member notices when it wakes."""
        if not self.alive or (self.link is not None and self.link.up):
            return
        if self.stopped_until > self.world.now:
            self.world.at(self.stopped_until + self.world.random.uniform(0, 0.5), self.disconnected)
            return
        self._home = None
        self.shares.stores_changed(self.world.now)
        self.world.at(self.world.now + self.world.random.uniform(0.05, 0.5), self._reconnect)

    def _reconnect(self) -> None:
        if self.alive and self.world.store_up and (self.link is None or not self.link.up):
            self.connect()
        elif self.alive and (self.link is None or not self.link.up):
            self.world.at(self.world.now + 0.3, self._reconnect)

    def hear(self, link: Link, record: Any) -> None:
        """A record arrives; a stopped member reads it when it wakes."""
        self._unread.append((link, record))
        self._read()

    def _read(self) -> None:
        while self._unread:
            if self.stopped_until > self.world.now:
                self.world.at(self.stopped_until, self._read)
                return
            link, record = self._unread.popleft()
            if self.alive and link.up and link is self.link:  # else the session is over
                self.shares.records[type(record)](self.store_peer, record, self.world.now)
                self.turn()

    def turn(self) -> None:
        """The end of a turn of its loop."""
        if not self.alive:
            return
        self.shares.handle_timer(self.world.now)
        self.shares.flush(self.world.now)
        due = self.shares.timer()
        if due < float("inf"):
            self.world.at(max(due, self.world.now + 0.001), self._timer)

    def _timer(self) -> None:
        if self.alive and self.stopped_until <= self.world.now:
            self.turn()

    # -- what its share says -------------------------------------------------------------------

    def arrived(self) -> None:
        """There is work."""
        if not self._working:
            self._working = True
            self.world.at(self.world.now, self._work)

    def dropped(self, partitions: Collection[int] | None) -> None:
        """Let go of what was not begun with."""
        if self._parcel is None:
            return
        if partitions is None:
            self._parcel = self._transacting = None
        elif self.mode != "transactions":
            done = self._consumed
            self.share.progressed(self._parcel, done)
            keep = [(pl, pa) for pl, pa in zip(self._parcel.places, self._parcel.partitions, strict=True)][done:]
            keep = [(place, partition) for place, partition in keep if partition not in partitions]
            self._parcel.places = [place for place, _ in keep]
            self._parcel.partitions = bytes(partition for _, partition in keep)
            self._consumed = 0
            if not keep:
                self.share.done(self._parcel)
                self._parcel = None

    def skipped(self, record: Skipped) -> None:
        """Nothing may be lost here."""
        raise Broken(f"lost: {record}")

    def missing(self) -> None:
        """The store is down for long."""

    def ended(self, reason: str) -> None:
        """Another member took its name."""
        self.alive = False
        self.world.members.remove(self)
        link = self.link
        if link is not None:
            self.world.at(self.world.now, lambda: self.world.lose(self))

    def transacted(self, error: str) -> None:
        """A transaction was stored, or not; then its messages are done again."""
        if self._transacting is None:
            return
        epoch, parcel, consumed = self._transacting
        self._transacting = None
        if epoch != self.share.epoch or parcel is not self._parcel:
            return
        if not error:
            self._bases[epoch] += consumed
            self.share.done(parcel)
            self._parcel = None
        else:
            self._consumed = 0
        self.world.at(self.world.now, self._work)
        self._working = True

    # -- its work ------------------------------------------------------------------------------

    def _work(self) -> None:
        world = self.world
        if not self.alive:
            return
        if self.stopped_until > world.now:
            world.at(self.stopped_until, self._work)
            return
        self._working = False
        if self._parcel is None:
            self._parcel = self.share.pop(manual=False)
            self._consumed = 0
        parcel = self._parcel
        if parcel is None or self._transacting is not None:
            return
        values = msgspec.msgpack.decode(parcel.batch.body)
        if self.mode == "transactions":
            picked = [(parcel.batch.meta.keys[place], values[place]) for place in parcel.places]  # type: ignore[union-attr]
            world.handed(self, parcel, range(len(parcel.places)))
            self._transact(parcel, picked)
        else:
            world.handed(self, parcel, range(self._consumed, self._consumed + 1))
            place = parcel.places[self._consumed]
            world.effect(self, parcel.batch.meta.keys[place], values[place])  # type: ignore[union-attr]
            self._consumed += 1
            if self._consumed == len(parcel.places):
                self.share.progressed(parcel, self._consumed)
                self.share.done(parcel)
                self._parcel = None
            self._working = True
            world.at(world.now + world.random.uniform(0.0, 0.02), self._work)
        self.turn()

    def _transact(self, parcel: Parcel, picked: list[tuple[str, int]]) -> None:
        epoch = self.share.epoch
        self.share.progressed(parcel, len(parcel.places))
        producer = blake2b(self.id + epoch.to_bytes(8), digest_size=16).digest()
        frame = seal("out", producer, 1, self._bases[epoch], picked)
        self._transacting = epoch, parcel, len(picked)
        self.shares.transact(self.share, [[frame]], self.world.now)
