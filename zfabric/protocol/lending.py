"""Large buffers lent to peers in shared memory, so that no byte of them crosses a socket.

A node lends only where every peer that listens to the topic has proved that it can map the memory (`Mapped`). A block
is used again when all holders of its loan have told that they do not hold it (`Returned`). What cannot be waited
for (a peer that left, a loan too old while memory runs short) is given up: that block is never written again, and
its memory is freed when the last process that maps it lets go.

A loan that gets lost on the way is known to be lost by the next one that arrives, because the numbers of loans only
grow on the way to each peer; one that is overtaken counts as lost, and its batch as any other that did not arrive.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from zfabric.config import Config
from zfabric.errors import RemoteProtocolError
from zfabric.protocol.outbox import Outbox
from zfabric.protocol.peers import PeerRecord, PeerTable
from zfabric.wire.batch import Buffer
from zfabric.wire.loans import Block, Loan, MemoryOffer, encode_loan, proof_of
from zfabric.wire.records import Mapped, Returned

__all__ = ["Lending", "LoanLost", "Memory"]

HELD_MAX = 1000
"Loans of one peer that are held at one time; what comes beyond is copied, and returned at once."


class Memory(Protocol):
    """Blocks of memory that other processes can map, and those of others."""

    offer: MemoryOffer

    secret: bytes
    "What the file of the offer holds."

    def secret_of(self, pid: int, offer: MemoryOffer) -> bytes | None:
        """The secret in another process's file, if it can be read."""

    def take(self, nbytes: int) -> memoryview | None:
        """A free block to write to; it is not used again while anybody refers to the view. None: there is none."""

    def block_of(self, buffer: Buffer) -> Block | None:
        """Where a buffer is, if it is a block that `take` gave, or a view of all of it."""

    def lend(self, serial: int) -> None:
        """Do not use a block again until it is returned."""

    def returned(self, serial: int) -> None:
        """Use a block again as soon as no view refers to it."""

    def give_up(self, serial: int) -> None:
        """Never use a block again."""

    def give_up_viewed(self) -> None:
        """Never use again what views refer to: this process is about to be copied."""

    def map(self, pid: int, name: str, block: Block, gone: Callable[[], object]) -> memoryview:
        """Another process's block, read-only. `gone` is called, in any thread, when nobody refers to it any more.

        Raises OSError if it cannot be mapped, FileNotFoundError if it is not there, RemoteProtocolError if it is
        none.
        """

    def forget(self, name: str) -> None:
        """A node is gone: let go of what was mapped of its blocks; views stay good."""

    def close(self) -> None:
        """Let go of everything; views stay good."""


class LoanLost(Exception):
    """A batch's buffers cannot be had any more, or were never for this node."""


class _Lent:
    """A loan of this node's."""

    __slots__ = ("at", "holders", "serials")

    def __init__(self, holders: set[bytes], serials: list[int], now: float) -> None:
        self.holders = holders
        self.serials = serials
        self.at = now


class _Borrowed:
    """What this node holds of one peer's."""

    __slots__ = ("held", "horizon", "kept", "newest", "peer_id")

    def __init__(self, peer_id: bytes) -> None:
        self.peer_id = peer_id
        self.horizon = 0
        self.newest = 0
        "The last of its blocks that was mapped for the first time."
        self.held: dict[int, int] = {}
        "How many buffers of each loan are referred to."
        self.kept: set[int] = set()


class Lending:
    """Both ends: what this node lends, and what it holds of others'."""

    def __init__(self, me: bytes, config: Config, peers: PeerTable, memory: Memory | None) -> None:
        self._me = me
        self._config = config
        self._peers = peers
        self._memory = memory
        self.wake: Callable[[], None] = lambda: None
        "Called in any thread when `flush` has something to tell."
        self.lent = 0
        self.not_lent = 0
        self._number = 0
        self._mapping: set[bytes] = set()
        self._loans: dict[int, _Lent] = {}
        self._known: dict[bytes, set[int]] = {}
        "The blocks that each peer has mapped."
        self._borrowed: dict[bytes, _Borrowed] = {}
        self._changed: set[bytes] = set()
        "Peers that are to be told what is held of theirs."
        self._gone: deque[tuple[_Borrowed, int]] = deque()
        self._woken = False

    @property
    def offer(self) -> MemoryOffer | None:
        """What greetings say of this node's memory."""
        return None if self._memory is None else self._memory.offer

    # -- who can ---------------------------------------------------------------------------------

    def greeted(self, peer: PeerRecord, now: float) -> None:
        """A peer greeted again: what it was told may have been lost with the connection."""
        if peer.id in self._borrowed:
            self.followed(peer, now)

    def followed(self, peer: PeerRecord, now: float) -> None:
        """This node gets a peer's batches now: if it is on this host, prove that its memory can be mapped from here.

        Not when they meet: to look costs as much as the whole greeting, and most of a mesh publish nothing for us.
        """
        memory, offer = self._memory, peer.identity.memory
        if memory is None or offer is None or peer.identity.host != self._peers.identity.host:
            return
        secret = memory.secret_of(peer.identity.pid, offer)
        if secret is not None and proof_of(secret, peer.id) == offer.proof:
            self._borrowed.setdefault(peer.id, _Borrowed(peer.id))
            self._changed.add(peer.id)
            self._peers.tell(peer, Mapped(proof_of(secret, self._me)), now=now)

    def mapped(self, peer: PeerRecord, record: Mapped, _now: float) -> None:
        """A peer says that it can map our memory, or that it cannot any more."""
        if self._memory is not None and record.proof == proof_of(self._memory.secret, peer.id):
            self._mapping.add(peer.id)
        else:
            self._mapping.discard(peer.id)

    def left(self, peer: PeerRecord) -> None:
        """A peer is gone, and may hold what it held for ever."""
        peer_id, offer = peer.id, peer.identity.memory
        if self._memory is not None and offer is not None:
            self._memory.forget(offer.name)
        self._mapping.discard(peer_id)
        self._known.pop(peer_id, None)
        self._changed.add(peer_id)
        for number, loan in list(self._loans.items()):
            if peer_id in loan.holders:
                self._give_up(number)

    # -- lending -----------------------------------------------------------------------------------

    def take(self, outbox: Outbox, nbytes: int) -> memoryview | None:
        """Memory for a large value that is about to be published: what is written there need not be copied again."""
        large = nbytes >= self._config.shared_memory_min_bytes
        if self._memory is None or not large or outbox.has_history or not self._can_lend(outbox):
            return None
        return self._memory.take(nbytes)

    def holds(self, buffer: Buffer) -> bool:
        """Whether a buffer is in memory that `take` gave."""
        return self._memory is not None and self._memory.block_of(buffer) is not None

    def _can_lend(self, outbox: Outbox) -> bool:
        remote = outbox.remote
        return bool(remote) and all(peer_id in self._mapping for peer_id, _ in remote)

    def lend(self, outbox: Outbox, frames: Sequence[Buffer], now: float) -> Sequence[Buffer]:
        """The frames to send: the same, or a loan in place of large buffers."""
        if self._memory is None or not self._can_lend(outbox):
            return frames
        blocks = [self._place(buffer, now) for buffer in frames[1:]]
        serials = [block.serial for block in blocks if block is not None]
        if not serials:
            return frames
        for serial in serials:
            self._memory.lend(serial)
        self._number += 1
        holders = {peer_id for peer_id, _ in outbox.remote}
        self._loans[self._number] = _Lent(holders, serials, now)
        self.lent += len(serials)
        rest = [buffer for buffer, block in zip(frames[1:], blocks, strict=True) if block is None]
        return [frames[0], b"", encode_loan(Loan(self._number, list(holders), blocks)), *rest]

    def _place(self, buffer: Buffer, now: float) -> Block | None:
        """The block that a buffer is in, or was copied to."""
        memory, nbytes = self._memory, len(buffer)
        assert memory is not None
        if nbytes < self._config.shared_memory_min_bytes:
            return None
        block = memory.block_of(buffer)
        if block is not None:
            return block
        room = memory.take(nbytes)
        if room is None:
            self._give_up_old(now)
            room = memory.take(nbytes)
        if room is None:
            self.not_lent += 1
            return None
        room[:] = buffer
        return memory.block_of(room)

    def returned(self, peer: PeerRecord, record: Returned, _now: float) -> None:
        """A peer tells what it holds. Raises RemoteProtocolError for a loan that there never was."""
        if record.horizon > self._number:
            raise RemoteProtocolError("returns what was never lent")
        held, kept = set(record.held), set(record.kept)
        known = self._known.setdefault(peer.id, set())
        for number, loan in list(self._loans.items()):
            if number > record.horizon:
                break
            if peer.id not in loan.holders:
                continue
            known.update(loan.serials)
            if number in kept:
                self._give_up(number)
            elif number not in held:
                self._let_go(number, loan, peer.id)

    def _let_go(self, number: int, loan: _Lent, peer_id: bytes) -> None:
        assert self._memory is not None
        loan.holders.discard(peer_id)
        if not loan.holders:
            del self._loans[number]
            for serial in loan.serials:
                self._memory.returned(serial)

    def _give_up_old(self, now: float) -> None:
        """Memory runs short: who still holds what was lent long ago may keep it, and so may who never got it."""
        for number, loan in list(self._loans.items()):
            if now - loan.at < self._config.grace_s:
                return
            self._give_up(number)

    def _give_up(self, number: int) -> None:
        assert self._memory is not None
        serials = self._loans.pop(number).serials
        for serial in serials:
            self._memory.give_up(serial)
        for known in self._known.values():
            known.difference_update(serials)

    @property
    def unseen(self) -> bool:
        """Whether somebody may not have mapped yet what it was lent: it needs this process alive for that."""
        nothing: set[int] = set()
        return any(
            not self._known.get(peer_id, nothing).issuperset(loan.serials)
            for loan in self._loans.values()
            for peer_id in loan.holders
        )

    def close(self) -> None:
        """Let go of all memory; what is referred to stays good."""
        if self._memory is not None:
            self._memory.close()

    # -- borrowing ---------------------------------------------------------------------------------

    def borrow(self, peer: PeerRecord, loan: Loan, frames: Sequence[Buffer], now: float) -> list[Buffer]:
        """A batch's frames with all of its buffers. Raises LoanLost, or RemoteProtocolError if the loan is none."""
        borrowed = self._borrowed.get(peer.id)
        if borrowed is None or self._me not in loan.holders or loan.number <= borrowed.horizon:
            raise LoanLost
        borrowed.horizon = loan.number
        inline = iter(frames[3:])
        copied = len(borrowed.held) >= HELD_MAX
        whole: list[Buffer] = [frames[0]]
        for block in loan.blocks:
            if block is not None:
                view = self._map(peer, borrowed, loan.number, block, now)
                whole.append(bytes(view) if copied else view)
            elif (frame := next(inline, None)) is not None:
                whole.append(frame)
            else:
                raise RemoteProtocolError("a loan lacks the frames beside it")
        return whole

    def _map(self, peer: PeerRecord, borrowed: _Borrowed, number: int, block: Block, now: float) -> memoryview:
        memory, offer = self._memory, peer.identity.memory
        if memory is None or offer is None:
            raise LoanLost
        borrowed.held[number] = borrowed.held.get(number, 0) + 1
        try:
            view = memory.map(peer.identity.pid, offer.name, block, partial(self._let_loose, borrowed, number))
        except Exception as error:
            self._let_loose(borrowed, number)
            if not isinstance(error, OSError):
                raise
            if not isinstance(error, FileNotFoundError):
                self._peers.tell(peer, Mapped(b""), now=now)
            raise LoanLost from error
        if block.serial > borrowed.newest:  # so that the publisher need not stay for it
            borrowed.newest = block.serial
            self._changed.add(peer.id)
        return view

    def _let_loose(self, borrowed: _Borrowed, number: int) -> None:
        """A buffer is not referred to any more. Called in any thread."""
        self._gone.append((borrowed, number))
        if not self._woken:
            self._woken = True
            self.wake()

    def keep_held(self) -> None:
        """This process is about to be copied, with everything that refers to buffers. Called in any thread."""
        for borrowed in list(self._borrowed.values()):
            borrowed.kept.update(list(borrowed.held))
            self._changed.add(borrowed.peer_id)
        if self._memory is not None:
            self._memory.give_up_viewed()

    def flush(self, now: float) -> None:
        """Tell publishers what is not held any more."""
        self._woken = False
        gone = self._gone
        while gone:
            borrowed, number = gone.popleft()
            self._changed.add(borrowed.peer_id)
            borrowed.held[number] -= 1
            if not borrowed.held[number]:
                del borrowed.held[number]
        while self._changed:
            self._tell(self._changed.pop(), now)

    def _tell(self, peer_id: bytes, now: float) -> None:
        borrowed, peer = self._borrowed.get(peer_id), self._peers.known.get(peer_id)
        if borrowed is None:
            return
        if peer is not None:
            held = [number for number in borrowed.held if number not in borrowed.kept]
            self._peers.tell(peer, Returned(borrowed.horizon, held, sorted(borrowed.kept)), now=now)
            borrowed.kept.intersection_update(borrowed.held)
        elif not borrowed.held:
            del self._borrowed[peer_id]
