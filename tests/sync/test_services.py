"""Services and requests of blocking nodes."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.sync.support import TIMEOUT_S, Work
from tests.waiting import wait_until
from zfabric import NodeClosed, NoResponders, RemoteError, RequestTimeout, current_request
from zfabric.sync import Node


def test_threads_ask_and_answer(near: Node, far: Node) -> None:
    """From several threads at once, and from within a handler."""

    @far.service("double")
    def double(value: int) -> int:
        return 2 * value

    @near.service("quadruple")
    def quadruple(value: int) -> int:
        result: int = near.request("double", near.request("double", value))
        return result

    near.wait_for_service("double", timeout=TIMEOUT_S)
    far.wait_for_service("quadruple", timeout=TIMEOUT_S)
    threads = [Work(lambda n=n: far.request("quadruple", n)) for n in range(20)]  # type: ignore[misc]

    assert [thread.result() for thread in threads] == [4 * n for n in range(20)]
    assert double(4) == 8
    assert (double.name, double.version, double.running, double.waiting) == ("double", 1, 0, 0)


def test_replies_stream_into_a_loop(near: Node, far: Node) -> None:
    """Leaving the loop ends the handler's generator."""
    ended = threading.Event()

    @far.service("count")
    def count(to: int) -> Iterator[int]:
        try:
            yield from range(to)
        finally:
            ended.set()

    near.wait_for_service("count", timeout=TIMEOUT_S)

    assert list(near.stream("count", 50)) == list(range(50))
    ended.clear()
    values = near.stream("count", 10**9)
    assert next(values) == 0
    values.close()
    assert ended.wait(TIMEOUT_S)
    assert [reply.value for reply in near.request_all("count", 2)] == [0, 1]


def test_errors_are_those_of_the_asyncio_node(near: Node, far: Node) -> None:
    """Nobody there, too late, raised over there, closed."""
    go_on = threading.Event()

    @far.service("fails")
    def fails() -> None:
        raise ValueError("no")

    @far.service("waits")
    def waits() -> float:
        go_on.wait(TIMEOUT_S)
        return current_request().remaining

    near.wait_for_service("waits", timeout=TIMEOUT_S)

    with pytest.raises(NoResponders):
        near.request("nothing")
    with pytest.raises(RemoteError, match="ValueError: no"):
        near.request("fails")
    with pytest.raises(RequestTimeout):
        near.request("waits", timeout=0.05)
    stuck = Work(lambda: near.request("waits"))
    wait_until(lambda: waits.running == 2)
    near.close()
    with pytest.raises(NodeClosed):
        stuck.result()
    go_on.set()


def test_stopping_a_service_waits_for_what_it_has(near: Node, far: Node) -> None:
    """The reply arrives; the next request finds nobody."""
    begun, go_on = threading.Event(), threading.Event()

    @far.service("slow")
    def slow() -> str:
        begun.set()
        go_on.wait(TIMEOUT_S)
        return "done"

    near.wait_for_service("slow", timeout=TIMEOUT_S)
    reply = Work(lambda: near.request("slow"))
    assert begun.wait(TIMEOUT_S)
    stopping = Work(lambda: slow.stop(TIMEOUT_S))
    wait_until(lambda: not any(peer.services for peer in near.peers))
    go_on.set()

    assert reply.result() == "done"
    stopping.result()
    with pytest.raises(NoResponders):
        near.request("slow")
