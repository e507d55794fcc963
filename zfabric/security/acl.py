"""Who may do what: permissions on topic patterns, and what of libzmq's prefixes they allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from zfabric.errors import InvalidKey, TopicError
from zfabric.wire.topics import Pattern

__all__ = ["ACTIONS", "ANYTHING", "MEMBERS", "Permissions", "covers"]

ACTIONS = ("publish", "subscribe", "push", "pull", "serve", "request", "store")


class Permissions:
    """The patterns of names with which each action is allowed; what is not named is not allowed."""

    def __init__(self, patterns: Mapping[str, Sequence[str]]) -> None:
        """Raises InvalidKey for an unknown action or a malformed pattern."""
        unknown = sorted(set(patterns) - set(ACTIONS))
        if unknown:
            raise InvalidKey(f"there is no action {unknown[0]!r}, only {', '.join(ACTIONS)}")
        try:
            found = {action: tuple(map(Pattern, patterns.get(action, ()))) for action in ACTIONS}
            self._patterns = {**found, "subscribe": found["subscribe"] + found["store"]}  # who keeps a topic hears it
        except TopicError as error:
            raise InvalidKey(str(error)) from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Permissions) and self._patterns == other._patterns

    def __hash__(self) -> int:
        return hash(tuple(self._patterns.items()))

    def allow(self, action: str, name: str) -> bool:
        """Whether an action is allowed on one topic, queue or service."""
        return any(pattern.matches(name) for pattern in self._patterns.get(action, ()))

    def allow_all(self, action: str, pattern: str) -> bool:
        """Whether an action is allowed on every name that a pattern matches."""
        return any(covers(each.text, pattern) for each in self._patterns.get(action, ()))

    def filters(self, prefix: bytes) -> tuple[bytes, ...]:
        """What libzmq may filter by for a subscriber that asked for `prefix`: all that is meant by it, or nothing.

        libzmq knows no words: `plant` would let `plantation` through, so it becomes `plant` itself and what is below.
        """
        try:
            text = prefix.decode("ascii")
        except UnicodeDecodeError:
            return ()
        if text.endswith("\0"):
            return (prefix,) if self.allow("subscribe", text[:-1]) else ()
        if not text or text.endswith("."):
            return (prefix,) if self.allow_all("subscribe", text + "#") else ()
        return (prefix + b"\0", prefix + b".") if self.allow_all("subscribe", text + ".#") else ()


ANYTHING = Permissions(dict.fromkeys(ACTIONS, ("#",)))
MEMBERS = Permissions({action: ("#",) for action in ACTIONS if action != "store"})
"Everything but to keep what others rely on: whoever confirms that something is stored must be meant to."


def covers(wide: str, narrow: str) -> bool:
    """Whether a pattern matches everything that another one matches; False where that is not plain to see."""
    first, second = wide.split("."), narrow.split(".")

    @cache
    def covered(i: int, j: int) -> bool:
        if i == len(first):
            return j == len(second)
        if first[i] == "#":
            return covered(i + 1, j) or (j < len(second) and covered(i, j + 1))
        if j == len(second) or second[j] == "#":
            return False
        return (first[i] in ("*", second[j])) and covered(i + 1, j + 1)

    return covered(0, 0)
