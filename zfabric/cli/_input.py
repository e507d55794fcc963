"""What `pub` sends: its argument, or what stands on stdin, read without holding the event loop up."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from zfabric.cli._exits import Exit, Stop

__all__ = ["Form", "argument", "chunks", "lines", "parse", "whole"]

_CHUNK_BYTES = 64 * 1024
_CHUNKS_AHEAD = 4


class Form:
    """How text becomes a value."""

    AUTO = "auto"
    TEXT = "text"
    RAW = "raw"


def parse(data: bytes, form: str, where: str = "VALUE", cure: str = "send it as bytes with --raw") -> Any:
    """The value that `data` stands for: bytes, text, or JSON and failing that text."""
    if form == Form.RAW:
        return data
    if form == Form.AUTO:
        try:
            return msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Stop(Exit.FAILED, f"{where} is not UTF-8 text: {cure}") from None


def argument(given: str, form: str) -> Any:
    """What an argument of the command line stands for, where bytes cannot be given."""
    return parse(os.fsencode(given), form, cure="give JSON or text")


async def lines(bytes_max: int) -> AsyncGenerator[bytes, None]:
    """The lines of stdin without their ends; empty ones are left out."""
    begun = bytearray()
    async for chunk in chunks():
        first, *following = chunk.split(b"\n")
        begun += first
        for next_line in following:
            if line := bytes(begun).rstrip(b"\r"):
                yield line
            begun = bytearray(next_line)
        if len(begun) > bytes_max:
            raise _too_long("a line of stdin", bytes_max)
    if line := bytes(begun).rstrip(b"\r"):
        yield line


async def whole(bytes_max: int) -> bytes:
    """All of stdin."""
    found = bytearray()
    async for chunk in chunks():
        found += chunk
        if len(found) > bytes_max:
            raise _too_long("stdin", bytes_max)
    return bytes(found)


def _too_long(what: str, bytes_max: int) -> Stop:
    return Stop(Exit.FAILED, f"{what} is longer than one message may be ({bytes_max} bytes): send it in parts")


async def chunks() -> AsyncGenerator[bytes, None]:
    """Stdin as it comes, read by a daemon thread: whoever ends the command does not wait for the next line.

    The descriptor is read directly, because a thread that waits inside of `sys.stdin` would block Python's exit.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Queue[bytes | OSError] = asyncio.Queue(_CHUNKS_AHEAD)
    descriptor = sys.stdin.fileno()

    def read() -> None:
        chunk: bytes | OSError
        while True:
            try:
                chunk = os.read(descriptor, _CHUNK_BYTES)
            except OSError as error:
                chunk = error
            try:
                asyncio.run_coroutine_threadsafe(found.put(chunk), loop).result()
            except (RuntimeError, asyncio.CancelledError):
                return
            if not chunk or isinstance(chunk, OSError):
                return

    threading.Thread(target=read, name="zfabric-stdin", daemon=True).start()
    while chunk := await found.get():
        if isinstance(chunk, OSError):
            raise chunk
        yield chunk
