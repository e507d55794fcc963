"""Topics, patterns and the table, against a naive reference."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from zfabric.errors import TopicError
from zfabric.wire.topics import TOPIC_BYTES_MAX, Pattern, TopicTable, check_pattern, check_topic

WORDS = st.sampled_from(["a", "b", "ab", "line1", "line10", "A_b-9"])
TOPICS = st.lists(WORDS, min_size=1, max_size=6).map(".".join)
RESERVED_TOPICS = st.builds("{}{}".format, st.sampled_from(["", "", "$"]), TOPICS)
PATTERN_WORDS = st.one_of(st.sampled_from(["*", "#"]), WORDS)
PATTERNS = st.builds(
    lambda words, reserved: ("$" if reserved and words[0] not in "*#" else "") + ".".join(words),
    st.lists(PATTERN_WORDS, min_size=1, max_size=6),
    st.sampled_from([False, False, True]),
)


def naive_match(pattern: list[str], topic: list[str]) -> bool:
    """The definition of matching, word by word and in exponential time."""
    if not pattern:
        return not topic
    if pattern[0] == "#":
        return any(naive_match(pattern[1:], topic[taken:]) for taken in range(len(topic) + 1))
    return bool(topic) and pattern[0] in ("*", topic[0]) and naive_match(pattern[1:], topic[1:])


def reference(pattern: str, topic: str) -> bool:
    """Matching with the rule about the fabric's own topics."""
    if topic.startswith("$") and not pattern.startswith("$"):
        return False
    return naive_match(pattern.split("."), topic.split("."))


def is_accepted(name: str, check: Callable[[], str]) -> bool:
    """Whether a check returns the name; it may raise TopicError and nothing else."""
    try:
        return check() == name
    except TopicError:
        return False


class TestCheckTopic:
    """What a publisher may call a topic."""

    @pytest.mark.parametrize("name", ["a", "plant.line1.temp", "A-Z_0.9", "-", "_", "0", "a" * TOPIC_BYTES_MAX])
    def test_accepts(self, name: str) -> None:
        """A topic of legal words is returned unchanged."""
        assert check_topic(name) == name

    @pytest.mark.parametrize(
        ("name", "cure"),
        [
            ("", "empty"),
            (".", "empty word"),
            ("a.", "empty word"),
            (".a", "empty word"),
            ("a..b", "empty word"),
            ("a b", "' ' is not allowed"),
            ("a.b\n", r"'\\n' is not allowed"),
            ("a\0", r"'\\x00' is not allowed"),
            ("grün", "'ü' is not allowed"),
            ("\u0661", "is not allowed"),
            ("a/b", "use A-Z a-z 0-9 _ - and dots"),
            ("a.*", "subscribe to the pattern"),
            ("#", "subscribe to the pattern"),
            ("a*", "between dots"),
            ("$dead.queue", "reserved for the fabric"),
            ("a.$b", "not allowed"),
            ("a" * 256, "Config.topic_bytes_max = 255"),
        ],
    )
    def test_refuses_and_names_the_cure(self, name: str, cure: str) -> None:
        """Each way to write a bad topic gets its own reason."""
        with pytest.raises(TopicError, match=cure):
            check_topic(name)

    def test_refuses_what_is_not_text(self) -> None:
        """Bytes and other objects are refused with TopicError, too."""
        with pytest.raises(TopicError, match="must be str, not bytes"):
            check_topic(b"a")  # type: ignore[arg-type]

    def test_error_of_a_huge_name_stays_small(self) -> None:
        """A megabyte of name does not make a megabyte of error message."""
        with pytest.raises(TopicError) as caught:
            check_topic("a" * 1_000_000)

        assert len(str(caught.value)) < 300

    def test_reserved_names(self) -> None:
        """The fabric's own names pass with `reserved`, as ordinary ones do; `$` alone does not."""
        assert check_topic("$dead.queue", reserved=True) == "$dead.queue"
        assert check_topic("a", reserved=True) == "a"
        with pytest.raises(TopicError, match="needs a word behind it"):
            check_topic("$.a", reserved=True)
        with pytest.raises(TopicError, match="not allowed"):
            check_topic("$$a", reserved=True)

    def test_length_limit_is_an_argument(self) -> None:
        """The limit is the one that the caller's Config gives."""
        assert check_topic("abc", bytes_max=3) == "abc"
        with pytest.raises(TopicError, match="= 2"):
            check_topic("abc", bytes_max=2)
        with pytest.raises(TopicError, match="= 2"):
            check_pattern("a.#", bytes_max=2)

    @given(st.text(max_size=20) | st.text("ab.*#$", max_size=12))
    def test_any_text_passes_or_raises_topic_error(self, name: str) -> None:
        """There is no third outcome, and whatever passes splits into legal words."""
        if is_accepted(name, lambda: check_topic(name, reserved=True)):
            assert all(word and word.isascii() for word in name.removeprefix("$").split("."))
        if is_accepted(name, lambda: check_pattern(name)):
            assert Pattern(name).text == name


class TestPattern:
    """What a subscriber may ask for, and what it gets."""

    @pytest.mark.parametrize("name", ["a", "*", "#", "a.*.b", "#.a.#", "*.*", "$dead.#", "#.#"])
    def test_accepts(self, name: str) -> None:
        """Wildcards may stand anywhere as words of their own."""
        assert check_pattern(name) == name

    @pytest.mark.parametrize("name", ["", "a*", "*a.b", "a.##", "**", "a..#", "$*", "$", "$#.a", "a.$b", 5])
    def test_refuses(self, name: str) -> None:
        """A wildcard inside a word, or a malformed topic, is not a pattern."""
        with pytest.raises(TopicError):
            check_pattern(name)

    @pytest.mark.parametrize(
        ("pattern", "prefix"),
        [
            ("a.b", b"a.b\0"),
            ("a.*.c", b"a."),
            ("a.b.*", b"a.b."),
            ("a.#", b"a"),
            ("a.#.#", b"a"),
            ("a.#.c", b"a."),
            ("a.#.*", b"a."),
            ("#", b""),
            ("*", b""),
            ("#.a", b""),
            ("$dead.#", b"$dead"),
        ],
    )
    def test_prefix(self, pattern: str, prefix: bytes) -> None:
        """The prefix is the longest one that every matching topic shares."""
        assert Pattern(pattern).prefix == prefix

    @pytest.mark.parametrize(
        ("pattern", "topic", "expected"),
        [
            ("line1", "line10", False),
            ("line1.*", "line10.a", False),
            ("a.#", "a", True),
            ("a.#", "ab", False),
            ("a.#", "a.b.c", True),
            ("a.*", "a", False),
            ("*", "a.b", False),
            ("#.b", "b", True),
            ("#.b", "a.ab", False),
            ("#.a.#.b", "a.a.b.b", True),
            ("#.a.b.#.c", "a.a.b.c", True),
            ("#.*", "a", True),
            ("#", "$dead.jobs", False),
            ("*.jobs", "$dead.jobs", False),
            ("$dead.*", "$dead.jobs", True),
        ],
    )
    def test_matches(self, pattern: str, topic: str, expected: bool) -> None:
        """The rules of AMQP, and wildcards that do not reach the fabric's own topics."""
        assert Pattern(pattern).matches(topic) is expected

    @given(PATTERNS, RESERVED_TOPICS)
    @settings(max_examples=1000)
    def test_matches_as_the_reference_does(self, pattern: str, topic: str) -> None:
        """The compiled pattern agrees with the definition, and the prefix never hides a match."""
        compiled = Pattern(pattern)

        assert compiled.matches(topic) is reference(pattern, topic)
        if compiled.matches(topic):
            assert (topic.encode() + b"\0").startswith(compiled.prefix)

    @given(PATTERNS)
    def test_literal(self, pattern: str) -> None:
        """Only a pattern without wildcards is literal, and it matches its own text."""
        compiled = Pattern(pattern)

        assert compiled.literal is not bool({"*", "#"} & set(pattern.split(".")))
        assert not compiled.literal or compiled.matches(pattern)

    def test_hostile_pattern_takes_no_exponential_time(self) -> None:
        """The worst pattern and topic of full length match in milliseconds."""
        pattern, topic = ("#.a." * 63)[:-1], ("a." * 127)[:-1]
        table: TopicTable[int] = TopicTable()
        table.add(pattern + ".b", 1)
        started = time.thread_time()

        assert Pattern(pattern).matches(topic)
        assert not Pattern(pattern + ".b").matches(topic)
        assert table.match(topic) == ()
        assert time.thread_time() - started < 0.5

    def test_is_a_value(self) -> None:
        """Patterns compare and hash by their text, which they show."""
        assert Pattern("a.*") == Pattern("a.*") != Pattern("a.#")
        assert len({Pattern("a.*"), Pattern("a.*")}) == 1
        assert (str(Pattern("a.*")), repr(Pattern("a.*"))) == ("a.*", "Pattern('a.*')")


class TestTopicTable:
    """Many patterns at once."""

    def test_value_comes_once(self) -> None:
        """A value with several matching patterns is found once, until the last of them is removed."""
        table: TopicTable[str] = TopicTable()
        for pattern in ("a.b", "a.*", "a.#", "#"):
            assert table.add(pattern, "x")

        assert table.match("a.b") == ("x",)
        for pattern in ("a.b", "a.*", "a.#"):
            assert table.remove(pattern, "x")
            assert table.match("a.b") == ("x",)
        assert table.remove("#", "x")
        assert table.match("a.b") == ()

    def test_patterns_that_mean_the_same_are_separate_pairs(self) -> None:
        """`a.#.*` and `a.*.#` match the same topics but are removed one by one."""
        table: TopicTable[str] = TopicTable()
        table.add("a.#.*", "x")
        table.add("a.*.#", "x")
        table.remove("a.#.*", "x")

        assert table.match("a.b") == ("x",)

    def test_add_and_remove_tell_what_changed(self) -> None:
        """A pair is in the table or not; nothing is counted twice."""
        table: TopicTable[str] = TopicTable()

        assert (table.add("a.*", "x"), table.add("a.*", "x"), len(table)) == (True, False, 1)
        assert (table.remove("a.*", "y"), table.remove("b.*", "x"), table.remove("b", "x")) == (False,) * 3
        assert (table.remove("a.*", "x"), table.remove("a.*", "x"), len(table)) == (True, False, 0)
        assert repr(table) == "<TopicTable of 0 pairs>"

    def test_refuses_a_malformed_pattern(self) -> None:
        """Patterns are checked on the way in, with the table's limit."""
        with pytest.raises(TopicError):
            TopicTable[int]().add("a*", 1)
        with pytest.raises(TopicError, match="= 3"):
            TopicTable[int](bytes_max=3).add("a.b.c", 1)

    def test_cache_is_bounded(self) -> None:
        """More topics than the cache holds are all answered, and memory does not grow with them."""
        table: TopicTable[int] = TopicTable(cache_max=10)
        table.add("t.*", 1)

        for number in range(1000):
            assert table.match(f"t.{number}") == (1,)
            assert len(table._cache) <= 10

    def test_removed_patterns_leave_nothing(self) -> None:
        """Add and remove of many patterns gives the memory back."""
        table: TopicTable[int] = TopicTable()
        for number in range(100):
            table.add(f"a.{number}.*.#", number)
            table.add(f"a.{number}", number)
        for number in range(100):
            table.remove(f"a.{number}.*.#", number)
            table.remove(f"a.{number}", number)

        assert table._root.children == {}
        assert table._literals == {}


class TableAgainstSet(RuleBasedStateMachine):
    """Any order of add, remove and match gives what a plain set of pairs gives."""

    def __init__(self) -> None:
        super().__init__()
        self.table: TopicTable[int] = TopicTable(cache_max=3)
        self.pairs: set[tuple[str, int]] = set()

    @rule(pattern=PATTERNS, value=st.integers(0, 3))
    def add(self, pattern: str, value: int) -> None:
        """Add a pair to both."""
        assert self.table.add(pattern, value) is ((pattern, value) not in self.pairs)
        self.pairs.add((pattern, value))

    @rule(data=st.data(), value=st.integers(0, 3))
    def remove(self, data: st.DataObject, value: int) -> None:
        """Remove a pair, often one that exists, from both."""
        known = sorted({pattern for pattern, _ in self.pairs}) or ["a"]
        pattern = data.draw(st.sampled_from(known))
        assert self.table.remove(pattern, value) is ((pattern, value) in self.pairs)
        self.pairs.discard((pattern, value))

    @rule(topic=RESERVED_TOPICS)
    def match(self, topic: str) -> None:
        """Match a topic in both."""
        found = self.table.match(topic)
        assert len(found) == len(set(found))
        assert set(found) == {value for pattern, value in self.pairs if reference(pattern, topic)}

    @invariant()
    def same_size(self) -> None:
        """The table counts its pairs."""
        assert len(self.table) == len(self.pairs)


TestTableAgainstSet = TableAgainstSet.TestCase
