"""A handler's parameters: each argument is decoded as its annotation says."""

from __future__ import annotations

import functools
import inspect
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from zfabric.errors import DecodeFailed, LocalProtocolError
from zfabric.wire.codec import Codec

__all__ = ["INLINE", "Signature", "Unfit", "unwrapped"]

INLINE = sys.maxsize
"`inline_bytes` of a Codec that sends nothing out of band."

RESERVED = frozenset({"timeout", "idempotent", "hedge", "version", "wait", "type"})
"Options of `node.request`: an argument of that name could not be given by name."

_split = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_KEYWORDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def unwrapped(handler: Any) -> Any:
    """The function that a call of `handler` runs, be it a partial of one or an object with `__call__`.

    Raises TypeError for what cannot be called.
    """
    while isinstance(handler, functools.partial):
        handler = handler.func
    if not callable(handler):
        raise TypeError(f"{handler!r} is not a callable object")
    return handler if inspect.isroutine(handler) else handler.__call__


class Unfit(Exception):
    """Arguments that a handler cannot be called with, and why."""


class Signature:
    """What a handler takes and gives.

    Raises TypeError for annotations that msgspec does not know or that cannot be found, and LocalProtocolError for a
    parameter with the name of an option of `node.request`.
    """

    def __init__(self, handler: Callable[..., Any], *, streams: bool) -> None:
        try:
            hints = typing.get_type_hints(unwrapped(handler), include_extras=True)
        except NameError as error:
            raise TypeError(
                f"an annotation of {handler!r} is not known at the top level of its module: {error}"
            ) from None
        self._signature = inspect.signature(handler)
        self.result = hints.get("return", Any)
        if streams:
            self.result = next(iter(typing.get_args(self.result)), Any)
        self._positional: list[tuple[str, Codec]] = []
        self._named: dict[str, Codec] = {}
        self._rest: Codec | None = None
        self._named_rest: Codec | None = None
        self._required = 0
        types: list[Any] = []
        for name, parameter in self._signature.parameters.items():
            if name in RESERVED and parameter.kind in _KEYWORDS:
                raise LocalProtocolError(f"parameter {name!r} is an option of node.request: rename it")
            self._add(parameter, Codec(hints.get(name, Any), inline_bytes=INLINE))
            if parameter.kind in _POSITIONAL:
                types.append(hints.get(name, Any))
        self._plain = self._required <= len(self._positional)
        "Whether arguments by position suffice."
        self._whole = Codec(tuple.__class_getitem__(tuple(types)), inline_bytes=INLINE)
        "All arguments by position at once."

    def _add(self, parameter: inspect.Parameter, codec: Codec) -> None:
        name, kind = parameter.name, parameter.kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            self._rest = codec
        elif kind is inspect.Parameter.VAR_KEYWORD:
            self._named_rest = codec
        else:
            if kind is not inspect.Parameter.KEYWORD_ONLY:
                self._positional.append((name, codec))
            if kind is not inspect.Parameter.POSITIONAL_ONLY:
                self._named[name] = codec
            if parameter.default is inspect.Parameter.empty:
                self._required += 1 if kind is not inspect.Parameter.KEYWORD_ONLY else sys.maxsize // 2

    def bind(self, arguments: msgspec.Raw, options: dict[str, msgspec.Raw]) -> tuple[Sequence[Any], dict[str, Any]]:
        """The arguments to call the handler with. Raises Unfit."""
        if self._plain and not options:
            try:
                return self._whole.decode(arguments), {}
            except DecodeFailed:
                pass  # there are fewer or more, or the reason is told below
        try:
            raws = _split(arguments)
        except msgspec.MsgspecError as error:
            raise Unfit(str(error)) from None
        values = [_decode(name, codec, raw) for (name, codec), raw in zip(self._positional, raws, strict=False)]
        if not options and self._required <= len(raws) == len(values):
            return values, {}
        if self._rest is not None:
            values += [_decode("*", self._rest, raw) for raw in raws[len(values) :]]
        elif len(raws) > len(values):
            raise Unfit(f"takes {len(values)} arguments, not {len(raws)}")
        others: dict[str, Any] = {}
        for name, raw in options.items():
            codec = self._named.get(name, self._named_rest)
            if codec is None:
                raise Unfit(f"has no parameter {name!r}")
            others[name] = _decode(name, codec, raw)
        try:
            self._signature.bind(*values, **others)
        except TypeError as error:
            raise Unfit(str(error)) from None
        return values, others


def _decode(name: str, codec: Codec, raw: msgspec.Raw) -> Any:
    try:
        return codec.decode(raw)
    except DecodeFailed as error:
        raise Unfit(f"argument {name!r}: {error.reason.removeprefix('bad payload: ')}") from None
