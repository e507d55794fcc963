"""Effects in a database, each once."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, TypeAlias

import pytest

import zfabric
from zfabric import Inbox, Message, Position, Source

Connect: TypeAlias = Callable[..., sqlite3.Connection]


def message(offset: int, partition: int = 3, topic: str = "orders", store: bytes = bytes(16)) -> Message:
    """One from a store."""
    made = Message(offset * 10, offset, topic, 0.0, Source("0" * 32, "shop"))
    made._place = partition, offset
    made._store = store
    return made


def bill(connection: sqlite3.Connection, inbox: Inbox, received: Message, *, fail: bool = False) -> bool:
    """The effect of a message."""
    with inbox.once(received) as fresh:
        if fresh:
            connection.execute("INSERT INTO bills VALUES (?)", (received.value,))
            if fail:
                raise ArithmeticError
    return fresh


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Connect]:
    """Makes connections to a database with a table for effects, and closes them."""
    with ExitStack() as stack:

        def make(**options: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = sqlite3.connect(tmp_path / "own.db", **options)
            return stack.enter_context(closing(connection))

        with make() as connection:
            connection.execute("CREATE TABLE bills (amount INTEGER)")
        yield make


def bills(connect: Connect) -> list[int]:
    """All effects, as another connection sees them."""
    return [amount for (amount,) in connect().execute("SELECT amount FROM bills ORDER BY rowid")]


def test_what_comes_twice_has_one_effect(connect: Connect) -> None:
    """After a restart too; other partitions, topics and readers count for themselves."""
    for _ in range(2):
        connection = connect()
        inbox = Inbox(connection, "billing")
        for received in (message(1), message(2), message(2), message(1), message(1, partition=4)):
            bill(connection, inbox, received)
        connection.close()

    assert bills(connect) == [10, 20, 10]
    connection = connect()
    assert bill(connection, Inbox(connection, "audit"), message(1))
    assert bill(connection, Inbox(connection, "billing"), message(1, topic="returns"))


def test_an_effect_that_fails_leaves_neither_itself_nor_the_position(connect: Connect) -> None:
    """It is done when the message comes again."""
    connection = connect()
    inbox = Inbox(connection, "billing")
    with pytest.raises(ArithmeticError):
        bill(connection, inbox, message(1), fail=True)

    assert bills(connect) == []
    assert bill(connection, inbox, message(1))
    assert bills(connect) == [10]


def test_two_members_with_one_message_have_one_effect(connect: Connect) -> None:
    """A member that was stopped and wakes finds the work done, or waits until it is."""
    one, two = connect(timeout=5), connect(timeout=0.05)
    first, second = Inbox(one, "billing"), Inbox(two, "billing")
    assert bill(one, first, message(1))
    with first.once(message(2)) as fresh:
        assert fresh
        one.execute("INSERT INTO bills VALUES (20)")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            bill(two, second, message(2))

    assert not bill(two, second, message(2))
    assert bills(connect) == [10, 20]


def test_the_position_of_a_reader_without_a_group_is_where_it_goes_on(connect: Connect) -> None:
    """`start=inbox.position(topic)`."""
    connection = connect()
    inbox = Inbox(connection, "mirror")
    assert inbox.position("orders") is None
    bill(connection, inbox, message(7, partition=-1))

    assert inbox.position("orders") == Position("orders", -1, 7, "00" * 16)


def test_other_ways_to_write_parameters(connect: Connect) -> None:
    """`format` gives the driver %s; what is not known is refused."""
    seen: list[str] = []

    class Recorded(sqlite3.Cursor):
        def execute(self, sql: str, parameters: Any = ()) -> Any:
            seen.append(sql)
            return super().execute(sql.replace("%s", "?"), parameters)

    class Connection(sqlite3.Connection):
        def cursor(self, factory: Any = Recorded) -> Any:
            return super().cursor(factory)

    connection = connect(factory=Connection)
    bill(connection, Inbox(connection, "billing", paramstyle="format"), message(1))

    assert any("%s" in sql for sql in seen)
    assert not any("?" in sql for sql in seen)
    with pytest.raises(ValueError, match="paramstyle"):
        Inbox(connection, "billing", paramstyle="named")


def test_autocommit_is_refused(connect: Connect) -> None:
    """There the position would be kept before the effect is."""
    with pytest.raises(ValueError, match="autocommit"):
        Inbox(connect(isolation_level=None), "billing")


def test_a_message_without_a_position_is_refused(connect: Connect) -> None:
    """It did not come from a store."""
    connection = connect()
    live = Message(1, 1, "orders", 0.0, Source("0" * 32, "shop"))
    with (
        pytest.raises(zfabric.LocalProtocolError, match="no position"),
        Inbox(connection, "billing").once(live),
    ):
        raise AssertionError


def test_positions_of_another_log_mean_nothing(connect: Connect) -> None:
    """A reader that moves to another store is told."""
    connection = connect()
    inbox = Inbox(connection, "billing")
    bill(connection, inbox, message(5))
    with pytest.raises(zfabric.LocalProtocolError, match="another store"):
        bill(connection, inbox, message(6, store=b"x" * 16))

    assert bills(connect) == [50]
