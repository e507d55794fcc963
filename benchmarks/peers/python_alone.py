"""Python that does nothing: what start-up times are compared with."""

from __future__ import annotations

from benchmarks.model import Entry
from benchmarks.started import starting

__all__ = ["ENTRIES"]

ENTRIES = [Entry(workloads=("startup",), peer="Python alone", roles={"start": starting("print('hello', flush=True)")})]
