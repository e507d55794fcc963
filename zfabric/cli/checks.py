"""What a check of `zfabric doctor` is. Plugins add theirs under the entry point group `zfabric.doctor_checks`.

A plugin is a function that takes a `Situation` and returns checks; one that raises counts as a failed check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

__all__ = ["ENTRY_POINTS", "Check", "CheckFunction", "Situation", "Status", "failed", "ok", "skipped", "warned"]

ENTRY_POINTS = "zfabric.doctor_checks"


class Status(StrEnum):
    """How a check ended. Only `FAILED` makes the doctor exit with 1."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding."""

    name: str
    status: Status
    detail: str
    cure: str = ""
    "What to do about it."


@dataclass(frozen=True, slots=True)
class Situation:
    """What is asked about."""

    fabric: str
    interface: str
    insecure: bool
    mdns: bool
    timeout_s: float


CheckFunction: TypeAlias = Callable[[Situation], Iterable[Check]]


def ok(name: str, detail: str) -> Check:
    """All is well."""
    return Check(name, Status.OK, detail)


def warned(name: str, detail: str, cure: str) -> Check:
    """It works, but not as well as it could."""
    return Check(name, Status.WARNING, detail, cure)


def failed(name: str, detail: str, cure: str) -> Check:
    """It does not work."""
    return Check(name, Status.FAILED, detail, cure)


def skipped(name: str, detail: str, cure: str = "") -> Check:
    """It was not looked at, and why."""
    return Check(name, Status.SKIPPED, detail, cure)
