"""`nodes`, `topics`, `hz` and `bw`: looking at what others do."""

from __future__ import annotations

import asyncio

import pytest

import zfabric
from tests.cli.processes import Commands
from tests.waiting import SLACK_S
from zfabric.cli import _benchpeer, bench
from zfabric.cli._exits import Stop
from zfabric.cli._options import Options
from zfabric.cli._output import Output
from zfabric.testing import MemoryFabric

pytestmark = pytest.mark.slow

BEAT_S = 0.02


async def beat(node: zfabric.Node, until: asyncio.Event) -> None:
    """Publish 100 bytes on `plant.temp` again and again."""
    publisher = node.publisher("plant.temp")
    while not until.is_set():
        publisher.publish_nowait(b"x" * 100)
        try:
            async with asyncio.timeout(BEAT_S):
                await until.wait()
        except TimeoutError:
            continue


async def test_nodes_and_topics(cli: Commands, node: zfabric.Node) -> None:
    """Nodes and topics are listed as JSON, and as plain columns where stdout is no terminal."""
    node.publisher("plant.temp")
    node.subscribe("plant.*")
    node.subscribe("plant.press")

    as_json, as_text, topics, table = await asyncio.gather(
        cli.run("nodes", "--json", "--wait", "1"),
        cli.run("nodes"),
        cli.run("topics", "--json"),
        cli.run("topics", "plant.temp"),
    )

    assert [outcome.code for outcome in (as_json, as_text, topics, table)] == [0, 0, 0, 0]
    (seen,) = [record for record in as_json.records if record["name"] == "friend"]
    assert seen["id"] == node.id
    assert seen["address"] in node.endpoints
    assert (seen["topics"], seen["patterns"]) == (["plant.temp"], ["plant.*", "plant.press"])
    assert "NAME" in as_text.out and node.id[:8] in as_text.out and "\x1b" not in as_text.out
    assert topics.records == [
        {"topic": "plant.press", "publishers": [], "subscribers": ["friend"], "stores": []},
        {"topic": "plant.temp", "publishers": ["friend"], "subscribers": ["friend"], "stores": []},
    ]
    assert table.out.splitlines() == [
        "TOPIC       PUBLISHERS  SUBSCRIBERS  STORES",
        "plant.temp  friend      friend       -",
    ]


async def test_hz_and_bw(cli: Commands, node: zfabric.Node) -> None:
    """Rates and sizes are about those of the publisher; a machine that stalls makes it slower, or come in a burst."""
    stop = asyncio.Event()
    beating = asyncio.create_task(beat(node, stop))
    hz, bw = await asyncio.gather(
        cli.run("hz", "plant.#", "--count", "2", "--json"), cli.run("bw", "--duration", "1.5", "--window", "10")
    )
    stop.set()
    await beating
    most_hz = (1 + SLACK_S) / BEAT_S

    assert (hz.code, bw.code) == (0, 0)
    last = hz.records[-1]
    assert last["topic"] == "plant.temp"
    assert 0 < last["rate_hz"] < most_hz
    assert last["interval_ms_min"] <= last["interval_ms_mean"] <= last["interval_ms_max"]
    last = bw.records[-1]
    assert last["message_bytes_mean"] == 100
    assert 0 < last["bytes_per_s"] < 100 * most_hz


async def test_nobody_there(cli: Commands) -> None:
    """Without any node each verb exits with 69, and --wait with 75."""
    nodes, waiting, topics, hz, refused = await asyncio.gather(
        cli.run("nodes", "--json"),
        cli.run("nodes", "--wait", "2", "--timeout", "0.2", ZFABRIC_FABRIC="b"),
        cli.run("topics", ZFABRIC_FABRIC="c"),
        cli.run("hz", "x", "--duration", "0.2", ZFABRIC_FABRIC="d"),
        cli.run("nodes", "--interface", "lan"),
    )

    assert (nodes.code, nodes.out) == (69, "")
    assert nodes.err.startswith("error: no node of fabric 'default' on this machine; try ")
    assert (waiting.code, waiting.err) == (75, "error: only 0 of 2 nodes came; give it longer with --timeout\n")
    assert topics.code == 69
    assert hz.code == 69
    assert hz.err.endswith("error: nobody publishes 'x'\n")
    assert refused.code in (77, 2)  # 2 where this machine is on no network
    assert "--insecure" in refused.err or "no interface 'lan'" in refused.err


async def test_silence_and_refusal(cli: Commands, node: zfabric.Node) -> None:
    """A topic without messages exits with 75; a node of another fabric refuses, which exits with 77."""
    node.publisher("plant.temp")
    tcp = next(endpoint for endpoint in node.endpoints if endpoint.startswith("tcp://127"))

    silent, refused = await asyncio.gather(
        cli.run("bw", "plant.temp", "--duration", "3"),
        cli.run("nodes", "--fabric", "other", "--seed", tcp),
    )

    assert (silent.code, refused.code) == (75, 77)
    assert silent.err.endswith("error: 'plant.temp' is published, but no message came\n")
    assert refused.err.startswith("error: refused: ")


async def test_top(cli: Commands, node: zfabric.Node) -> None:
    """One object tells of nodes, of what passes on topics, and of queues."""
    stop = asyncio.Event()
    await node.pusher("jobs").push("one")
    beating = asyncio.create_task(beat(node, stop))
    top, nobody = await asyncio.gather(
        cli.run("top", "plant.#", "--count", "2", "--json"), cli.run("top", "--timeout", "0.2", ZFABRIC_FABRIC="b")
    )
    stop.set()
    await beating

    assert (top.code, nobody.code) == (0, 69)
    last = top.records[-1]
    assert [(seen["name"], seen["topics"]) for seen in last["nodes"]] == [("friend", 1)]
    assert [(topic["topic"], topic["message_bytes_mean"]) for topic in last["topics"]] == [("plant.temp", 100)]
    assert last["topics"][0]["bytes_per_s"] > 0
    assert [(queue["queue"], queue["node"], queue["depth"]) for queue in last["queues"]] == [("jobs", "friend", 1)]


async def test_bench(cli: Commands) -> None:
    """A small run measures every mode between two processes."""
    bench = await cli.run("bench", "--messages", "2000", "--requests", "20", "--json")

    assert (bench.code, bench.err) == (0, "")
    assert [record["unit"] for record in bench.records] == ["messages/s"] * 3 + ["us"] * 2
    assert all(record["value"] > 0 for record in bench.records)


async def test_a_bench_whose_other_process_hangs_says_what_did_not_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if that has counted nothing yet."""
    monkeypatch.setattr("zfabric.cli.bench.START_S", 0.5)
    topic, hanging = next(iter(_benchpeer.TOPICS)), asyncio.Event()
    async with MemoryFabric(seed=1) as fabric:
        node, other = await fabric.open("bench"), await fabric.open("other")
        other.subscribe(topic)

        @other.service("bench.tally")
        async def tally(topic: str) -> None:
            await hanging.wait()

        await node.wait_for_service("bench.tally", timeout=30)
        with pytest.raises(Stop, match="10 of 10 messages did not arrive"):
            await bench._publish(Output(Options()), node, topic, 10, b"")
        hanging.set()
