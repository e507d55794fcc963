"""The part of a node that speaks of services."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from zfabric.errors import LocalProtocolError
from zfabric.model import ProviderReply
from zfabric.node.options import whole
from zfabric.node.requests import Requests
from zfabric.node.services import Service, Services
from zfabric.wire.topics import check_topic

__all__ = ["ServiceMethods"]

Handler = TypeVar("Handler", bound=Callable[..., Any])


class ServiceMethods:
    """Services and requests; `open()` sets both attributes."""

    _services: Services | None = None
    _requests: Requests | None = None

    def service(
        self, name: str, *, version: int = 1, concurrency: int | None = None, traces: bool = False
    ) -> Callable[[Handler], Service[Handler]]:
        """Decorator: provide the function as a service. Several nodes may provide the same.

        An `async def` runs in the event loop, a `def` in one of Config.service_threads_max threads. A generator of
        either kind streams its reply. Arguments are checked against the annotations before the function is called,
        and what it returns afterwards. `current_request()` tells it the time that is left.
        `version`: requests name the version that they were written for; several may be provided side by side.
        `concurrency`: how many calls are worked on at one time (default Config.service_concurrency; for a `def`
        Config.service_threads_max); more wait, or are refused when they would wait too long.
        `traces`: let clients see the tracebacks of exceptions.
        Raises TopicError, TypeError for annotations that msgspec does not know, LocalProtocolError if this node
        provides it already, and LimitExceeded.
        """
        services = self._services
        if services is None:
            raise LocalProtocolError("open the node first: `async with node:` or `await node.open()`")
        services.driver.check_open()
        check_topic(name, bytes_max=services.config.topic_bytes_max)
        services.driver.rights.check("serve", name)
        version = whole("version", version)
        concurrency = None if concurrency is None else whole("concurrency", concurrency)
        if version < 0 or (concurrency is not None and concurrency < 1):
            raise ValueError(f"version must be 0 or more and concurrency above 0, not {version} and {concurrency}")

        def register(handler: Handler) -> Service[Handler]:
            return services.add(handler, name, version, concurrency, traces=traces)

        return register

    def request(
        self,
        service: str,
        /,
        *arguments: Any,
        timeout: float | None = None,
        idempotent: bool = False,
        hedge: float | None = None,
        version: int = 1,
        wait: float = 0.0,
        type: Any = None,  # noqa: A002 - the public name
        **options: Any,
    ) -> Coroutine[Any, Any, Any]:
        """Call a service, at one of its providers, and return its reply: `await node.request("math.add", 1, 2)`.

        `timeout` in seconds (default Config.request_timeout_s) bounds all of it and travels to the handler.
        `idempotent`: doing it twice does no harm. Such a request is sent again, with growing pauses, when its
        provider is lost or all are overloaded, until the timeout; without it, it is done at most once.
        `hedge`: ask a second provider if there is no reply after so many seconds; needs `idempotent`.
        `wait`: how long to wait for a provider where there is none yet.
        `type`: what the reply must be. All other options are arguments by name.
        Raises NoResponders, RequestTimeout, RemoteError (InvalidArguments), ProviderLost, Overloaded, EncodeFailed,
        DecodeFailed or LimitExceeded.
        """
        requests = self._requests or self._client()
        return requests.request(service, arguments, options, timeout, idempotent, hedge, version, wait, type)

    def stream(
        self,
        service: str,
        /,
        *arguments: Any,
        timeout: float | None = None,
        version: int = 1,
        wait: float = 0.0,
        type: Any = None,  # noqa: A002 - the public name
        **options: Any,
    ) -> AsyncGenerator[Any, None]:
        """Read a reply that streams: `async for line in node.stream("log.tail", 10)`.

        Options and errors as for `request`; `timeout` bounds the whole stream, and there is none by default. The
        provider is at most Config.stream_bytes ahead of the reader. Leave it early with contextlib.aclosing.
        """
        return self._client().stream(
            service, arguments, options, timeout=timeout, version=version, wait=wait, type=type
        )

    def request_all(
        self,
        service: str,
        /,
        *arguments: Any,
        timeout: float | None = None,
        version: int = 1,
        wait: float = 0.0,
        type: Any = None,  # noqa: A002 - the public name
        **options: Any,
    ) -> AsyncGenerator[ProviderReply, None]:
        """Ask every provider that is there now, and yield their replies as they come.

        It ends when each has given its last reply, or an error in place of it (at `timeout`, a RequestTimeout).
        Options as for `request`. Raises NoResponders; all other errors stand in the replies.
        """
        return self._client().request_all(
            service, arguments, options, timeout=timeout, version=version, wait=wait, type=type
        )

    async def wait_for_service(
        self, name: str, timeout: float | None = None, *, version: int = 1, providers: int = 1
    ) -> None:
        """Return once so many nodes provide the service. Raises TimeoutError after `timeout` seconds."""
        await self._client().wait_for(name, version, timeout, providers)

    def _client(self) -> Requests:
        if self._requests is None:
            raise LocalProtocolError("open the node first: `async with node:` or `await node.open()`")
        return self._requests
