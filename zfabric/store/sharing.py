"""Who owns which partition of one group. Pure: time comes in, notices go out.

    | a partition is      | until                                                  | then            |
    |---------------------|--------------------------------------------------------|-----------------|
    | free                | a present member has fewer than its part               | granted to it   |
    | granted             | its owner has more than its part                       | asked back      |
    | asked back          | the owner releases it, or is fenced after `release_s`  | free            |
    | of a lost member    | at once, or after `return_s` if the member has a name  | free            |

So a partition never has two owners: the next one begins after the last one has let go, or has lost its epoch. Only as
many partitions move as must (cooperative rebalancing). A member's epoch is never given twice.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from math import inf
from typing import TypeAlias

import msgspec

__all__ = ["Ask", "Fence", "Grant", "Member", "Notice", "Sharing"]


class Member:
    """One membership, from joining to leaving."""

    __slots__ = ("asked", "away_until", "deadline", "epoch", "holder", "name", "owned")

    def __init__(self, holder: Hashable, name: str, epoch: int) -> None:
        self.holder = holder
        "Who speaks for it."
        self.name = name
        self.epoch = epoch
        self.owned: set[int] = set()
        self.asked: set[int] = set()
        "Owned partitions that it was told to let go."
        self.deadline = inf
        "When it is fenced for not letting go."
        self.away_until = inf
        "When a lost member with a name is given up; infinite while it is there."

    @property
    def present(self) -> bool:
        """Whether somebody speaks for it."""
        return self.away_until == inf

    @property
    def kept(self) -> int:
        """How many partitions it has that it was not told to let go."""
        return len(self.owned) - len(self.asked)


class Grant(msgspec.Struct, frozen=True):
    """These partitions are the member's from now on."""

    member: Member
    partitions: tuple[int, ...]


class Ask(msgspec.Struct, frozen=True):
    """The member is to let go of these."""

    member: Member
    partitions: tuple[int, ...]


class Fence(msgspec.Struct, frozen=True):
    """The membership has ended."""

    member: Member
    reason: str
    final: bool = False
    "It must not join again."


Notice: TypeAlias = Grant | Ask | Fence


class Sharing:
    """The members of one group and their partitions."""

    def __init__(self, partitions: int, epochs: Iterator[int], *, release_s: float, return_s: float) -> None:
        """`epochs` gives each member another one, higher than all before."""
        self.partitions = partitions
        self.members: dict[int, Member] = {}
        self._owners: list[Member | None] = [None] * partitions
        self._epochs = epochs
        self._release_s = release_s
        self._return_s = return_s
        self._notices: list[Notice] = []

    def owner(self, partition: int) -> Member | None:
        """Who has it."""
        return self._owners[partition]

    def owns(self, epoch: int, partition: int) -> bool:
        """Whether that membership is in force and has the partition."""
        owner = self._owners[partition]
        return owner is not None and owner.epoch == epoch

    def notices(self) -> list[Notice]:
        """What must be told since the last call, in order."""
        notices, self._notices = self._notices, []
        return notices

    # -- members -------------------------------------------------------------------------------

    def join(self, holder: Hashable, name: str, now: float) -> Member:
        """A new member. One with the name of another takes its place, and its partitions."""
        member = Member(holder, name, next(self._epochs))
        before = self._named(name)
        self.members[member.epoch] = member
        if before is not None:
            self._end(before, f"another member took the name {name!r}", final=True)
            self._grant(member, sorted(before.owned))
        self._balance(now)
        return member

    def _named(self, name: str) -> Member | None:
        return next((member for member in self.members.values() if name and member.name == name), None)

    def leave(self, member: Member, now: float) -> None:
        """It has let go of everything and goes."""
        self._remove(member)
        self._balance(now)

    def lost(self, member: Member, now: float) -> None:
        """Nobody speaks for it any more. A member with a name may come back."""
        if member.name:
            member.away_until = now + self._return_s
            member.deadline = inf
        else:
            self.leave(member, now)

    def fence(self, member: Member, reason: str, now: float) -> None:
        """End a membership against its will."""
        self._end(member, reason)
        self._free(member.owned)
        self._balance(now)

    def released(self, member: Member, partitions: list[int], now: float) -> None:
        """It has let go of these."""
        gone = member.owned.intersection(partitions)
        member.owned -= gone
        member.asked -= gone
        if not member.asked:
            member.deadline = inf
        self._free(gone)
        self._balance(now)

    def _end(self, member: Member, reason: str, *, final: bool = False) -> None:
        del self.members[member.epoch]
        if member.present:
            self._notices.append(Fence(member, reason, final))

    def _remove(self, member: Member) -> None:
        del self.members[member.epoch]
        self._free(member.owned)

    def _free(self, partitions: set[int]) -> None:
        for partition in partitions:
            self._owners[partition] = None

    # -- time ----------------------------------------------------------------------------------

    def timer(self) -> float:
        """When `handle_timer` has something to do."""
        return min((min(member.deadline, member.away_until) for member in self.members.values()), default=inf)

    def handle_timer(self, now: float) -> None:
        """Give up those who did not come back or did not let go."""
        for member in list(self.members.values()):
            if member.away_until <= now:
                self._remove(member)
            elif member.deadline <= now:
                self._end(member, "it did not let go of partitions in time")
                self._free(member.owned)
        self._balance(now)

    # -- who gets what -------------------------------------------------------------------------

    def _balance(self, now: float) -> None:
        """Ask back what is too much, grant what is free. Members that have more keep the odd ones."""
        order = sorted(self.members.values(), key=lambda member: (-member.kept, member.epoch))
        if not order:
            return
        part, odd = divmod(self.partitions, len(order))
        free = [partition for partition, owner in enumerate(self._owners) if owner is None]
        for place, member in enumerate(order):
            quota = part + (place < odd)
            if not member.present:
                continue
            if member.kept > quota:
                self._ask(member, sorted(member.owned - member.asked)[quota:], now)
            elif member.kept < quota and free:
                taken = free[: quota - member.kept]
                del free[: len(taken)]
                self._grant(member, taken)

    def _ask(self, member: Member, partitions: list[int], now: float) -> None:
        if not member.asked:
            member.deadline = now + self._release_s
        member.asked.update(partitions)
        self._notices.append(Ask(member, tuple(partitions)))

    def _grant(self, member: Member, partitions: list[int]) -> None:
        if not partitions:
            return
        for partition in partitions:
            self._owners[partition] = member
        member.owned.update(partitions)
        self._notices.append(Grant(member, tuple(partitions)))
