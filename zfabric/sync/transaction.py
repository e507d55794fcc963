"""Transactions, for threads."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from zfabric.model import Topic
from zfabric.node import transaction
from zfabric.sync.loop import LoopThread

__all__ = ["Transaction"]


class Transaction:
    """`with subscription.transaction() as tx: tx.publish(topic, value)`: all of it or nothing."""

    def __init__(
        self, thread: LoopThread, source: transaction.Transaction, unread: Callable[[], int], forget: Callable[[], None]
    ) -> None:
        """`unread` tells how many messages left the subscription that no thread has taken; `forget` drops them."""
        self._thread = thread
        self._transaction = source
        self._unread = unread
        self._forget = forget

    def __enter__(self) -> Transaction:
        self._thread.run(self._transaction.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises TransactionFailed when it was not stored."""
        unread, done = self._unread(), False

        async def leave() -> None:
            self._transaction.held_back = unread
            await self._transaction.__aexit__(kind, error, trace)

        try:
            self._thread.run(leave)
            done = error is None
        finally:
            if not done:
                self._forget()  # all of it comes again

    def publish(
        self,
        topic: str | Topic[Any],
        value: Any,
        *,
        key: Any = None,
        headers: dict[str, Any] | None = None,
        ttl: float | None = None,
    ) -> None:
        """Let a message become part of the transaction. Raises EncodeFailed, TopicError, LocalProtocolError."""
        self._thread.run(self._transaction.publish, topic, value, key=key, headers=headers, ttl=ttl)
