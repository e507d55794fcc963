"""The part of a blocking node that speaks of services."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import suppress
from typing import Any, Generic, TypeVar

from zfabric.errors import NodeClosed
from zfabric.model import ProviderReply
from zfabric.node import services
from zfabric.sync.engine import Engine
from zfabric.sync.loop import LoopThread

__all__ = ["Service", "ServiceMethods"]

T = TypeVar("T")
Handler = TypeVar("Handler", bound=Callable[..., Any])


class Service(Generic[Handler]):
    """A service that a blocking node provides. Calling it calls the function itself."""

    def __init__(self, thread: LoopThread, service: services.Service[Handler]) -> None:
        self.name = service.name
        self.version = service.version
        self.concurrency = service.concurrency
        self.handler = service.handler
        self._thread = thread
        self._service = service

    def __repr__(self) -> str:
        return f"<sync.{repr(self._service)[1:]}"

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call the function itself, here and now."""
        return self.handler(*arguments, **options)

    @property
    def running(self) -> int:
        """Requests that are worked on."""
        return self._service.running

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return self._service.waiting

    def stop(self, timeout: float | None = None) -> None:
        """As for zfabric.Service.stop, blocking."""
        self._thread.run(self._service.stop, timeout)


class ServiceMethods:
    """Services and requests of a blocking node."""

    _engine: Engine

    def _opened(self) -> LoopThread:
        raise NotImplementedError

    def service(self, name: str, **options: Any) -> Callable[[Handler], Service[Handler]]:
        """Decorator: provide the function as a service. Options and errors as for zfabric.Node.service.

        A `def` has a thread and may use this node; an `async def` runs in the node's own loop and may not.
        """
        thread = self._opened()

        decorate = thread.call(lambda: self._engine.service(name, **options))
        return lambda handler: Service(thread, thread.call(lambda: decorate(handler)))

    def request(self, service: str, /, *arguments: Any, **options: Any) -> Any:
        """Call a service and return its reply. Options and errors as for zfabric.Node.request."""
        return self._opened().run(self._engine.request, service, *arguments, **options)

    def stream(self, service: str, /, *arguments: Any, **options: Any) -> Generator[Any, None, None]:
        """Read a reply that streams. Options and errors as for zfabric.Node.stream; close the generator to leave it."""
        return _iterate(self._opened(), lambda: self._engine.stream(service, *arguments, **options))

    def request_all(self, service: str, /, *arguments: Any, **options: Any) -> Generator[ProviderReply, None, None]:
        """Ask every provider. Options and errors as for zfabric.Node.request_all."""
        return _iterate(self._opened(), lambda: self._engine.request_all(service, *arguments, **options))

    def wait_for_service(
        self, name: str, timeout: float | None = None, *, version: int = 1, providers: int = 1
    ) -> None:
        """Return once so many nodes provide the service. Raises TimeoutError after `timeout` seconds."""
        self._opened().run(self._engine.wait_for_service, name, timeout, version=version, providers=providers)


def _iterate(thread: LoopThread, start: Callable[[], AsyncGenerator[T, None]]) -> Generator[T, None, None]:
    """The values of an asynchronous generator that lives in the node's loop."""
    values = thread.call(start)

    async def take() -> tuple[T] | None:
        async for value in values:
            return (value,)
        return None

    try:
        while (found := thread.run(take)) is not None:
            yield found[0]
    finally:
        with suppress(NodeClosed):
            thread.run(values.aclose)
