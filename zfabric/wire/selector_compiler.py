"""Compiles the text of a selector to closures; loaded with the first selector, because it loads lark.

Selectors come from peers too. Nothing is evaluated as code: the text is parsed by LALR(1) without recursion, and each
rule becomes a closure as it is reduced. Length and nesting are limited, and `LIKE` takes no exponential time.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from functools import cache
from math import isfinite
from typing import Any, NoReturn, TypeAlias

from lark import Lark, Token, Transformer, v_args
from lark.exceptions import UnexpectedCharacters, UnexpectedToken

from zfabric.errors import SelectorError

__all__ = ["COLUMNS", "Evaluate", "compile_selector"]

COLUMNS = ("key", "priority", "attempt", "topic")
"Names that stand for the message's own values, not for headers."

Headers: TypeAlias = Mapping[str, Any]
Columns: TypeAlias = tuple[Any, ...]
Evaluate: TypeAlias = Callable[[Headers, Columns], Any]
"What a part is for one message: its headers, and its own values in the order of `COLUMNS`."

_GRAMMAR = r"""
?start: disjunction
?disjunction: conjunction (_OR conjunction)*
?conjunction: negation (_AND negation)*
?negation: NOT negation -> negated
    | condition
?condition: sum
    | sum (EQUAL | ORDER) sum -> compared
    | sum [NOT] LIKE STRING [_ESCAPE STRING] -> like
    | sum [NOT] IN "(" literal ("," literal)* ")" -> among
    | sum [NOT] BETWEEN sum _AND sum -> between
    | sum IS [NOT] _NULL -> is_null
?sum: product
    | sum SIGN product -> calculated
?product: unary
    | product (TIMES | DIVIDED) unary -> calculated
?unary: primary
    | SIGN unary -> signed
?primary: literal_value
    | NAME -> named
    | QUOTED -> quoted
    | "(" disjunction ")"
?literal_value: STRING -> string
    | NUMBER -> number
    | TRUTH -> truth
?literal: literal_value
    | SIGN NUMBER -> signed_number

_AND.2: /AND(?![A-Z0-9_$.])/i
_OR.2: /OR(?![A-Z0-9_$.])/i
NOT.2: /NOT(?![A-Z0-9_$.])/i
LIKE.2: /LIKE(?![A-Z0-9_$.])/i
_ESCAPE.2: /ESCAPE(?![A-Z0-9_$.])/i
IN.2: /IN(?![A-Z0-9_$.])/i
BETWEEN.2: /BETWEEN(?![A-Z0-9_$.])/i
IS.2: /IS(?![A-Z0-9_$.])/i
_NULL.2: /NULL(?![A-Z0-9_$.])/i
TRUTH.2: /(TRUE|FALSE)(?![A-Z0-9_$.])/i
NAME: /[A-Z_$][A-Z0-9_$.]*/i
QUOTED: /"([^"]|"")+"/
STRING: /'([^']|'')*'/
NUMBER: /([0-9]+(\.[0-9]*)?|\.[0-9]+)(E[+-]?[0-9]+)?/i
EQUAL.2: "=" | "<>"
ORDER: "<=" | ">=" | "<" | ">"
SIGN: "+" | "-"
TIMES: "*"
DIVIDED: "/"
%ignore /[ \t\r\n]+/
"""

_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1
_SHOWN_MAX = 40


class _Node:
    """A part of a selector: how to evaluate it, what it can be, and how deep operators stand in each other."""

    __slots__ = ("depth", "evaluate", "kind", "position")

    depth: int

    def __init__(self, kind: str, evaluate: Evaluate, position: int, *parts: _Node) -> None:
        self.kind = kind
        self.evaluate = evaluate
        self.position = position
        self.depth = 1 + max((part.depth for part in parts), default=0)


_ANY, _TEXT, _NUMBER, _CONDITION = "a header", "text", "a number", "a condition"


def compile_selector(text: str, bytes_max: int, depth_max: int) -> Evaluate:
    """Check a selector and return what evaluates it: to True, False or None. Raises SelectorError."""
    if not isinstance(text, str):
        raise SelectorError(repr(text), 0, f"it must be str, not {type(text).__name__}")
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > bytes_max:
        raise SelectorError(text[:_SHOWN_MAX] + "...", f"{size} bytes are over Config.selector_bytes_max = {bytes_max}")
    try:
        node: Any = _parser().parse(text)
        _require(node, _CONDITION)
    except UnexpectedToken as error:
        if error.token.type == "$END":
            raise SelectorError(text, "it ends too early", len(text)) from None
        shown = str(error.token)[:_SHOWN_MAX]
        raise SelectorError(text, f"{shown!r} cannot stand here", error.token.start_pos or 0) from None
    except UnexpectedCharacters as error:
        position: Any = error.pos_in_stream
        cure = "; its quote is not closed" if text[position] in "'\"" else ""
        raise SelectorError(text, f"{text[position]!r} cannot stand here{cure}", position) from None
    except _Refused as error:
        raise SelectorError(text, error.reason, error.position) from None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SelectorError(text, "lone surrogates are no UTF-8", error.start) from None
    if node.depth > depth_max:
        reason = f"operators {node.depth} deep in each other are over Config.selector_depth_max = {depth_max}"
        raise SelectorError(text, reason, node.position)
    return _condition(node)


class _Refused(Exception):
    """Grammatical, but makes no sense; becomes a SelectorError that knows the text."""

    def __init__(self, reason: str, position: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.position = position


def _refuse(reason: str, token: Token) -> NoReturn:
    raise _Refused(reason, token.start_pos or 0)


def _require(node: _Node, *kinds: str) -> None:
    if node.kind is not _ANY and node.kind not in kinds:
        raise _Refused(f"{node.kind} stands where {' or '.join(kinds)} is needed", node.position)


@v_args(inline=True)
class _Builder(Transformer[Token, _Node]):
    """Each rule of the grammar: from its parts to a closure."""

    def named(self, name: Token) -> _Node:
        """A column, or a header."""
        if name in COLUMNS:
            index = COLUMNS.index(name)
            return _Node(_ANY, lambda _, columns: columns[index], name.start_pos or 0)
        return self._header(name, str(name))

    def quoted(self, name: Token) -> _Node:
        """A header of any name."""
        return self._header(name, name[1:-1].replace('""', '"'))

    def _header(self, token: Token, name: str) -> _Node:
        return _Node(_ANY, lambda headers, _: headers.get(name), token.start_pos or 0)

    def string(self, token: Token) -> _Node:
        """Text in single quotes."""
        return self._constant(_TEXT, _unquoted(token), token)

    def number(self, token: Token) -> _Node:
        """An integer of 64 bits or a float."""
        return self._constant(_NUMBER, _number(token), token)

    def truth(self, token: Token) -> _Node:
        """TRUE or FALSE."""
        return self._constant(_CONDITION, token.upper() == "TRUE", token)

    def signed_number(self, sign: Token, token: Token) -> _Node:
        """A number in the list of IN."""
        value = _number(token)
        return self._constant(_NUMBER, -value if sign == "-" else value, sign)

    def _constant(self, kind: str, value: Any, token: Token) -> _Node:
        return _Node(kind, lambda _headers, _columns: value, token.start_pos or 0)

    def signed(self, sign: Token, part: _Node) -> _Node:
        """`-x` is `0 - x`."""
        zero = self._constant(_NUMBER, 0, sign)
        return self.calculated(zero, sign, part)

    def calculated(self, left: _Node, sign: Token, right: _Node) -> _Node:
        """Arithmetic."""
        _require(left, _NUMBER)
        _require(right, _NUMBER)
        evaluate = _calculation(_ARITHMETIC[str(sign)], left.evaluate, right.evaluate)
        return _Node(_NUMBER, evaluate, left.position, left, right)

    def compared(self, left: _Node, sign: Token, right: _Node) -> _Node:
        """A comparison; truth values have no order."""
        ordered = sign.type == "ORDER"
        if ordered:
            _require(left, _NUMBER, _TEXT)
            _require(right, _NUMBER, _TEXT)
        evaluate = _comparison(_COMPARISONS[str(sign)], ordered=ordered, left=left.evaluate, right=right.evaluate)
        return _Node(_CONDITION, evaluate, left.position, left, right)

    def like(self, part: _Node, inverted: Token | None, _like: Token, pattern: Token, escape: Token | None) -> _Node:
        """LIKE."""
        _require(part, _TEXT)
        evaluate = _matching(_like_expression(pattern, escape).fullmatch, part.evaluate)
        return self._maybe_inverted(_Node(_CONDITION, evaluate, part.position, part), inverted)

    def among(self, part: _Node, inverted: Token | None, _in: Token, *options: _Node) -> _Node:
        """IN."""
        _require(part, _TEXT, _NUMBER)
        values = [option.evaluate({}, ()) for option in options]
        evaluate = _membership(frozenset((_EQUATABLE[value.__class__], value) for value in values), part.evaluate)
        return self._maybe_inverted(_Node(_CONDITION, evaluate, part.position, part), inverted)

    def between(self, part: _Node, inverted: Token | None, _between: Token, low: _Node, high: _Node) -> _Node:
        """BETWEEN: not below the one, nor above the other."""
        for operand in (part, low, high):
            _require(operand, _TEXT, _NUMBER)
        above = _comparison(operator.ge, ordered=True, left=part.evaluate, right=low.evaluate)
        below = _comparison(operator.le, ordered=True, left=part.evaluate, right=high.evaluate)
        node = _Node(_CONDITION, _all([above, below]), part.position, part, low, high)
        return self._maybe_inverted(node, inverted)

    def is_null(self, part: _Node, _is: Token, inverted: Token | None) -> _Node:
        """IS NULL: the only test that a missing header can pass."""
        inner = part.evaluate
        if inverted is None:
            return _Node(_CONDITION, lambda headers, columns: inner(headers, columns) is None, part.position, part)
        return _Node(_CONDITION, lambda headers, columns: inner(headers, columns) is not None, part.position, part)

    def negated(self, _not: Token, part: _Node) -> _Node:
        """NOT."""
        return _Node(_CONDITION, _inverse(_condition(part)), part.position, part)

    def _maybe_inverted(self, node: _Node, inverted: Token | None) -> _Node:
        return node if inverted is None else self.negated(inverted, node)

    def conjunction(self, *parts: _Node) -> _Node:
        """AND."""
        return _Node(_CONDITION, _all([_condition(part) for part in parts]), parts[0].position, *parts)

    def disjunction(self, *parts: _Node) -> _Node:
        """OR."""
        return _Node(_CONDITION, _any([_condition(part) for part in parts]), parts[0].position, *parts)


@cache
def _parser() -> Lark:
    return Lark(_GRAMMAR, parser="lalr", lexer="basic", transformer=_Builder(), maybe_placeholders=True)


# -- literals ------------------------------------------------------------------------------------


def _unquoted(token: Token) -> str:
    return token[1:-1].replace("''", "'")


def _number(token: Token) -> int | float:
    if token.isdigit():
        if len(token) > 19 or int(token) > _INT_MAX:
            _refuse("an integer must fit 64 bits; write it as a float, with a decimal point", token)
        return int(token)
    value = float(token)
    if not isfinite(value):
        _refuse("a number must be finite", token)
    return value


def _like_expression(pattern: Token, escape: Token | None) -> re.Pattern[str]:
    """`%` stands for any text, `_` for any character.

    The text between two `%` is looked for from the left and then kept: atomic groups cannot backtrack, so that a
    hostile pattern costs no more than (length of pattern) times (length of text).
    """
    mark = None
    if escape is not None:
        mark = _unquoted(escape)
        if len(mark) != 1:
            _refuse("ESCAPE needs one character", escape)
    segments, characters = [""], iter(_unquoted(pattern))
    for character in characters:
        if character == mark:
            character = next(characters, "")  # noqa: PLW2901 - the escaped one takes its place
            if not character or character not in ("%", "_", mark):
                _refuse(f"the escape character {mark!r} must stand before %, _ or itself", pattern)
            segments[-1] += re.escape(character)
        elif character == "%":
            segments.append("")
        else:
            segments[-1] += "." if character == "_" else re.escape(character)
    first, *rest = segments
    if rest:
        *middle, last = rest
        first += "".join(f"(?>.*?{segment})" for segment in middle if segment) + ".*" + last
    return re.compile(first, re.DOTALL)


# -- what runs for each message ------------------------------------------------------------------

_ORDERED: dict[type, str] = {int: _NUMBER, float: _NUMBER, str: _TEXT}
_EQUATABLE: dict[type, str] = {**_ORDERED, bool: _CONDITION}
_COMPARISONS = {
    "=": operator.eq,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def _divided(left: Any, right: Any) -> Any:
    """Integers divide as in SQL: towards zero."""
    if left.__class__ is int and right.__class__ is int:
        quotient = abs(left) // abs(right)
        return quotient if (left < 0) == (right < 0) else -quotient
    return left / right


_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": _divided,
}


def _condition(node: _Node) -> Evaluate:
    """A part as true, false or unknown; a header that is neither TRUE nor FALSE is unknown."""
    _require(node, _CONDITION)
    inner = node.evaluate
    if node.kind is _CONDITION:
        return inner

    def evaluate(headers: Headers, columns: Columns) -> bool | None:
        value = inner(headers, columns)
        return value if value is True or value is False else None

    return evaluate


def _comparison(compare: Callable[[Any, Any], Any], *, ordered: bool, left: Evaluate, right: Evaluate) -> Evaluate:
    kind = (_ORDERED if ordered else _EQUATABLE).get

    def evaluate(headers: Headers, columns: Columns) -> bool | None:
        first = left(headers, columns)
        if first is None:
            return None
        second = right(headers, columns)
        if second is None:
            return None
        found = kind(first.__class__)
        return found is not None and found is kind(second.__class__) and compare(first, second)

    return evaluate


def _calculation(calculate: Callable[[Any, Any], Any], left: Evaluate, right: Evaluate) -> Evaluate:
    """NULL for what is no number, a division by zero, or a result that is none; large integers become floats."""
    kind = _ORDERED.get

    def evaluate(headers: Headers, columns: Columns) -> float | None:
        first, second = left(headers, columns), right(headers, columns)
        if kind(first.__class__) is not _NUMBER or kind(second.__class__) is not _NUMBER:
            return None
        try:
            result = calculate(first, second)
            if not _INT_MIN <= result <= _INT_MAX:
                result = float(result)
        except (ArithmeticError, ValueError):
            return None
        return result if result == result else None  # noqa: PLR0124 - not a number is not equal to itself

    return evaluate


def _matching(match: Callable[[str], object], part: Evaluate) -> Evaluate:
    def evaluate(headers: Headers, columns: Columns) -> bool | None:
        value = part(headers, columns)
        return None if value is None else value.__class__ is str and match(value) is not None

    return evaluate


def _membership(options: frozenset[tuple[str, Any]], part: Evaluate) -> Evaluate:
    kind = _EQUATABLE.get

    def evaluate(headers: Headers, columns: Columns) -> bool | None:
        value = part(headers, columns)
        if value is None:
            return None
        found = kind(value.__class__)
        return found is not None and (found, value) in options

    return evaluate


def _inverse(part: Evaluate) -> Evaluate:
    def evaluate(headers: Headers, columns: Columns) -> bool | None:
        value = part(headers, columns)
        return None if value is None else not value

    return evaluate


def _all(parts: list[Evaluate]) -> Evaluate:
    """False as soon as one is, else unknown if one is."""

    def evaluate(headers: Headers, columns: Columns) -> bool | None:
        result: bool | None = True
        for part in parts:
            value = part(headers, columns)
            if value is False:
                return False
            if value is None:
                result = None
        return result

    return evaluate


def _any(parts: list[Evaluate]) -> Evaluate:
    """True as soon as one is, else unknown if one is."""

    def evaluate(headers: Headers, columns: Columns) -> bool | None:
        result: bool | None = False
        for part in parts:
            value = part(headers, columns)
            if value is True:
                return True
            if value is None:
                result = None
        return result

    return evaluate
