"""Names of topics, patterns over them, and the table that finds every pattern which a topic matches.

A topic is words of `[A-Za-z0-9_-]` joined by dots. In a pattern the word `*` stands for exactly one word and `#`
for any number of words, also none, as in AMQP. Names that begin with `$` belong to the fabric; as in MQTT, a
pattern that begins with a wildcard does not match them, so `#` means everything that users publish.

On the wire a topic ends in NUL and libzmq filters by prefix: `Pattern.prefix` is the longest prefix that every
match shares, and the receiver finishes the match. The NUL keeps `line1` from matching `line10`.

Patterns come from peers too, so nothing here may take exponential time: a pattern compiles to a regular
expression whose `#` parts are atomic (they cannot backtrack), and the table walks its trie as a set of states.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Generic, TypeVar

from zfabric.config import Config
from zfabric.errors import TopicError

__all__ = ["TOPIC_BYTES_MAX", "Pattern", "TopicTable", "check_pattern", "check_topic"]

TOPIC_BYTES_MAX = Config().topic_bytes_max
"Length of a topic or pattern, unless the caller's Config says otherwise."

_SHOWN_MAX = 80
_WORD = r"[A-Za-z0-9_-]+"
_is_topic = re.compile(rf"{_WORD}(?:\.{_WORD})*").fullmatch
_is_reserved_topic = re.compile(rf"\$?{_WORD}(?:\.{_WORD})*").fullmatch
_is_pattern = re.compile(rf"(?:\*|\#|\$?{_WORD})(?:\.(?:\*|\#|{_WORD}))*").fullmatch
_illegal_character = re.compile(r"[^A-Za-z0-9_-]").search

V = TypeVar("V", bound=Hashable)


def check_topic(name: str, *, reserved: bool = False, bytes_max: int = TOPIC_BYTES_MAX) -> str:
    """Return `name` if it is a topic, else raise TopicError; `reserved` lets the fabric's own `$` names pass."""
    accepts = _is_reserved_topic if reserved else _is_topic
    if _fits(name, bytes_max) and accepts(name):
        return name
    raise _explain(name, bytes_max, is_pattern=False, reserved=reserved)


def check_pattern(name: str, *, bytes_max: int = TOPIC_BYTES_MAX) -> str:
    """Return `name` if it is a topic or a pattern, else raise TopicError. The fabric's `$` names may be read."""
    if _fits(name, bytes_max) and _is_pattern(name):
        return name
    raise _explain(name, bytes_max, is_pattern=True, reserved=True)


def _fits(name: object, bytes_max: int) -> bool:
    """Users without a type checker pass anything; legal names are ASCII, so characters are bytes."""
    return isinstance(name, str) and len(name) <= bytes_max


def _explain(name: object, bytes_max: int, *, is_pattern: bool, reserved: bool) -> TopicError:
    """Say what is wrong with a refused name, and the cure."""
    if not isinstance(name, str):
        return TopicError(repr(name)[:_SHOWN_MAX], f"it must be str, not {type(name).__name__}")
    if not name:
        return TopicError(name, "it is empty; name it like plant.line1.temp")
    if len(name) > bytes_max:
        reason = f"{len(name)} bytes are over Config.topic_bytes_max = {bytes_max}; put the details into the value"
        return TopicError(name[:_SHOWN_MAX] + "...", reason)
    for position, word in enumerate(name.split(".")):
        reason = _explain_word(word, is_first=position == 0, is_pattern=is_pattern, reserved=reserved)
        if reason:
            return TopicError(name, reason)
    raise AssertionError(f"{name!r} was refused for no known reason")  # pragma: no cover - the checks above are total


def _explain_word(word: str, *, is_first: bool, is_pattern: bool, reserved: bool) -> str:
    """What is wrong with one word; empty if nothing is."""
    if not word:
        return "it has an empty word; single dots stand between words, none at the ends"
    if word in ("*", "#"):
        return "" if is_pattern else f"{word!r} is a wildcard; publish on a plain name and subscribe to the pattern"
    if is_first and word.startswith("$"):
        if not reserved:
            return "names that begin with '$' are reserved for the fabric; choose another first character"
        word = word[1:]
        if not word:
            return "'$' needs a word behind it"
    found = _illegal_character(word)
    if found is None:
        return ""
    character = found.group()
    if character in "*#":
        return f"a wildcard must be a word of its own: write {character!r} between dots"
    return f"{character!r} is not allowed; use A-Z a-z 0-9 _ - and dots between words"


class Pattern:
    """A checked and compiled pattern; a plain topic is a pattern that matches itself only."""

    __slots__ = ("_match", "literal", "prefix", "text")

    text: str
    "The pattern as it was written."
    literal: bool
    "True if it has no wildcard: it matches one topic, and `text` is that topic."
    prefix: bytes
    "What to subscribe to in libzmq: every matching topic with its NUL begins with it; others may too."

    def __init__(self, text: str, *, bytes_max: int = TOPIC_BYTES_MAX) -> None:
        self.text = check_pattern(text, bytes_max=bytes_max)
        words = _normalise(text.split("."))
        self.literal = "*" not in words and "#" not in words
        self.prefix = _prefix(words)
        self._match = None if self.literal else _compile(words).fullmatch

    def matches(self, topic: str) -> bool:
        """Whether the pattern matches `topic`, which must be a checked topic."""
        if self._match is None:
            return topic == self.text
        return self._match("." + topic) is not None

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"

    def __str__(self) -> str:
        return self.text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


def _normalise(words: list[str]) -> list[str]:
    """Write every run of wildcards in one way: its `*` first, then one `#` if it had any."""
    result: list[str] = []
    run_has_hash = False
    for word in words:
        if word == "#":
            run_has_hash = True
            continue
        if word != "*" and run_has_hash:
            result.append("#")
            run_has_hash = False
        result.append(word)
    if run_has_hash:
        result.append("#")
    return result


def _prefix(words: list[str]) -> bytes:
    """The longest prefix of every wire topic that the normalised pattern matches."""
    first = next((index for index, word in enumerate(words) if word in ("*", "#")), len(words))
    head = ".".join(words[:first])
    if first == len(words):
        return head.encode("ascii") + b"\0"
    another_word_follows = any(word != "#" for word in words[first:])
    return (head + "." if head and another_word_follows else head).encode("ascii")


def _compile(words: list[str]) -> re.Pattern[str]:
    """A regular expression over the topic with a dot in front.

    Each `#` takes as few words as let the words up to the next `#` match, and never gives them back: the leftmost
    fit is as good as any other, which keeps the time to (topic words) x (pattern words). The last `#` is the
    exception: what follows it is anchored at the end.
    """
    parts = [""]
    for word in words:
        if word == "#":
            parts.append("")
        else:
            parts[-1] += r"\.[^.]+" if word == "*" else r"\." + re.escape(word) + r"(?![^.])"
    head, *rest = parts
    expression = (r"(?!\.\$)" if words[0] in ("*", "#") else "") + head
    if rest:
        *middle, tail = rest
        expression += "".join(rf"(?>(?:\.[^.]+)*?{part})" for part in middle)
        expression += r"(?:\.[^.]+)*" + tail
    return re.compile(expression)


class _TrieNode(Generic[V]):
    """A word of the trie of wildcard patterns: what may follow it, and the values of the pattern that ends here."""

    __slots__ = ("children", "is_hash", "values")

    def __init__(self, *, is_hash: bool = False) -> None:
        self.children: dict[str, _TrieNode[V]] = {}
        self.values: dict[V, None] = {}
        self.is_hash = is_hash


class TopicTable(Generic[V]):
    """A set of (pattern, value) pairs: `match(topic)` gives each value that has a matching pattern, once.

    Topics repeat, so answers are remembered, up to `cache_max` topics. Values come in no promised order.
    """

    __slots__ = ("_bytes_max", "_cache", "_cache_max", "_literals", "_root", "_size")

    def __init__(self, *, cache_max: int = 32_768, bytes_max: int = TOPIC_BYTES_MAX) -> None:
        self._literals: dict[str, dict[V, None]] = {}
        self._root: _TrieNode[V] = _TrieNode()
        self._cache: dict[str, tuple[V, ...]] = {}
        self._cache_max = cache_max
        self._bytes_max = bytes_max
        self._size = 0

    def __len__(self) -> int:
        """The number of pairs."""
        return self._size

    def __repr__(self) -> str:
        return f"<TopicTable of {self._size} pairs>"

    def add(self, pattern: str, value: V) -> bool:
        """Add a pair; False if it was there already. Raises TopicError for a malformed pattern."""
        words = check_pattern(pattern, bytes_max=self._bytes_max).split(".")
        if "*" in words or "#" in words:
            node = self._root
            for word in words:
                child = node.children.get(word)
                if child is None:
                    child = node.children[word] = _TrieNode(is_hash=word == "#")
                node = child
            values = node.values
            self._cache.clear()
        else:
            values = self._literals.setdefault(pattern, {})
            self._cache.pop(pattern, None)
        if value in values:
            return False
        values[value] = None
        self._size += 1
        return True

    def remove(self, pattern: str, value: V) -> bool:
        """Take a pair out; False if it was not there."""
        words = pattern.split(".")
        if "*" in words or "#" in words:
            removed = _remove(self._root, words, value)
            self._cache.clear()
        else:
            values = self._literals.get(pattern, {})
            removed = value in values
            if removed:
                del values[value]
                if not values:
                    del self._literals[pattern]
            self._cache.pop(pattern, None)
        self._size -= removed
        return removed

    def match(self, topic: str) -> tuple[V, ...]:
        """The values whose patterns match `topic`, which must be a checked topic."""
        found = self._cache.get(topic)
        if found is None:
            found = tuple({**self._literals.get(topic, {}), **self._match_wildcards(topic)})
            if len(self._cache) >= self._cache_max:
                self._cache.clear()
            self._cache[topic] = found
        return found

    def _match_wildcards(self, topic: str) -> dict[V, None]:
        """Walk the trie along all paths at once; a `#` node stays where it is for any number of words."""
        states: dict[_TrieNode[V], None] = {self._root: None}
        if not topic.startswith("$"):
            _step_into_hash(states, self._root)
        for position, word in enumerate(topic.split(".")):
            names = (word,) if position == 0 and word.startswith("$") else (word, "*")
            reached: dict[_TrieNode[V], None] = {}
            for node in states:
                if node.is_hash:
                    reached[node] = None
                for name in names:
                    child = node.children.get(name)
                    if child is not None:
                        reached[child] = None
                        _step_into_hash(reached, child)
            states = reached
        values: dict[V, None] = {}
        for node in states:
            values.update(node.values)
        return values


def _step_into_hash(states: dict[_TrieNode[V], None], node: _TrieNode[V]) -> None:
    """Each `#` behind a reached node is reached as well, because it may stand for no word."""
    child = node.children.get("#")
    while child is not None:
        states[child] = None
        child = child.children.get("#")


def _remove(root: _TrieNode[V], words: list[str], value: V) -> bool:
    """Take a value out of the trie, with the nodes that only it needed."""
    path = [root]
    for word in words:
        child = path[-1].children.get(word)
        if child is None:
            return False
        path.append(child)
    if value not in path[-1].values:
        return False
    del path[-1].values[value]
    for parent, word, node in zip(reversed(path[:-1]), reversed(words), reversed(path[1:]), strict=True):
        if node.values or node.children:
            break
        del parent.children[word]
    return True
