"""What the tests of zfabric.sync share."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from tests.waiting import wait_until
from zfabric import Config
from zfabric.sync import Node, Publisher, Subscription

T = TypeVar("T")

CONFIG = Config(mdns=False)
"No multicast in tests."
TIMEOUT_S = 30.0
"For what should take milliseconds."


def wired(near: Node, far: Node, topic: str = "t", **options: Any) -> tuple[Publisher, Subscription]:
    """A publisher at one node whose next message reaches the subscription at the other."""
    subscription = far.subscribe(topic, **options)
    publisher = near.publisher(topic)
    publisher.wait_for(1, TIMEOUT_S)
    return publisher, subscription


class Work(threading.Thread):
    """A thread whose result or exception can be asked for."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._result: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Call the function."""
        try:
            self._result = self._function()
        except BaseException as error:  # noqa: BLE001 - raised again by `result`
            self._error = error

    def result(self) -> Any:
        """What the function returned or raised."""
        self.join(TIMEOUT_S)
        assert not self.is_alive(), "the thread still runs"
        if self._error is not None:
            raise self._error
        return self._result

    def wait_until_blocked(self) -> None:
        """Return once the thread waits for the node's loop."""
        wait_until(lambda: innermost_function(self.ident) in {"get_within", "acquire_within"})


def innermost_function(thread_id: int | None) -> str:
    """The Python function that a thread is in."""
    frame = sys._current_frames().get(thread_id or 0)
    return "" if frame is None else frame.f_code.co_name
