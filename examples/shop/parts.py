"""The three services, each a process of its own; several of each may run."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

from zfabric.examples.shop.model import Books, Order, OutOfStock, Receipt

import zfabric

__all__ = ["PARTS", "run"]

STEP_S = 2.0
"How long one step of an order may take, with all its tries."


def payment(node: zfabric.Node, books: Books) -> None:
    """Takes money, and gives it back."""

    @node.service("payment.charge")
    async def charge(number: int, cents: int) -> None:
        books.enter("charged", number, cents)

    @node.service("payment.refund")
    async def refund(number: int) -> None:
        books.enter("refunded", number, books.entries("charged")[number])


def shipping(node: zfabric.Node, books: Books) -> None:
    """Sends parcels, as long as there is stock."""

    @node.service("shipping.book")
    async def book(number: int, article: str) -> None:
        if article == "unicorn":
            raise OutOfStock(article)
        books.enter("shipped", number, 1)


def order(node: zfabric.Node, _: Books) -> None:
    """Carries an order through all its steps, or back."""

    @node.service("order.place", concurrency=10)
    async def place(order: Order) -> Receipt:
        await node.request("payment.charge", order.number, order.cents, idempotent=True, wait=STEP_S)
        try:
            await node.request("shipping.book", order.number, order.article, idempotent=True, wait=STEP_S)
        except zfabric.RemoteError as error:  # the service has decided: trying again would not change it
            await node.request("payment.refund", order.number, idempotent=True, wait=STEP_S)
            return Receipt(order.number, "refunded", f"{error.type}: {error.message}")
        return Receipt(order.number, "shipped")


PARTS: dict[str, Callable[[zfabric.Node, Books], None]] = {"payment": payment, "shipping": shipping, "order": order}


async def run(part: str, fabric: str, folder: Path) -> None:
    """Provide one part's services until SIGTERM; then finish what was begun."""
    logging.getLogger("zfabric").setLevel(logging.CRITICAL)  # no stock is no fault: the customer is told
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    books = Books(folder / "books.db")
    async with zfabric.Node(f"{part}-{os.getpid()}", fabric=fabric) as node:
        PARTS[part](node, books)
        await stop.wait()
    books.close()
