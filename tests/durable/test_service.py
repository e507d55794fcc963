"""What a store keeps in memory for those who read it, and lets go when they go."""

from __future__ import annotations

from tests.durable.conftest import MakeStore
from tests.waiting import wait_until_async as until
from zfabric import Config, Node
from zfabric.protocol.peers import PeerRecord
from zfabric.store import Store
from zfabric.store.service import StoreService
from zfabric.testing import MemoryFabric
from zfabric.wire.store_records import AskStreams, Read, ReadStop


async def service_of(store: Store, reader: Node) -> tuple[StoreService, PeerRecord]:
    """The store's side, and the reader as it knows it."""
    driver = store.node._driver
    assert driver is not None and store._service is not None
    peers = driver.core.peers.known
    await until(lambda: bytes.fromhex(reader.id) in peers)
    return store._service, peers[bytes.fromhex(reader.id)]


async def test_a_reading_that_is_stopped_at_once_leaves_nothing(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """Also if it ends before it has begun: else the newest batches of its topic were kept for nobody."""
    store, reader = await make_store(), await fabric.open("reader")
    service, peer = await service_of(store, reader)

    service.records[Read](peer, Read(1, "orders", "earliest"), 0.0)
    service.records[ReadStop](peer, ReadStop(1), 0.0)

    await until(lambda: not service._tails)


async def test_watches_are_bounded(fabric: MemoryFabric, make_store: MakeStore) -> None:
    """A peer watches as many patterns as it may read streams; the rest is not answered, and it leaves nothing."""
    store = await make_store(config=Config(store_readings_per_peer_max=3))
    reader = await fabric.open("reader")
    service, peer = await service_of(store, reader)

    for number in range(10):
        service.records[AskStreams](peer, AskStreams(number, "orders.#"), 0.0)

    assert len(service._watches[peer.id]) == 3
    service.records[ReadStop](peer, ReadStop(1), 0.0)
    service.records[AskStreams](peer, AskStreams(11, "orders.#"), 0.0)
    assert set(service._watches[peer.id]) == {0, 2, 11}
    await reader.close()
    await until(lambda: peer.id not in service._watches)
