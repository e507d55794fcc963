"""Channels: records that reach a peer in order and exactly once, as long as both nodes hold each other for peers.

Queues and services talk over channels, so that they need not care for lost connections. What is said in one turn
travels as one numbered letter (or a few); letters are kept until they are acknowledged, and sent again after a
reconnection or a timeout.

A session ends when one side takes the other for gone. That one begins anew when they meet again; the other learns of
it from the new session's first letter, or is told BROKEN where it speaks to the session that ended. Both tell their
machines that the peer left and joined, so what is said in one session was heard in one session, or not at all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from math import inf
from typing import Any, Protocol

import msgspec

from zfabric.config import Config
from zfabric.protocol.effects import Effects
from zfabric.protocol.peers import PeerRecord, PeerTable
from zfabric.wire.letters import LETTER_RECORDS_MAX, Broken, Letter, LetterAck, LetterRecord
from zfabric.wire.records import Identity

__all__ = ["Channels", "Machine"]

LETTER_BYTES = 1024 * 1024
"A letter is closed when it is that long; one record may be longer."
RETRY_DOUBLINGS_MAX = 5
LETTERS_PER_ACK = 16
"So many letters are acknowledged at once; fewer when the ack has waited long enough."


class Machine(Protocol):
    """A state machine that talks over channels. Register it before the first peer joins."""

    records: dict[type[LetterRecord], Callable[[PeerRecord, Any, float], None]]
    "What it wants to hear, and who hears it."

    def peer_joined(self, peer: PeerRecord, now: float) -> None:
        """A channel to this peer begins: nothing has been said, nothing heard."""

    def peer_left(self, peer: PeerRecord, now: float) -> None:
        """The channel is gone: whatever the peer has not answered may or may not have reached it."""

    def has_room(self, peer: PeerRecord, now: float) -> None:
        """The peer has acknowledged something: where `Channels.has_room` said no, it may say yes now."""


class Closed(msgspec.Struct, frozen=True):
    """One letter that is not acknowledged."""

    number: int
    records: list[LetterRecord]
    nbytes: int


class Channel:
    """Both directions of one session with one peer."""

    # fmt: off
    __slots__ = (
        "ack_at", "acked", "doublings", "expected", "kept", "kept_bytes", "next_number", "open", "open_bytes", "peer",
        "retry_at", "session", "theirs", "unsaid"
    )
    # fmt: on

    def __init__(self, peer: PeerRecord, session: int) -> None:
        self.peer = peer
        self.session = session
        self.theirs = 0
        "The peer's session, once it was heard of."
        self.open: list[LetterRecord] = []
        self.open_bytes = 0
        self.unsaid: list[Closed] = []
        self.kept: deque[Closed] = deque()
        self.kept_bytes = 0
        self.next_number = 0
        self.retry_at = inf
        self.doublings = 0
        self.expected = 0
        self.ack_at = inf
        self.acked = 0
        "What the peer was told of `expected`."

    def close_letter(self) -> None:
        """What was said so far becomes one letter. The first may be empty: it tells of the session."""
        if self.open or not self.next_number:
            closed = Closed(self.next_number, self.open, self.open_bytes)
            self.next_number += 1
            self.kept.append(closed)
            self.unsaid.append(closed)
            self.kept_bytes += self.open_bytes
            self.open, self.open_bytes = [], 0

    def timer(self) -> float:
        """When something is due."""
        return min(self.retry_at, self.ack_at)


class Channels:
    """The channels of one node to its peers, and to itself (`own`), which hears at once what it says."""

    def __init__(self, me: bytes, config: Config, effects: Effects, peers: PeerTable) -> None:
        self.own = PeerRecord(me, Identity(bytes(16), "", "", "", 0, (), ()), 0.0)
        self._own_words: deque[LetterRecord] = deque()
        self._hears_itself = False
        self._config = config
        self._bytes_max = config.channel_bytes
        self._effects = effects
        self._peers = peers
        self.unheard: list[LetterRecord] = []
        "While machines are told that a peer left: what it may not have heard."
        self.screen: Callable[[PeerRecord, LetterRecord], LetterRecord | None] | None = None
        "What of a record a peer may say, where peers have identities."
        self._machines: list[Machine] = []
        self._dispatch: dict[type[Any], Callable[[PeerRecord, Any, float], None]] = {}
        self._channels: dict[bytes, Channel] = {}
        self._dirty: dict[bytes, Channel] = {}
        self._timed: dict[bytes, Channel] = {}
        self._sessions = 0

    def register(self, machine: Machine) -> None:
        """Let a machine hear its records, and of peers."""
        self._machines.append(machine)
        self._dispatch.update(machine.records)

    # -- what machines call --------------------------------------------------------------------

    def tell(self, peer: PeerRecord, record: LetterRecord, nbytes: int = 64, now: float = 0.0) -> None:
        """Say something to a peer that has joined, in this turn's letter. `nbytes` is about its length.

        It is taken even where there is no room: machines ask `has_room` before they say what can wait. Those that may
        speak to this node itself give `now`, and must have finished whatever the answer may change.
        """
        if peer is self.own:
            self._tell_itself(record, now)
            return
        channel = self._channels[peer.id]
        letter = channel.open
        if not letter:
            self._dirty[peer.id] = channel
        elif channel.open_bytes + nbytes > LETTER_BYTES or len(letter) >= LETTER_RECORDS_MAX:
            channel.close_letter()
            letter = channel.open
        letter.append(record)
        channel.open_bytes += nbytes

    def _tell_itself(self, record: LetterRecord, now: float) -> None:
        """This node hears itself at once, but not in the middle of what it is hearing."""
        self._own_words.append(record)
        if self._hears_itself:
            return
        self._hears_itself = True
        try:
            while self._own_words:
                record = self._own_words.popleft()
                self._dispatch[type(record)](self.own, record, now)
        finally:
            self._hears_itself = False

    def has_room(self, peer: PeerRecord) -> bool:
        """Whether less than Config.channel_bytes wait for this peer's acknowledgement."""
        channel = self._channels.get(peer.id)
        if channel is None:
            return peer is self.own
        return channel.kept_bytes + channel.open_bytes < self._bytes_max

    @property
    def quiet(self) -> bool:
        """Whether every peer has acknowledged all that was said: so what it said before that has arrived, too."""
        return not any(channel.open or channel.kept for channel in self._channels.values())

    # -- peers ---------------------------------------------------------------------------------

    def peer_joined(self, peer: PeerRecord, now: float) -> None:
        """A peer is there, or there again after a reconnection: then it is told once more what it may lack."""
        channel = self._channels.get(peer.id)
        if channel is None:
            self._begin(peer, now)
        else:
            channel.doublings = 0
            self._say_again(channel, now)

    def peer_left(self, peer: PeerRecord, now: float) -> None:
        """A peer is gone."""
        channel = self._channels.pop(peer.id, None)
        if channel is not None:
            self._dirty.pop(peer.id, None)
            self._timed.pop(peer.id, None)
            self.unheard = [record for letter in channel.kept for record in letter.records] + channel.open
            for machine in self._machines:
                machine.peer_left(peer, now)
            self.unheard = []

    def _begin(self, peer: PeerRecord, now: float) -> Channel:
        self._sessions += 1
        channel = self._channels[peer.id] = self._dirty[peer.id] = Channel(peer, self._sessions)
        for machine in self._machines:
            machine.peer_joined(peer, now)
        return channel

    def _renew(self, channel: Channel, now: float) -> Channel:
        """End the session and begin another."""
        self.peer_left(channel.peer, now)
        return self._begin(channel.peer, now)

    # -- what arrives --------------------------------------------------------------------------

    def heard(self, peer: PeerRecord, letter: Letter, now: float) -> None:
        """A letter."""
        channel = self._channels.get(peer.id)
        if channel is None or letter.session < channel.theirs:
            return
        if letter.yours and letter.yours != channel.session:
            self._peers.tell(peer, Broken(letter.session), now=now)
            return
        if letter.session > channel.theirs > 0:
            if letter.yours:  # it took something from us before it began anew
                self._peers.tell(peer, Broken(letter.session), now=now)
                return
            channel = self._renew(channel, now)
        channel.theirs = letter.session
        if letter.number != channel.expected:
            self._owe_ack(channel, now)
            return
        channel.expected += 1
        if channel.expected - channel.acked >= LETTERS_PER_ACK:
            self._owe_ack(channel, now)
        elif channel.ack_at == inf:
            self._owe_ack(channel, now + self._config.ack_delay_s)
        records, find = letter.records, self._dispatch.get
        if self.screen is not None:
            records = [allowed for record in records if (allowed := self.screen(peer, record)) is not None]
        for record in records:
            handle = find(type(record))
            if handle is not None:  # else it is for a store, and this node is none
                handle(peer, record, now)

    def acked(self, peer: PeerRecord, ack: LetterAck, now: float) -> None:
        """Letters have arrived."""
        channel = self._channels.get(peer.id)
        if channel is None or ack.yours != channel.session or channel.theirs not in (0, ack.session):
            return
        channel.theirs = ack.session
        progressed = False
        while channel.kept and channel.kept[0].number < ack.number:
            channel.kept_bytes -= channel.kept.popleft().nbytes
            progressed = True
        if progressed:
            channel.doublings = 0
            self._await_ack(channel, now)
            for machine in self._machines:
                machine.has_room(peer, now)

    def broken(self, peer: PeerRecord, broken: Broken, now: float) -> None:
        """The peer has ended what our session speaks to."""
        channel = self._channels.get(peer.id)
        if channel is not None and broken.yours == channel.session:
            self._renew(channel, now)

    # -- letters -------------------------------------------------------------------------------

    def flush(self, now: float) -> None:
        """Send what was said since the last time."""
        while self._dirty:
            dirty, self._dirty = self._dirty, {}
            for channel in dirty.values():
                channel.close_letter()
                unsaid, channel.unsaid = channel.unsaid, []
                self._say(channel, unsaid, now)

    def last_words(self, now: float) -> None:
        """Acknowledge all that was heard: this node closes."""
        for channel in self._channels.values():
            if channel.ack_at < inf:
                self._acknowledge(channel, now)

    def _say(self, channel: Channel, letters: Iterable[Closed], now: float) -> None:
        for letter in letters:
            record = Letter(channel.session, channel.theirs, letter.number, letter.records)
            self._peers.tell_bulk(channel.peer, record, letter.nbytes, now=now)
        if channel.ack_at <= now or (channel.ack_at < inf and not channel.acked):
            self._acknowledge(channel, now)  # the first ack travels with the answer to the greeting
        if channel.retry_at == inf:
            self._await_ack(channel, now)

    def _say_again(self, channel: Channel, now: float) -> None:
        """Send everything that is not acknowledged: the other drops what it has, and what follows a hole."""
        channel.unsaid.clear()
        self._say(channel, channel.kept, now)
        self._await_ack(channel, now)

    def _acknowledge(self, channel: Channel, now: float) -> None:
        channel.ack_at = inf
        channel.acked = channel.expected
        self._peers.tell(channel.peer, LetterAck(channel.session, channel.theirs, channel.expected), now=now)

    def _await_ack(self, channel: Channel, now: float) -> None:
        channel.retry_at = now + self._config.channel_retry_s * 2**channel.doublings if channel.kept else inf
        self._timed[channel.peer.id] = channel

    def _owe_ack(self, channel: Channel, when: float) -> None:
        channel.ack_at = when
        self._timed[channel.peer.id] = channel

    # -- time ----------------------------------------------------------------------------------

    def timer(self) -> float:
        """When `handle_timer` has something to do."""
        return min((channel.timer() for channel in self._timed.values()), default=inf)

    def handle_timer(self, now: float) -> None:
        """Acknowledge what is due, and repeat what was not acknowledged."""
        for channel in list(self._timed.values()):
            if channel.ack_at <= now:
                self._acknowledge(channel, now)
            if channel.retry_at <= now:
                channel.doublings = min(channel.doublings + 1, RETRY_DOUBLINGS_MAX)
                self._say_again(channel, now)
            if channel.timer() == inf:
                del self._timed[channel.peer.id]
