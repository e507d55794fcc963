"""Received values as JSON or as one short line. What comes from the network may hold anything, escape codes too."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from zfabric.model import Message

__all__ = ["FieldMissing", "json_line", "pick", "record", "safe", "safe_text", "short"]

ARRAY_ITEMS_MAX = 16
"Items of an array that are shown."
_SHOWN_BYTES_MAX = 48

_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def safe(text: str) -> str:
    """The text without what a terminal would obey: control characters and changes of direction are spelt out."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def safe_text(text: str) -> str:
    """The same for text that may have several lines, and tabs."""
    return re.sub(r"[^\n\t]+", lambda match: safe(match.group()), text)


def plain(value: Any) -> Any:
    """The value made of what JSON has; bytes, arrays and extensions become objects that name their `encoding`."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return {"encoding": "base64", "data": _base64(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, msgspec.msgpack.Ext):
        return {"encoding": "base64", "extension": value.code, "data": _base64(bytes(value.data))}
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return _array(value)
    return str(value)


def _array(value: Any) -> dict[str, Any]:
    shown = {
        "encoding": "ndarray",
        "dtype": str(value.dtype),
        "shape": list(value.shape),
        "data": plain(value.ravel()[:ARRAY_ITEMS_MAX].tolist()),
    }
    if value.size > ARRAY_ITEMS_MAX:
        shown["omitted"] = int(value.size) - ARRAY_ITEMS_MAX
    return shown


def _base64(data: bytes | bytearray | memoryview) -> str:
    return base64.b64encode(data).decode("ascii")


def json_line(value: Any) -> bytes:
    """One line of JSON, with what a terminal would obey spelt out, which JSON itself allows in a string."""
    line = msgspec.json.encode(value) + b"\n"
    return line if line.isascii() and b"\x7f" not in line else safe_text(line.decode()).encode()


def record(message: Message, value: Any) -> dict[str, Any]:
    """A message as the object that `--json` prints; `value` is what `--field` picked."""
    shown: dict[str, Any] = {"topic": message.topic}
    if isinstance(value, bytes | bytearray | memoryview):
        shown |= {"value": _base64(value), "encoding": "base64"}
    else:
        shown["value"] = plain(value)
    shown |= {"seq": message.seq, "timestamp": message.timestamp, "source": message.source.name}
    shown["source_id"] = message.source.id
    if message.key is not None:
        shown["key"] = plain(message.key)
    if message.headers is not None:
        shown["headers"] = plain(message.headers)
    return shown


def short(value: Any) -> str:
    """The value in one line for a terminal."""
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value[:_SHOWN_BYTES_MAX])
        size = value.nbytes if isinstance(value, memoryview) else len(value)
        return f"bytes[{size}] {_base64(data)}{'…' if size > len(data) else ''}"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        array = _array(value)
        items = ", ".join(map(str, array["data"]))
        shape = "x".join(map(str, array["shape"]))
        return safe(f"{array['dtype']}[{shape}] [{items}{', …' if 'omitted' in array else ''}]")
    return safe(json.dumps(plain(value), ensure_ascii=False))


class FieldMissing(LookupError):
    """A value without the field that was asked for."""


def pick(value: Any, path: tuple[str, ...]) -> Any:
    """The part of a value that a path such as `position.x` or `cores.0` leads to. Raises FieldMissing."""
    for step in path:
        try:
            value = value[step] if isinstance(value, Mapping) else value[int(step)]
        except (LookupError, TypeError, ValueError):
            raise FieldMissing(step) from None
    return value
