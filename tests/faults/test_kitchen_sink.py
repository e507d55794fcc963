"""A short run of the kitchen sink's round with a store; `python -m tests.faults.kitchen_sink` runs for longer."""

from __future__ import annotations

from pathlib import Path

from tests.faults.kitchen_sink import store_round
from tests.faults.proxy import Proxy

SEED = "1380"
"Its first faults are the four that the test wants, and short."


def test_a_store_its_group_and_its_workers_keep_their_promises_under_faults(tmp_path: Path, proxy: Proxy) -> None:
    """Kills, SIGSTOP and RST: confirmed is stored, the group skips nothing, no job is lost or done after its ack."""
    with store_round(tmp_path, proxy, SEED) as one:
        for _ in range(4):
            one.strike()
        one.finish()

    assert {"kill_store", "reset", "stop", "kill_consumer"} == one.done.keys()
