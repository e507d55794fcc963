"""The `zfabric` command. Each verb is a file of its own beside this one, loaded when it is called."""

from __future__ import annotations

from zfabric.cli._program import main

__all__ = ["main"]
