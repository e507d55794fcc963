"""A publisher, a store and a group on hosts of their own, cut off from each other one after the other."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.faults.firewall import Firewall, hosts_with_firewalls
from tests.netns import Namespace
from tests.waiting import wait_until
from zfabric import Config, Node, PeerJoined, PeerLeft, Subscription, TransactionFailed
from zfabric.store import Store, open_log
from zfabric.wire.batch import parse_batch

CONFIG = Config(mdns=False, ipc=False, heartbeat_interval_s=0.2, peer_timeout_s=1.0)
"Hosts of one machine share its files, and so would reach each other by ipc however they are cut off."
KEYS = 40
PORT = 7400


async def play(role: str, told: Path, data: str, own: str, address: str) -> None:
    """One process: it writes down whom it meets and loses, and what it has done."""
    with told.open("a", buffering=1) as lines:

        def tell(*words: Any) -> None:
            lines.write(json.dumps(words) + "\n")

        options: dict[str, Any] = {"interface": own, "insecure": True}  # IPv4 alone: that is what is cut
        if role == "store":
            async with Store(data, config=replace(CONFIG, port=PORT), **options) as store:
                await store.wait()
        async with Node(role, seeds=[f"tcp://{address}:{PORT}"], config=CONFIG, **options) as node:
            watching = asyncio.create_task(watch(node, tell))
            await (publish(node, tell) if role == "shop" else work(node, tell))
            watching.cancel()


async def watch(node: Node, tell: Any) -> None:
    """Tell of the store, as this node sees it."""
    async for event in node.events():
        if isinstance(event, PeerJoined | PeerLeft) and event.peer.name == "store":
            tell(type(event).__name__)


async def publish(node: Node, tell: Any) -> None:
    """Numbers, each with a key, until it is enough, all are stored, and the group is done with them."""
    numbers = node.publisher("numbers", durable=True, without_store="buffer")
    await numbers.wait_for(stores=1, timeout=20)
    pace_s, pause_s = 0.002, 0.05
    enough, number = asyncio.create_task(asyncio.to_thread(sys.stdin.readline)), 0
    while not enough.done():
        await numbers.publish(number, key=number % KEYS)
        number += 1
        await asyncio.sleep(pace_s)
    await numbers.flush()
    tell("stored", number)
    async with asyncio.timeout(30):
        while await node.groups.lag("workers", timeout=None):  # noqa: ASYNC110 - it is asked, nothing tells
            await asyncio.sleep(pause_s)
    tell("done")


async def work(node: Node, tell: Any) -> None:
    """Consume, transform, produce: each number has one result, stored together with the position."""
    numbers = node.subscribe("numbers", group="workers", start="earliest", delivery="exactly-once")
    async for batch in numbers.batches():
        with suppress(TransactionFailed):
            await transform(numbers, node.name, batch)
            tell("did", len(batch))


async def transform(numbers: Subscription, name: str, batch: Any) -> None:
    """One transaction."""
    async with numbers.transaction() as tx:
        for message in batch:
            await tx.publish("results", [name, message.value], key=message.key)


class Host:
    """A process on a host of its own."""

    def __init__(self, role: str, host: Namespace, firewall: Firewall, directory: Path, address: str) -> None:
        self.role = role
        self.firewall = firewall
        self._told = directory / f"{role}.jsonl"
        self._told.touch()
        command = (
            sys.executable,
            "-m",
            "tests.faults.test_stores",
            role,
            str(self._told),
            str(directory / "data"),
            host.ipv4,
            address,
        )
        self.process = host.run(*command)

    def told(self, what: str) -> list[Any]:
        """What it wrote down of a kind."""
        lines = [json.loads(line) for line in self._told.read_text().splitlines() if line.endswith("]")]
        return [line[1:] for line in lines if line[0] == what]

    @property
    def done(self) -> int:
        """Numbers that it has done."""
        return sum(count for (count,) in self.told("did"))


def cut_and_mend(host: Host, others: list[Host], address: str, ways: str) -> None:
    """Cut a host off from the store until it is missed; the others go on meanwhile; then mend it."""
    left, joined = len(host.told("PeerLeft")), len(host.told("PeerJoined"))
    {"both": host.firewall.cut, "from": host.firewall.drop_from, "to": host.firewall.drop_to}[ways](address)
    wait_until(lambda: len(host.told("PeerLeft")) > left, 20)
    done = sum(other.done for other in others)
    wait_until(lambda: not others or sum(other.done for other in others) > done + 20, 20)
    host.firewall.clear()
    wait_until(lambda: len(host.told("PeerJoined")) > joined, 20)


@pytest.mark.slow
def test_a_store_its_publisher_and_a_group_are_cut_off_from_each_other(tmp_path: Path) -> None:
    """The store from the publisher, then from a member, both ways and one way: all is stored and done once."""
    with hosts_with_firewalls(4) as hosts:
        address = hosts[0][0].ipv4
        roles = zip(("store", "shop", "first", "second"), hosts, strict=True)
        store, shop, first, second = (Host(role, host, wall, tmp_path, address) for role, (host, wall) in roles)
        wait_until(lambda: first.done > 50 and second.done > 50, 30)
        cut_and_mend(shop, [], address, "both")
        cut_and_mend(first, [second], address, "both")
        cut_and_mend(second, [first], address, "from")
        cut_and_mend(first, [second], address, "to")
        cut_and_mend(shop, [], address, "to")
        assert shop.process.stdin is not None
        shop.process.stdin.write("\n")
        shop.process.stdin.flush()
        wait_until(lambda: shop.told("done"), 60)
        store.process.terminate()
        store.process.wait(20)

    ((count,),) = shop.told("stored")
    with open_log(str(tmp_path / "data")) as log:
        numbers = [value for _, value in read(log, "numbers")]
        results = [value for _, value in read(log, "results")]
    assert numbers == list(range(count))
    assert Counter(value for _, value in results) == dict.fromkeys(range(count), 1)
    by_key = defaultdict(list)
    for _, value in results:
        by_key[value % KEYS].append(value)
    assert all(values == sorted(values) for values in by_key.values())
    assert {name for name, _ in results} == {"first", "second"}


def read(log: Any, topic: str) -> list[tuple[int, Any]]:
    """All offsets of a topic with what is there."""
    found: list[tuple[int, Any]] = []
    while items := log.read(topic, len(found), 1 << 20):
        for item in items:
            assert item.offset == len(found), item
            batch = parse_batch(item.frames, messages_max=65536, buffers_max=1000, topic_bytes_max=255)
            found += [(item.offset + place, value) for place, value in enumerate(msgspec.msgpack.decode(batch.body))]
    return found


if __name__ == "__main__":
    asyncio.run(play(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:6]))
