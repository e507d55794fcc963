"""`zfabric store groups`: looking at groups and moving them while their members run."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

import zfabric
from tests.cli.processes import Commands
from tests.waiting import wait_until_async
from zfabric.cli import main
from zfabric.node.shared import SharedSubscription


async def test_groups_are_shown_moved_and_paused(cli: Commands, node: zfabric.Node, tmp_path: Path) -> None:
    """list, lag, seek, reset, pause, resume and forget, each with what it does to a member; and the store's topics."""
    store = await cli.start("store", "run", str(tmp_path / "data"))
    await store.note("keeping")
    orders = node.publisher("orders", durable=True, confirm="stored")
    await orders.wait_for(stores=1, timeout=30)
    await orders.publish_many(range(100))
    bills = node.subscribe("orders", group="billing", start="earliest")
    assert isinstance(bills, SharedSubscription)
    assert [(await bills.receive(timeout=30)).value for _ in range(100)] == list(range(100))

    (listed,) = (await cli.run("store", "groups", "list", "--json")).records
    (behind,) = (await cli.run("store", "groups", "lag", "billing", "--json")).records
    sought = await cli.run("store", "groups", "seek", "billing", "95", "--json")
    assert [(await bills.receive(timeout=30)).value for _ in range(5)] == list(range(95, 100))
    paused = await cli.run("store", "groups", "pause", "billing", "--json")
    reset = await cli.run("store", "groups", "reset", "billing")
    await wait_until_async(lambda: len(bills.partitions) == 64, 30)
    nothing = bills.pending
    resumed = await cli.run("store", "groups", "resume", "billing", "--json")
    again = [(await bills.receive(timeout=30)).value for _ in range(100)]
    unknown = await cli.run("store", "groups", "reset", "none")
    senseless = await cli.run("store", "groups", "seek", "billing", "somewhere")
    refused = await cli.run("store", "groups", "forget", "billing")
    await bills.close()
    forgotten = await cli.run("store", "groups", "forget", "billing")
    none = await cli.run("store", "groups", "list", "--json")
    topics = await cli.run("store", "topics", "list", "--json")
    purged = await cli.run("store", "topics", "purge", "orders", "--json")
    table = await cli.run("store", "topics", "list", "orders")
    await store.stop(signal.SIGTERM)

    assert [(told["topic"], told["first"], told["next"]) for told in topics.records] == [("orders", 0, 100)]
    assert (purged.records[0]["first"], purged.records[0]["retention"]["messages"]) == (100, None)
    assert table.out.split() == [
        "TOPIC",
        "FIRST",
        "NEXT",
        "SIZE",
        "KEEPS",
        "orders",
        "100",
        "100",
        "0",
        "B",
        "everything",
    ]
    assert (listed["group"], listed["pattern"], listed["partitions"]) == ("billing", "orders", 64)
    assert listed["members"] == [{"node": "friend", "member": "", "partitions": 64}]
    assert (behind["topic"], behind["next"]) == ("orders", 100)
    assert sought.records == [{"group": "billing", "topic": "orders", "position": 95, "next": 100, "lag": 5}]
    assert paused.records[0]["paused"]
    assert reset.code == 0
    assert nothing == 0
    assert not resumed.records[0]["paused"]
    assert again == list(range(100))
    assert (unknown.code, senseless.code) == (1, 2)
    assert (refused.code, forgotten.code, none.records) == (1, 0, [])
    assert "it has members" in refused.err
    assert "forgot group billing" in forgotten.err
    assert "group 'none': no store has it; there are: billing" in unknown.err


@pytest.mark.parametrize("to", ["9" * 30, "\u00b2", "0001-01-01", "2026-13-45", ""])
def test_a_place_that_is_none_is_a_usage_error(capsys: pytest.CaptureFixture[str], to: str) -> None:
    """No number that an offset can be, no digit of a number, no time that there is in UTC."""
    assert main(["store", "groups", "seek", "billing", to]) == 2
    assert "not an offset" in capsys.readouterr().err


async def test_without_a_store_it_says_so(cli: Commands) -> None:
    """69: nobody there."""
    found = await cli.run("store", "groups", "list", "--timeout", "1")

    assert found.code == 69
    assert "no store" in found.err
