"""Keys in a fabric in memory."""

from __future__ import annotations

from zfabric import AuthenticationFailed, Node, new_key
from zfabric.testing import MemoryFabric, run


def test_the_same_key_or_nothing() -> None:
    """As over ZeroMQ: same key, peers; another key or none, AuthenticationFailed on both sides and no peers."""

    async def scenario() -> None:
        async with MemoryFabric() as fabric:
            key = new_key()
            one, two = await fabric.open("one", key=key), await fabric.open("two", key=key)
            events = {}
            strangers: list[Node] = []
            for name, other in (("other", new_key()), ("plain", None)):
                strangers.append(await fabric.open(name, key=other, seeds=one.endpoints))
                events[name] = strangers[-1].events()
            at_one = one.events()
            await fabric.clock.advance(10)

            assert [peer.name for peer in one.peers] == ["two"]
            assert [peer.name for peer in two.peers] == ["one"]
            assert [node.peers for node in strangers] == [(), ()]
            for stream in (at_one, *events.values()):
                stream.close()
                reasons = [event.reason async for event in stream if isinstance(event, AuthenticationFailed)]
                assert any("another key" in reason for reason in reasons)

    run(scenario())
