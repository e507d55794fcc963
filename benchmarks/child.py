"""The child's side of the harness: plays one role and meets the other processes over a pipe."""

from __future__ import annotations

import asyncio
import os
import pickle
import traceback
from typing import Any

from benchmarks import bytecode
from benchmarks.model import Run

__all__ = ["run_role"]


class PipeLink:
    """A role's link to the harness."""

    def __init__(self, name: str, connection: Any) -> None:
        self.name = name
        self._connection = connection

    def meet(self, value: Any = None) -> dict[str, Any]:
        """Wait until every process of the run is here too; returns what each brought, by name."""
        self._connection.send(("meet", value))
        met: dict[str, Any] = self._connection.recv()
        return met

    async def meet_async(self, value: Any = None) -> dict[str, Any]:
        """The same without blocking the event loop."""
        return await asyncio.to_thread(self.meet, value)


def run_role(pickled: bytes, run: Run, name: str, connection: Any) -> None:
    """Load the role, play it, and send its result or its traceback to the harness."""
    os.environ["ZFABRIC_RUNTIME_DIR"] = run.directory
    bytecode.keep()
    try:
        # Only now, so that the environment is set before the peer's library is imported.
        role = pickle.loads(pickled)  # noqa: S301 - written by the harness that started this process
        connection.send(("done", dict(role(run, PipeLink(name, connection)))))
    except (EOFError, BrokenPipeError):
        pass  # The harness gave up on this run.
    except Exception:  # noqa: BLE001 - the harness reports whatever a peer raises
        connection.send(("failed", traceback.format_exc()))
        raise SystemExit(1) from None
