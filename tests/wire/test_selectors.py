"""Selectors: what they mean, against SQLite as an independent reference, and what hostile ones cannot do."""

from __future__ import annotations

import sqlite3
import string
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zfabric import Config, Selector, SelectorError

HEADERS = {
    "colour": "red",
    "weight": 12,
    "ratio": 0.5,
    "urgent": True,
    "quiet": False,
    "nothing": None,
    "list": [1],
    "content-type": "image/png",
    "trace.id": "7",
    "key": "a header",
    'a "quoted" name': 1,
    "huge": 2**64,
    "nan": float("nan"),
}


def selects(text: str, **columns: Any) -> bool:
    """Whether a selector matches HEADERS."""
    return Selector(text).matches(HEADERS, **columns)


def is_unknown(condition: str) -> bool:
    """Whether a condition is neither true nor false for HEADERS."""
    return not selects(condition) and not selects(f"NOT ({condition})")


@pytest.mark.parametrize(
    "text",
    [
        "colour = 'red'",
        "colour <> 'blue'",
        "colour > 'blue' AND colour <= 'red'",
        "weight = 12.0 AND weight >= 12 AND weight < 12.5 AND .5 = ratio AND 5.E-1 = ratio",
        "urgent",
        "urgent = TRUE AND NOT quiet AND quiet = false AND urgent <> quiet",
        "TRUE",
        "NOT FALSE",
        "FALSE OR FALSE OR TRUE",
        "colour = 'red' OR colour = 'blue' AND weight = 0",
        "NOT colour = 'blue' AND weight = 12",
        "weight BETWEEN 12 AND 12 AND weight NOT BETWEEN 13 AND 20 AND weight NOT BETWEEN 12 AND 11",
        "colour IN ('blue', 'red') AND colour NOT IN ('blue') AND weight IN (-1, +12) AND weight IN (12.0)",
        "colour LIKE 'r%' AND colour LIKE '%e%' AND colour LIKE '_e_' AND colour LIKE 'red' AND colour LIKE '%'",
        "colour NOT LIKE 'R%' AND colour NOT LIKE 're' AND colour NOT LIKE '____'",
        "'50%_!' LIKE '50!%!_!!' ESCAPE '!' AND '50x' NOT LIKE '50!%' ESCAPE '!'",
        "'a\nb' LIKE 'a_b' AND 'a\nb' LIKE '%b' AND 'a.b' NOT LIKE 'a.' AND 'axb' NOT LIKE 'a.b'",
        "absent IS NULL AND nothing IS NULL AND colour IS NOT NULL AND list IS NOT NULL",
        "weight + 2 * 3 = 18 AND (weight + 2) * 3 = 42 AND 20 - weight - 1 = 7 AND -weight = -12 AND - -weight = 12",
        "weight / 5 = 2 AND -weight / 5 = -2 AND weight / 5.0 = 2.4 AND weight / ratio = 24",
        "weight / 0 IS NULL AND colour + 1 IS NULL AND urgent + 1 IS NULL AND nan * 1 IS NULL",
        "9223372036854775807 + 1 + 1 = 9223372036854775808.0 AND huge = 18446744073709551616.0 AND huge + 0 > 1",
        "1e308 * 10 > 1.7e308 AND 1e308 * 10 - 1e308 * 10 IS NULL",
        '"content-type" = \'image/png\' AND trace.id = \'7\' AND "a ""quoted"" name" = 1',
        "'it''s' = 'it''s' AND '' <> ''''",
        "colour='red'AND(weight)=12",
        "\n colour\t=\r\n'red' ",
        "cOlOuR IS NULL and colour is not null oR FALSE",
        "((((((((colour))))))) = 'red')",
        "(weight = 12) = TRUE AND (weight = 12) <> (colour = 'blue')",
        "android IS NULL AND notes IS NULL AND order_by IS NULL AND $in IS NULL AND _like IS NULL",
    ],
)
def test_selects(text: str) -> None:
    """Operators, literals, precedence, names and white space mean what SQL-92 and JMS say."""
    assert selects(text)


@pytest.mark.parametrize(
    "condition",
    [
        "absent = 1",
        "absent <> 1",
        "1 < absent",
        "nothing = nothing",
        "absent",
        "absent LIKE '%'",
        "absent IN (1)",
        "absent BETWEEN 1 AND 2",
        "weight BETWEEN 1 AND absent",
        "absent + 1 = 1",
        "weight / 0 = 1",
        "weight",
        "colour",
        "absent AND TRUE",
        "absent OR FALSE",
        "NOT absent",
    ],
)
def test_null_makes_unknown(condition: str) -> None:
    """What a missing header, or one that is no condition, decides is unknown: so is its opposite."""
    assert is_unknown(condition)


@pytest.mark.parametrize(
    "condition",
    [
        "absent AND FALSE",
        "FALSE AND absent",
        "weight BETWEEN 13 AND absent",
        "colour = 1",
        "colour <> 1",
        "weight < 'z'",
        "urgent = 1",
        "urgent > 0",
        "list = 1",
        "list <> 1",
        "weight LIKE '12'",
        "list IN (1)",
        "urgent IN (1)",
    ],
)
def test_false_and_unlike_types(condition: str) -> None:
    """FALSE decides an AND whatever is unknown, and values of different types compare false, as in JMS."""
    assert not selects(condition)
    assert selects(f"NOT ({condition})")


def test_true_decides_an_or() -> None:
    """TRUE decides an OR whatever is unknown."""
    assert selects("absent OR TRUE")
    assert selects("TRUE OR absent")


def test_columns_are_not_headers() -> None:
    """`key`, `priority`, `attempt` and `topic` are the message's own; in quotes the same name is a header."""
    text = "key = 'k' AND priority > 3 AND attempt = 1 AND topic LIKE 'plant.%' AND \"key\" = 'a header'"

    assert selects(text, key="k", priority=4, attempt=1, topic="plant.a")
    assert not selects(text, key="k", priority=3, attempt=1, topic="plant.a")
    assert selects("key IS NULL AND priority IS NULL AND attempt IS NULL AND topic IS NULL")


def test_no_headers() -> None:
    """A message without headers has none that is not NULL."""
    assert Selector("colour IS NULL").matches(None)
    assert not Selector("colour <> 'red'").matches({})


@pytest.mark.parametrize(
    ("text", "position", "reason"),
    [
        ("", 0, "too early"),
        ("colour =", 8, "too early"),
        ("'red'", 0, "text stands where a condition is needed"),
        ("5", 0, "a number stands where"),
        ("a = 'red", 4, "quote is not closed"),
        ('"a = 1', 0, "quote is not closed"),
        ('"" = 1', 0, "cannot stand"),
        ("a = 1 = 2", 6, "'=' cannot stand here"),
        ("a = NULL", 4, "'NULL' cannot stand here"),
        ("a == 1", 3, "cannot stand"),
        ("a != 1", 2, "'!' cannot stand here"),
        ("a = 1; DROP TABLE jobs", 5, "';' cannot stand here"),
        ("__import__('os')", 10, "cannot stand"),
        ("a IN ()", 6, "cannot stand"),
        ("a IN (b)", 6, "cannot stand"),
        ("a + 'b' = 1", 4, "text stands where a number is needed"),
        ("1 + (a = 1) = 2", 5, "a condition stands where a number is needed"),
        ("TRUE > FALSE", 0, "a condition stands where"),
        ("a BETWEEN 1 AND TRUE", 16, "a condition stands where"),
        ("1 LIKE 'a'", 0, "a number stands where text is needed"),
        ("TRUE IN (1)", 0, "a condition stands where"),
        ("NOT 5", 4, "a number stands where a condition is needed"),
        ("a AND 'b'", 6, "text stands where a condition is needed"),
        ("a LIKE b", 7, "cannot stand"),
        ("a LIKE 'x' ESCAPE 'ab'", 18, "one character"),
        ("a LIKE 'x!y' ESCAPE '!'", 7, "must stand before"),
        ("a LIKE 'x!' ESCAPE '!'", 7, "must stand before"),
        ("a = 9223372036854775808", 4, "64 bits"),
        ("a = 1e999", 4, "finite"),
        ("ä = 1", 0, "'ä' cannot stand here"),
        ("a = \ud800", 4, "cannot stand"),
        ("and = 1", 0, "cannot stand"),
    ],
)
def test_refuses(text: str, position: int, reason: str) -> None:
    """A bad selector is told with its text, what is wrong, and where."""
    with pytest.raises(SelectorError, match=reason) as caught:
        Selector(text)

    assert (caught.value.text, caught.value.position) == (text, position)
    assert f"at character {position + 1}" in str(caught.value)


def test_length_is_limited() -> None:
    """A selector over Config.selector_bytes_max, in UTF-8, is refused before it is parsed."""
    config = Config(selector_bytes_max=12)

    assert Selector("colour = 'r'", config).matches({"colour": "r"})
    with pytest.raises(SelectorError, match=r"13 bytes are over Config.selector_bytes_max = 12"):
        Selector("colour = 'ä'", config)


@pytest.mark.parametrize("operator", ["NOT ", "- ", "(x + ", "a + "])
def test_nesting_is_limited(operator: str) -> None:
    """Operators inside of each other are limited by Config.selector_depth_max, so evaluation cannot overflow."""

    def nested(depth: int) -> str:
        text = operator * depth + "a" + ")" * (depth * operator.count("("))
        return text if operator == "NOT " else f"{text} = 1"

    deepest = max(depth for depth in range(1, 70) if _compiles(nested(depth)))

    assert 60 <= deepest <= 64
    assert not Selector(nested(deepest)).matches({})
    with pytest.raises(SelectorError, match=r"over Config.selector_depth_max = 64"):
        Selector(nested(deepest + 1))
    assert not Selector(nested(10), Config(selector_depth_max=12)).matches({})
    with pytest.raises(SelectorError, match=r"over Config.selector_depth_max = 9"):
        Selector(nested(10), Config(selector_depth_max=9))


def _compiles(text: str) -> bool:
    try:
        Selector(text)
    except SelectorError:
        return False
    return True


def test_long_lists_are_not_deep() -> None:
    """Parentheses and chains of AND and OR nest nothing: their number is only limited by the length."""
    assert Selector(" OR ".join(["a = 1"] * 400)).matches({"a": 1})
    assert Selector(" AND ".join(["a = 1"] * 400)).matches({"a": 1})
    assert Selector("(" * 1000 + "a = 1" + ")" * 1000).matches({"a": 1})


def test_like_takes_no_exponential_time() -> None:
    """The pattern that brings backtracking matchers to their knees is answered at once."""
    selector = Selector("a LIKE '" + "%a" * 200 + "b%c'")
    text = "a" * 20_000

    began = time.thread_time()

    assert not selector.matches({"a": text})
    assert time.thread_time() - began < 2


def test_equality_and_text() -> None:
    """Selectors are equal by their text, usable as keys, and show it."""
    assert Selector("a = 1") == Selector("a = 1") != Selector("a  = 1")
    assert {Selector("a = 1"): 1}[Selector("a = 1")] == 1
    assert repr(Selector("a = 1")) == "Selector('a = 1')"
    assert Selector("a = 1").text == "a = 1"


# -- fuzzing -------------------------------------------------------------------------------------

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(),
    st.binary(max_size=3),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)
PIECES = st.one_of(
    st.sampled_from(["a", "b", "key", '"a"', "0", "7", "1.5", "1e300", "9223372036854775807", "'x'", "'%_'", "''"]),
    st.sampled_from(["AND", "OR", "NOT", "LIKE", "'a!%' ESCAPE '!'", "IN", "BETWEEN", "IS", "NULL", "TRUE", "FALSE"]),
    st.sampled_from(["(", ")", ",", "=", "<>", "<", "<=", ">", ">=", "+", "-", "*", "/"]),
)


@given(
    text=st.one_of(st.text(max_size=60), st.text(string.printable, max_size=60), st.lists(PIECES).map(" ".join)),
    headers=st.dictionaries(st.sampled_from(["a", "b"]), VALUES),
)
@example(text="a + b = a", headers={"a": 10**400, "b": 1.5})
def test_any_text_selects_or_is_refused(text: str, headers: dict[str, Any]) -> None:
    """Whatever the text and whatever the headers: an answer or a SelectorError, nothing else."""
    try:
        selector = Selector(text)
    except SelectorError as error:
        assert 0 <= error.position <= len(text)
        return

    assert selector.matches(headers, key=headers.get("b")) in (True, False)


# -- SQLite as the reference ---------------------------------------------------------------------

NUMBERS = st.one_of(
    st.sampled_from(["n", "m", "f", "0", "1", "2", "7", "10", "2.5", "0.1"]),
)
TEXTS = st.sampled_from(["s", "t", "''", "'a'", "'ab'", "'b%'", "'Ä'"])
PATTERNS = st.text("ab%_Ä", max_size=5)


def _sums(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds("{} {} {}".format, inner, st.sampled_from("+-*/"), inner),
        st.builds("({} {} {})".format, inner, st.sampled_from("+-*/"), inner),
        st.builds("- {}".format, inner.filter(lambda text: not text.startswith("-"))),
    )


SUMS = st.recursive(NUMBERS, _sums, max_leaves=5)
COMPARED = st.sampled_from(["=", "<>", "<", "<=", ">", ">="])
NEGATION = st.sampled_from(["", "NOT "])
LEAVES = st.one_of(
    st.builds("{} {} {}".format, SUMS, COMPARED, SUMS),
    st.builds("{} {} {}".format, TEXTS, COMPARED, TEXTS),
    st.builds("{} {}BETWEEN {} AND {}".format, SUMS, NEGATION, SUMS, SUMS),
    st.builds("{} {}BETWEEN {} AND {}".format, TEXTS, NEGATION, TEXTS, TEXTS),
    st.builds("{} {}IN ({}, {})".format, TEXTS, NEGATION, st.just("'a'"), st.just("'Ä'")),
    st.builds("{} {}IN ({}, {})".format, SUMS, NEGATION, st.just("1"), st.just("2.5")),
    st.builds("{} {}LIKE '{}'".format, TEXTS, NEGATION, PATTERNS),
    st.builds("{} {}LIKE '{}!%{}!_' ESCAPE '!'".format, TEXTS, NEGATION, PATTERNS, PATTERNS),
    st.builds("{} IS {}NULL".format, st.one_of(SUMS, TEXTS), NEGATION),
    st.sampled_from(["p", "q", "TRUE", "FALSE", "p = TRUE", "p <> q"]),
)
CONDITIONS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds("{} AND {}".format, inner, inner),
        st.builds("{} OR {}".format, inner, inner),
        st.builds("({})".format, inner),
        st.builds("NOT {}".format, inner),
    ),
    max_leaves=8,
)
ROWS = st.fixed_dictionaries(
    {
        "n": st.none() | st.integers(-20, 20),
        "m": st.none() | st.integers(-(2**62), 2**62),
        "f": st.none() | st.floats(-1e6, 1e6, allow_nan=False),
        "s": st.none() | st.text("abÄ%_", max_size=4),
        "t": st.none() | st.text("abÄ%_", max_size=4),
        "p": st.none() | st.booleans(),
        "q": st.none() | st.booleans(),
    }
)


@pytest.fixture(scope="module")
def database() -> Iterator[sqlite3.Connection]:
    """SQLite whose LIKE minds case, as ours does."""
    connection = sqlite3.connect(":memory:")
    connection.execute("PRAGMA case_sensitive_like = ON")
    yield connection
    connection.close()


@given(condition=CONDITIONS, row=ROWS)
def test_agrees_with_sqlite(database: sqlite3.Connection, condition: str, row: dict[str, Any]) -> None:
    """For conditions over columns of one type each, SQLite says the same: true, false or unknown."""
    columns = ", ".join(f"? AS {name}" for name in row)
    (answer,) = database.execute(f"SELECT {condition} FROM (SELECT {columns})", tuple(row.values())).fetchone()
    expected = None if answer is None else bool(answer)

    found = Selector(condition).matches(row)
    opposite = Selector(f"NOT ({condition})").matches(row)

    assert (found, opposite) == (expected is True, expected is False)
