"""A store whose real disk fills up, as its publishers see it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from tests.durable.conftest import MakeStore
from tests.store.test_full import small_disk  # noqa: F401 - a fixture
from tests.waiting import wait_until_async as until
from zfabric import Config, NotStored
from zfabric.testing import MemoryFabric

TIMEOUT = 30.0


async def test_a_full_disk_and_room_again(
    small_disk: Path,  # noqa: F811 - the fixture
    fabric: MemoryFabric,
    make_store: MakeStore,
) -> None:
    """NotStored with the reason, reading goes on, and all that was confirmed or waited is there in the end, once."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_500_000))
    config = Config(store_reserve_bytes=300_000, store_checkpoint_bytes=200_000)
    store = await make_store(str(small_disk / "data"), config=config)
    node = await fabric.open("shop")
    orders = node.publisher("orders", durable=True, confirm="stored")
    await orders.wait_for(stores=1, timeout=TIMEOUT)
    confirmed: list[int] = []

    async def fill() -> None:
        for number in range(2000):
            await orders.publish([number, bytes(5000)])
            confirmed.append(number)

    with pytest.raises(NotStored, match="disk is full"):
        await fill()
    reader = (await fabric.open("reader")).subscribe("orders", start="earliest")
    assert [(await reader.receive(TIMEOUT)).value[0] for _ in confirmed] == confirmed
    ballast.unlink()

    def goes_on() -> bool:
        with suppress(NotStored):
            orders.publish_nowait(["on", b""])
            return True
        return False

    await until(goes_on, TIMEOUT)
    await orders.flush()
    rest = [(await reader.receive(TIMEOUT)).value[0] for _ in range(2)]

    assert len(confirmed) > 50
    assert rest == [len(confirmed), "on"]
    info = store.log.info("orders")
    assert info is not None and info.next == len(confirmed) + 2
