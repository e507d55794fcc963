"""What the services say to each other, and the books that they keep."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Literal

import msgspec

__all__ = ["Books", "Order", "OutOfStock", "Receipt"]


class Order(msgspec.Struct):
    """What a customer wants; the number is the customer's own."""

    number: int
    article: str
    cents: int


class Receipt(msgspec.Struct):
    """What became of an order."""

    number: int
    state: Literal["shipped", "refunded"]
    reason: str = ""


class OutOfStock(Exception):
    """There is none left; asking again does not help."""


class Books:
    """A table in a file that all providers of a service share. Every entry is made once, whoever asks how often."""

    def __init__(self, file: Path) -> None:
        self._database = sqlite3.connect(file, timeout=10, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        columns = "kind TEXT, number INT, value INT, PRIMARY KEY (kind, number)"
        self._database.execute(f"CREATE TABLE IF NOT EXISTS entries ({columns})")

    def enter(self, kind: str, number: int, value: int) -> None:
        """Make an entry, unless it is there."""
        self._database.execute("INSERT OR IGNORE INTO entries VALUES (?, ?, ?)", (kind, number, value))

    def entries(self, kind: str) -> dict[int, int]:
        """All entries of a kind."""
        return dict(self._database.execute("SELECT number, value FROM entries WHERE kind = ?", (kind,)))

    def close(self) -> None:
        """Close the file."""
        self._database.close()
