"""Places orders while processes are killed, and then looks whether the books agree."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

from zfabric.examples.shop.model import Books, Order, Receipt

import zfabric

__all__ = ["demonstrate"]

PATIENCE_S = 30.0


async def _start(part: str, fabric: str, folder: Path) -> asyncio.subprocess.Process:
    command = (sys.executable, "-m", "zfabric.examples.shop", part, fabric, str(folder))
    return await asyncio.create_subprocess_exec(*command)


async def demonstrate(count: int) -> int:
    """Place that many orders; returns the exit code."""
    fabric = f"shop-{os.getpid()}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = {
            part: [await _start(part, fabric, folder) for _ in range(2)] for part in ("payment", "shipping", "order")
        }
        try:
            async with zfabric.Node("customer", fabric=fabric) as node:
                receipts = await _place(node, count, parts)
        finally:
            for process in (process for some in parts.values() for process in some):
                if process.returncode is None:
                    process.terminate()
                await process.wait()
        return _check(receipts, folder)


async def _place(node: zfabric.Node, count: int, parts: dict[str, list[asyncio.subprocess.Process]]) -> list[Receipt]:
    """Place orders, a few at a time, and kill one process of each part on the way."""
    await node.wait_for_service("order.place", timeout=PATIENCE_S)
    victims = {count * (place + 1) // 4: some[0] for place, some in enumerate(parts.values())}
    turns = asyncio.Semaphore(5)

    async def place(number: int) -> Receipt:
        async with turns:
            if number in victims:
                victims[number].kill()
            order = Order(number, "unicorn" if number % 7 == 3 else "book", 100 + number)
            receipt: Receipt = await node.request(
                "order.place", order, idempotent=True, timeout=PATIENCE_S, type=Receipt
            )
            return receipt

    return await asyncio.gather(*(place(number) for number in range(count)))


def _check(receipts: list[Receipt], folder: Path) -> int:
    """Every order is charged and shipped, or charged and refunded, and nothing else is in the books."""
    books = Books(folder / "books.db")
    charged, refunded, shipped = (books.entries(kind) for kind in ("charged", "refunded", "shipped"))
    books.close()
    states = Counter(receipt.state for receipt in receipts)
    print(f"{len(receipts)} orders: {states['shipped']} shipped, {states['refunded']} refunded")
    print(f"charged {sum(charged.values())} cents, gave back {sum(refunded.values())}")
    good = (
        charged == {receipt.number: 100 + receipt.number for receipt in receipts}
        and shipped.keys() == {receipt.number for receipt in receipts if receipt.state == "shipped"}
        and refunded.keys() == {receipt.number for receipt in receipts if receipt.state == "refunded"}
    )
    print("the books agree, although a process of each part was killed" if good else "THE BOOKS DO NOT AGREE")
    return 0 if good else 1
