"""Effects in a database of one's own, each exactly once: the effect and the message's position in one transaction.

    inbox = Inbox(connection, "billing")
    async for message in node.subscribe("orders", group="billing", start="earliest"):
        with inbox.once(message) as fresh:
            if fresh:
                connection.execute("INSERT INTO bills VALUES (?, ?)", (message.key, message.value))

Works with sqlite3 and every DB-API 2.0 connection whose `execute` or cursor begins a transaction by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zfabric.errors import LocalProtocolError
from zfabric.model import Message, Position

__all__ = ["Inbox"]

CREATE = (
    "CREATE TABLE IF NOT EXISTS zfabric_inbox (name VARCHAR(255) NOT NULL, topic VARCHAR(255) NOT NULL,"
    " part INTEGER NOT NULL, position BIGINT NOT NULL, store CHAR(32) NOT NULL, PRIMARY KEY (name, topic, part))"
)
SELECT = "SELECT position, store FROM zfabric_inbox WHERE name = ? AND topic = ? AND part = ?"
UPDATE = (
    "UPDATE zfabric_inbox SET position = ? WHERE name = ? AND topic = ? AND part = ? AND position < ? AND store = ?"
)
INSERT = "INSERT INTO zfabric_inbox VALUES (?, ?, ?, ?, ?)"


class Inbox:
    """The positions of one reader, in its own database.

    `connection`: not in autocommit mode, and nobody else may use it inside of `once`.
    `name`: of the reader; members of one group that write to one database use the same.
    `paramstyle`: of the driver, see PEP 249; needed if it is not `qmark` (sqlite3) or `format` (psycopg, MySQL).
    """

    def __init__(self, connection: Any, name: str, *, paramstyle: str = "qmark") -> None:
        """Make the table `zfabric_inbox` if it is not there.

        Raises ValueError for a paramstyle that is not known, and for a connection in autocommit mode.
        """
        if paramstyle not in ("qmark", "format", "pyformat"):
            raise ValueError(f"paramstyle must be 'qmark', 'format' or 'pyformat', not {paramstyle!r}")
        of_sqlite = hasattr(connection, "in_transaction")
        if getattr(connection, "autocommit", None) is True or (of_sqlite and connection.isolation_level is None):
            raise ValueError(
                "the connection is in autocommit mode, where an effect and its position part: turn that off"
            )
        self._connection = connection
        self._name = name
        self._place = "?" if paramstyle == "qmark" else "%s"
        self._execute(CREATE)
        connection.commit()

    def _execute(self, sql: str, *values: Any) -> Any:
        cursor = self._connection.cursor()
        cursor.execute(sql.replace("?", self._place), values)
        return cursor

    def position(self, topic: str) -> Position | None:
        """The last message of a topic whose effect is in the database, for `start=`; of a reader without a group."""
        row = self._execute(SELECT, self._name, topic, -1).fetchone()
        return None if row is None else Position(topic, -1, row[0], row[1])

    @contextmanager
    def once(self, message: Message) -> Iterator[bool]:
        """Commit what the block does with the message's position, or neither if it raises.

        Gives False when the message's effect is in the database already: then do nothing. Raises LocalProtocolError
        for a message that did not come from a store, or came from another store's log than those before.
        """
        position = message.position
        if position is None:
            raise LocalProtocolError("this message has no position: read it with group= or start= from a store")
        try:
            fresh = self._claim(position)
            yield fresh
        except BaseException:
            self._connection.rollback()
            raise
        if fresh:
            self._connection.commit()
        else:
            self._connection.rollback()

    def _claim(self, position: Position) -> bool:
        """Move on to a message; False if the database is there or further. Others who try wait for our commit."""
        key = self._name, position.topic, position.partition
        if self._execute(UPDATE, position.offset, *key, position.offset, position.store).rowcount:
            return True
        row = self._execute(SELECT, *key).fetchone()
        if row is None:
            self._execute(INSERT, *key, position.offset, position.store)
            return True
        if row[1] != position.store:
            raise LocalProtocolError(
                f"the positions of {self._name!r} are of log {row[1]}, this message of {position.store}: "
                "use another name for another store"
            )
        return False
