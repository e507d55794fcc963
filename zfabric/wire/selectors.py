"""Selectors: conditions over a message's headers in a safe subset of SQL-92, as in JMS.

    region = 'eu' AND (weight_kg > 10 OR urgent) AND "content-type" LIKE 'image/%'

A name is a header. `key`, `priority`, `attempt` and `topic` stand for the message's own; in double quotes any name is
a header's. A missing header is NULL, and logic is three-valued: what a NULL decides is unknown, and only a selector
that is true matches. As in JMS, values of different types are never equal, nor unequal, nor in any order.
`docs/selectors.md` is the specification.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zfabric.config import Config

__all__ = ["Selector"]


class Selector:
    """A compiled selector: `Selector("colour = 'red' AND weight > 2").matches(message.headers)`.

    Raises SelectorError for text that is no selector, or is over a limit of the Config.
    """

    __slots__ = ("_evaluate", "text")

    text: str
    "The selector as it was written."

    def __init__(self, text: str, config: Config | None = None) -> None:
        from zfabric.wire.selector_compiler import compile_selector

        config = Config() if config is None else config
        self.text = text
        self._evaluate = compile_selector(text, config.selector_bytes_max, config.selector_depth_max)

    def matches(
        self,
        headers: Mapping[str, Any] | None,
        *,
        key: Any = None,
        priority: int | None = None,
        attempt: int | None = None,
        topic: str | None = None,
    ) -> bool:
        """Whether the selector is true for a message, neither false nor unknown. Never raises."""
        return self._evaluate({} if headers is None else headers, (key, priority, attempt, topic)) is True

    def __repr__(self) -> str:
        return f"Selector({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Selector) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)
