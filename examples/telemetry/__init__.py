"""Live telemetry of this machine: processes that find each other, fan readings out, and account for every one."""

from __future__ import annotations

from .demo import main

__all__ = ["main"]
