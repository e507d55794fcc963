"""How many turns of the event loop things take, and that nobody waits for a turn that never comes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tests.node.support import TIMEOUT, MakeNode
from zfabric.transport.base import Buffer, Route
from zfabric.wire.records import Heartbeat, encode_envelope


class Turns:
    """Counts the turns of the running loop."""

    def __init__(self) -> None:
        self.count = 0
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self.count += 1
        self._handle = self._loop.call_soon(self._turn)

    def stop(self) -> None:
        """Count no more."""
        self._handle.cancel()


async def test_a_reader_goes_on_in_the_turn_in_which_its_batch_is_read(make_node: MakeNode) -> None:
    """And what it publishes leaves in that turn, too: relaying costs one turn of the loop for each hop."""
    ends, relay = await make_node("ends"), await make_node("relay")
    asked, answers = ends.publisher("asked"), ends.subscribe("answers")
    answering, questions = relay.publisher("answers"), relay.subscribe("asked")
    await answering.wait_for(subscribers=1, timeout=TIMEOUT)
    await asked.wait_for(subscribers=1, timeout=TIMEOUT)
    turns: list[int] = []
    assert relay._driver is not None
    transport = relay._driver._transport
    publish = transport.publish

    async def answer() -> None:
        async for question in questions:
            turns.append(turn.count)
            answering.publish_nowait(question.value)

    def publishing(frames: Sequence[Buffer]) -> None:
        turns.append(turn.count)
        publish(frames)

    transport.publish = publishing  # type: ignore[method-assign]
    answerer = asyncio.create_task(answer())
    await asyncio.sleep(0)
    turn = Turns()
    asked.publish_nowait("ping")
    assert (await answers.receive(timeout=TIMEOUT)).value == "ping"
    turn.stop()

    assert turns[0] == turns[1]
    answerer.cancel()


async def test_a_message_that_is_not_dealt_with_comes_again_at_once(make_node: MakeNode) -> None:
    """Its reader is woken although nothing arrives."""
    node = await make_node("a", heartbeat_interval_s=60, peer_timeout_s=180)
    subscription = node.subscribe("t", ack="manual", delivery="at-least-once")
    await node.publisher("t", delivery="at-least-once").publish("again")
    await (await subscription.receive(timeout=TIMEOUT)).nack(delay=0.01)

    assert (await subscription.receive(timeout=TIMEOUT)).value == "again"


async def test_a_reader_s_request_leaves_at_once(make_node: MakeNode) -> None:
    """Also where it goes on in a call in which the core has nothing else to do."""
    ends, asking = await make_node("ends"), await make_node("asking")
    publisher, subscription = ends.publisher("t"), asking.subscribe("t")

    @ends.service("echo")
    async def echo(value: str) -> str:
        return value

    await publisher.wait_for(subscribers=1, timeout=TIMEOUT)
    await asking.wait_for_service("echo", timeout=TIMEOUT)
    assert asking._driver is not None
    transport = asking._driver._transport
    send = transport.send
    read: list[int] = []
    sent: list[int] = []

    async def ask() -> str:
        message = await anext(subscription)
        read.append(turn.count)
        return str(await asking.request("echo", message.value, timeout=TIMEOUT))

    def sending(route: Route, frame: bytes) -> bool:
        sent.append(turn.count)
        return send(route, frame)

    turn = Turns()
    transport.send = sending  # type: ignore[method-assign]
    asker = asyncio.create_task(ask())
    await asyncio.sleep(0)
    publisher.publish_nowait("ping")
    assert await asyncio.wait_for(asker, TIMEOUT) == "ping"
    turn.stop()

    assert read[0] in sent


async def test_nothing_is_looked_through_after_a_heartbeat(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a large mesh most frames are heartbeats: none asks all machines what they have to say."""
    one, _ = await make_node("one"), await make_node("two")
    await one.wait_for_peers(1, timeout=TIMEOUT)
    driver = one._driver
    assert driver is not None
    (peer,) = driver.core.peers.up()
    frame = encode_envelope(peer.id, [Heartbeat(driver.core.peers._digest)])
    driver.pump()
    asked: list[float] = []
    monkeypatch.setattr(driver.core, "actions", asked.append)
    heard, peer.last_heard = peer.last_heard, 0.0
    for _ in range(10):
        driver.on_control(peer.routes[0], frame)
        driver.on_burst_end()
    assert not asked
    assert peer.last_heard >= heard
