"""The persistence node: a log of batches beside the fabric.

`Store` is the node, to be embedded; `zfabric store run` runs one. The log alone:

`open_log("sqlite:///var/lib/zfabric")` opens one on disk (the extra `zfabric[store]`), `open_log("memory:")` one
that lives as long as the process. Other engines add themselves as entry points of the group `zfabric.stores`.
"""

from __future__ import annotations

from zfabric.store.engines import open_log
from zfabric.store.log import (
    Append,
    Appended,
    Commit,
    Gap,
    Key,
    Log,
    Mark,
    Outcome,
    Position,
    PositionUpdate,
    Retention,
    StoredBatch,
    StreamInfo,
)
from zfabric.store.node import Store
from zfabric.store.writer import Writer

__all__ = [
    "Append",
    "Appended",
    "Commit",
    "Gap",
    "Key",
    "Log",
    "Mark",
    "Outcome",
    "Position",
    "PositionUpdate",
    "Retention",
    "Store",
    "StoredBatch",
    "StreamInfo",
    "Writer",
    "open_log",
]
