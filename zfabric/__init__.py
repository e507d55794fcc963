"""zfabric: a brokerless messaging fabric over ZeroMQ.

The public names stand in `_api.py` and are loaded when the first of them is used (PEP 562): a command that shows its
help, or a program that asks for a version, needs no sockets.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zfabric._api import *  # noqa: F403 - the one list of names is there
    from zfabric._api import __all__ as __all__


def __getattr__(name: str) -> Any:
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module 'zfabric' has no attribute {name!r}")
    try:
        value = globals()[name] = getattr(import_module("zfabric._api"), name)
    except AttributeError:
        raise AttributeError(f"module 'zfabric' has no attribute {name!r}") from None
    return value


def __dir__() -> list[str]:
    return [*import_module("zfabric._api").__all__]
