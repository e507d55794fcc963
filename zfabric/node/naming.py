"""How a node introduces itself."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from zfabric.errors import LocalProtocolError
from zfabric.wire.fields import NAME_CHARS_MAX
from zfabric.wire.loans import MemoryOffer
from zfabric.wire.records import Identity

__all__ = ["check_names", "introduction", "program_name"]


def program_name() -> str:
    """What a node is called that was given no name."""
    stem = Path(sys.argv[0] or "python").stem.encode(errors="replace").decode()
    return f"{stem[: NAME_CHARS_MAX - 32]}-{os.getpid()}"


def check_names(fabric: object, name: object) -> None:
    """Raise LocalProtocolError for what no peer would take."""
    for what, text in (("fabric", fabric), ("name", name)):
        if not isinstance(text, str) or len(text) > NAME_CHARS_MAX or text != text.encode(errors="replace").decode():
            raise LocalProtocolError(f"{what}= is text of up to {NAME_CHARS_MAX} characters, not {text!r:.80}")


def introduction(token: bytes, fabric: str, name: str, longest: int, offer: MemoryOffer | None) -> Identity:
    """Who a node of this process is; where it listens is not known yet."""
    return Identity(token, fabric, name, socket.gethostname(), os.getpid(), (), (), longest, offer)
