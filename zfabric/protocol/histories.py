"""All histories of one node: they begin with a lane, and end with it."""

from __future__ import annotations

from math import inf

from zfabric.config import Config
from zfabric.events import Event, Gap
from zfabric.model import Source
from zfabric.protocol.effects import Effects
from zfabric.protocol.history import History
from zfabric.protocol.lanes import Lane
from zfabric.protocol.peers import PeerTable
from zfabric.protocol.stores import Stores
from zfabric.protocol.streams import Streams
from zfabric.wire.batch import Batch
from zfabric.wire.records import Start

__all__ = ["Histories"]


class Histories:
    """Reads logs for the lanes that want to begin in the past."""

    def __init__(self, config: Config, effects: Effects, peers: PeerTable, streams: Streams, stores: Stores) -> None:
        self._config = config
        self._effects = effects
        self._peers = peers
        self._streams = streams
        self._stores = stores
        self._open: dict[Lane, History] = {}

    def open(
        self,
        lane: Lane,
        now: float,
        *,
        start: Start,
        offsets: dict[str, int] | None = None,
        store_id: bytes | None = None,
        live: bool,
        credit_bytes: int,
        rate: float = 0.0,
    ) -> History:
        """Begin to read; see `History`."""
        history = self._open[lane] = lane.history = History(
            self._stores,
            lane.pattern.text,
            lane.sink,
            _Reports(lane, self._effects, self._peers, self._streams),
            self._config,
            start=start,
            offsets=offsets,
            store_id=store_id,
            live=live,
            signed=lane.signed,
            credit_bytes=credit_bytes,
            rate=rate,
        )
        history.begin(now)
        return history

    def close(self, lane: Lane) -> None:
        """End what a lane reads, if it reads."""
        history = self._open.pop(lane, None)
        if history is not None:
            history.close()
            lane.history = None

    def timer(self) -> float:
        """When `handle_timer` has something to do."""
        return min((history.timer() for history in self._open.values()), default=inf)

    def handle_timer(self, now: float) -> None:
        """Time has passed."""
        for history in list(self._open.values()):
            if history.timer() <= now:
                history.handle_timer(now)


class _Reports:
    """Implements `reports.Reports`."""

    def __init__(self, lane: Lane, effects: Effects, peers: PeerTable, streams: Streams) -> None:
        self._lane = lane
        self._effects = effects
        self._peers = peers
        self._streams = streams
        self._sources: dict[bytes, Source] = {}

    def delivered(self, batch: Batch) -> None:
        self._streams.count(batch)

    def processed(self, batch: Batch, now: float) -> None:
        self._streams.processed(self._lane, batch.producer, batch.topic, batch.epoch, batch.end, now)

    def count_lost(self, gap: Gap) -> None:
        self._streams.count_lost(gap)

    def emit(self, event: Event) -> None:
        self._effects.emit(event)

    def source(self, producer: bytes) -> Source:
        peer = self._peers.known.get(producer)
        if peer is not None:
            return peer.source
        source = self._sources.get(producer)
        if source is None:
            if len(self._sources) >= SOURCES_MAX:
                self._sources.clear()
            source = self._sources[producer] = Source(producer.hex(), producer.hex()[:8])
        return source


SOURCES_MAX = 10_000
"Producers that are gone, whose ids are kept as text."
