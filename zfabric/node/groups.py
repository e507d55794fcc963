"""Looking at the groups of stores, and moving them, for coroutines."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from zfabric.errors import GroupRefused
from zfabric.model import GroupMember, GroupProgress, GroupState
from zfabric.node.driver import Driver
from zfabric.node.options import texts
from zfabric.node.starts import Beginning
from zfabric.node.storeclient import TIMEOUT_S, StoreClient, Verb, ask_patiently, newest
from zfabric.protocol.stores import KnownStore
from zfabric.wire.fields import Start
from zfabric.wire.group_records import GroupTold
from zfabric.wire.topics import check_topic

__all__ = ["Groups"]

NOWHERE = Start()


class Groups:
    """The groups at all stores in sight; `node.groups` is one.

    `timeout` in seconds bounds the wait for a store and its answer. All raise NotStored when none answered by then,
    and NodeClosed. Those that name a group raise GroupRefused where no store has it, or this node may not read it.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def list(self, *, timeout: float | None = TIMEOUT_S) -> tuple[GroupState, ...]:
        """Every group that this node may read, by name."""
        return await ask_patiently(self._driver, self._list, timeout, "no store")

    async def get(self, group: str, *, timeout: float | None = TIMEOUT_S) -> GroupState:
        """One group: its members, and how far it has come in every topic."""
        return await self._do("list", group, timeout)

    async def lag(self, group: str, *, timeout: float | None = TIMEOUT_S) -> int:
        """How many messages a group is behind, in all its topics together: from the oldest that is not done with."""
        return (await self.get(group, timeout=timeout)).lag

    async def seek(
        self,
        group: str,
        start: str | int | datetime | timedelta,
        *,
        topics: Sequence[str] = (),
        timeout: float | None = TIMEOUT_S,
    ) -> GroupState:
        """Let a group go on elsewhere, in all its topics or in these; its members drop what they have in hand.

        `start`: `"earliest"`, `"latest"`, an offset (negative: that many last messages), a datetime or a timedelta
        into the past. Returns once that is safe. Raises ValueError for anything else, GroupRefused for a topic that the
        group does not read.
        """
        return await self._do(
            "seek",
            group,
            timeout,
            Beginning(start, None).of_group(),
            [check_topic(each) for each in texts("topics", topics)],
        )

    async def reset(self, group: str, *, topics: Sequence[str] = (), timeout: float | None = TIMEOUT_S) -> GroupState:
        """Let a group begin again with the oldest messages: `seek` to `"earliest"`."""
        return await self.seek(group, "earliest", topics=topics, timeout=timeout)

    async def pause(self, group: str, *, timeout: float | None = TIMEOUT_S) -> GroupState:
        """Send its members nothing until `resume`, also over restarts of the store. Returns once that is safe."""
        return await self._do("pause", group, timeout)

    async def resume(self, group: str, *, timeout: float | None = TIMEOUT_S) -> GroupState:
        """Let a group go on. Returns once that is safe."""
        return await self._do("resume", group, timeout)

    async def forget(self, group: str, *, timeout: float | None = TIMEOUT_S) -> None:
        """Let a store know nothing of a group any more, its positions neither. Returns once that is safe.

        Raises GroupRefused while it has members. Who joins later makes a new group.
        """

        async def ask(client: StoreClient) -> None:
            await client.groups(await self._store_of(client, group), "forget", group)

        await ask_patiently(self._driver, ask, timeout, "no store")

    async def _list(self, client: StoreClient) -> tuple[GroupState, ...]:
        found = [_state(store, group) for store, group in await self._look(client)]
        return tuple(sorted(found, key=lambda group: group.name))

    async def _look(self, client: StoreClient) -> Sequence[tuple[KnownStore, GroupTold]]:
        stores = self._driver.core.stores
        await client.wait_for(lambda: next(iter(stores.all()), None))
        return [(store, group) for store in newest(stores) for group in await client.groups(store)]

    async def _do(
        self, verb: Verb, group: str, timeout: float | None, start: Start = NOWHERE, topics: Sequence[str] = ()
    ) -> GroupState:
        async def ask(client: StoreClient) -> GroupState:
            store = await self._store_of(client, group)
            (told,) = await client.groups(store, verb, group, start, topics)
            return _state(store, told)

        return await ask_patiently(self._driver, ask, timeout, "no store")

    async def _store_of(self, client: StoreClient, group: str) -> KnownStore:
        known = {told.name: store for store, told in await self._look(client)}
        if group not in known:
            raise GroupRefused(group, f"no store has it; there are: {', '.join(sorted(known)) or 'none'}")
        return known[group]


def _state(store: KnownStore, told: GroupTold) -> GroupState:
    return GroupState(
        name=told.name,
        pattern=told.pattern,
        partitions=told.partitions,
        paused=told.paused,
        members=tuple(GroupMember(each.node, each.member, each.partitions) for each in told.members),
        topics={topic: GroupProgress(each.position, each.next) for topic, each in told.streams.items()},
        refused=told.refused,
        store=store.id.hex(),
    )
