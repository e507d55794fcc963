"""What peers make at a store has a bound, and can be unmade."""

from __future__ import annotations

import uuid

import pytest

from tests.node.test_groups import FAST
from zfabric import Config, GroupRefused, Node
from zfabric.store import Store

BOUNDED = Config(mdns=False, store_groups_max=2, store_members_max=3)


async def test_groups_are_bounded_and_forgotten() -> None:
    """One too many is refused with the cure; what was forgotten makes room, and begins anew when it is joined again."""
    fabric = f"forgetting-{uuid.uuid4().hex[:8]}"
    async with Store("memory:", fabric=fabric, config=BOUNDED) as store, Node("a", fabric=fabric, config=FAST) as node:
        orders = node.publisher("orders", durable=True, confirm="stored")
        await orders.wait_for(stores=1, timeout=30)
        await orders.publish_many(range(10))
        for group in ("one", "two"):
            async with node.subscribe("orders", group=group, start="earliest") as reader:
                assert [(await reader.receive(timeout=30)).value for _ in range(10)] == list(range(10))
                with pytest.raises(GroupRefused, match="has members"):
                    await node.groups.forget(group)
        async with node.subscribe("orders", group="three") as third:
            with pytest.raises(GroupRefused, match=r"store_groups_max = 2; zfabric store groups forget GROUP"):
                await third.receive(timeout=30)
        await node.groups.forget("one")
        with pytest.raises(GroupRefused, match="there are: two"):
            await node.groups.forget("one")
        assert [name for name in store.log.positions() if name.startswith("group/one")] == []
        async with node.subscribe("orders", group="one", start=8) as again:
            assert [(await again.receive(timeout=30)).value for _ in range(2)] == [8, 9]


async def test_members_are_bounded() -> None:
    """Of all groups together; whoever leaves makes room, and who comes back has a place."""
    fabric = f"forgetting-{uuid.uuid4().hex[:8]}"
    async with Store("memory:", fabric=fabric, config=BOUNDED), Node("a", fabric=fabric, config=FAST) as node:
        members = [node.subscribe("orders", group=group, member=f"m-{group}") for group in ("one", "two")]
        members.append(node.subscribe("orders", group="two"))
        for member in members:
            await member.wait_for(timeout=30)
        late = node.subscribe("orders", group="one")
        with pytest.raises(GroupRefused, match="store_members_max = 3"):
            await late.wait_for(timeout=30)
        async with node.subscribe("orders", group="two", member="m-two") as returned:
            await returned.wait_for(timeout=30)
        await members[0].close()
        async with node.subscribe("orders", group="one") as later:
            await later.wait_for(timeout=30)
