"""The errors, by who is at fault; each carries the fields that a handler needs."""

from __future__ import annotations

__all__ = [
    "CaptureError",
    "DecodeFailed",
    "DeliveryFailed",
    "EncodeFailed",
    "FabricError",
    "GroupRefused",
    "InsecureInterface",
    "InterfaceNotFound",
    "InvalidArguments",
    "InvalidKey",
    "LimitExceeded",
    "LocalProtocolError",
    "NoResponders",
    "NoSubscribers",
    "NodeClosed",
    "NodeForked",
    "NotAuthorized",
    "NotStored",
    "OutOfSequence",
    "Overloaded",
    "PositionFenced",
    "ProducerFenced",
    "ProviderLost",
    "RemoteError",
    "RemoteProtocolError",
    "RequestTimeout",
    "SelectorError",
    "StoreDamaged",
    "StoreFailed",
    "StoreLocked",
    "StoreLost",
    "StoreNotFound",
    "TopicError",
    "TransactionFailed",
    "WindowFull",
]


class FabricError(Exception):
    """Base of every error that zfabric raises on purpose."""


class LocalProtocolError(FabricError):
    """This program used the fabric in a way that its rules forbid."""


class TopicError(LocalProtocolError, ValueError):
    """A topic or pattern with illegal characters, an empty word or too many bytes."""

    def __init__(self, topic: str, reason: str) -> None:
        super().__init__(f"{topic!r} is not a valid topic: {reason}")
        self.topic = topic
        self.reason = reason


class SelectorError(LocalProtocolError, ValueError):
    """A selector that does not parse, makes no sense or is over a limit; `position` is the offending character's."""

    def __init__(self, text: str, reason: str, position: int = 0) -> None:
        super().__init__(f"{text!r} is not a valid selector: {reason} (at character {position + 1})")
        self.text = text
        self.reason = reason
        self.position = position


class EncodeFailed(LocalProtocolError, TypeError):
    """A value that MessagePack cannot carry, or that does not fit its typed topic."""

    def __init__(self, topic: str, reason: str) -> None:
        super().__init__(f"cannot publish this value on {topic!r}: {reason}")
        self.topic = topic
        self.reason = reason


class NodeClosed(LocalProtocolError):
    """The node, publisher or subscription was used before it was opened or after it was closed."""


class NodeForked(LocalProtocolError):
    """The node was used in a forked child: its sockets belong to the parent. Open a new node."""


class InterfaceNotFound(LocalProtocolError, ValueError):
    """`interface=` names neither an interface nor an address of this machine."""

    def __init__(self, interface: str, known: tuple[str, ...]) -> None:
        super().__init__(f"no interface {interface!r} here; there are: {', '.join(known)}")
        self.interface = interface
        self.known = known


class InsecureInterface(LocalProtocolError):
    """A non-loopback interface without a key: give `key=`, or `insecure=True` on a trusted network."""

    def __init__(self, interface: str) -> None:
        super().__init__(
            f"interface {interface!r} leaves this machine: make a key with `zfabric keys init <fabric>`, pass key=, "
            "or pass insecure=True to accept plain traffic from anybody on that network"
        )
        self.interface = interface


class InvalidKey(LocalProtocolError, ValueError):
    """A key, or the file it is in, that cannot be used: malformed, of another fabric, or readable by others."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"this key cannot be used: {reason}")
        self.reason = reason


class NotAuthorized(FabricError):
    """This node's identity may not do that: give it a role that may, in the directory of identities."""

    def __init__(self, identity: str, action: str, name: str) -> None:
        super().__init__(f"identity {identity!r} may not {action} {name!r}")
        self.identity = identity
        self.action = action
        self.name = name


class NoSubscribers(FabricError):
    """A `mandatory` message matched nobody."""

    def __init__(self, topic: str) -> None:
        super().__init__(f"nobody subscribes to {topic!r}")
        self.topic = topic


class WindowFull(FabricError):
    """`publish_nowait` would have to wait: the window is full. Use `await publish(...)`, or drop."""

    def __init__(self, topic: str, bytes_waiting: int, bytes_max: int) -> None:
        super().__init__(f"window of {topic!r} is full ({bytes_waiting} of {bytes_max} bytes)")
        self.topic = topic
        self.bytes_waiting = bytes_waiting
        self.bytes_max = bytes_max


class DeliveryFailed(FabricError):
    """Messages were not confirmed: a subscriber was given up before it acknowledged them.

    `failures` holds (subscriber's name, first, last, reason) for each; `last` is inclusive.
    """

    def __init__(self, topic: str, failures: tuple[tuple[str, int, int, str], ...]) -> None:
        told = "; ".join(f"{name} lacks {first} to {last} ({reason})" for name, first, last, reason in failures)
        super().__init__(f"not everything on {topic!r} was delivered: {told}")
        self.topic = topic
        self.failures = failures


class NoResponders(FabricError):
    """Nobody provides the service now. Start a provider, or give a node that has just opened time with `wait=`."""

    def __init__(self, service: str, version: int, versions: tuple[int, ...] = ()) -> None:
        others = f"; it is there in version {', '.join(map(str, versions))}: pass version=" if versions else ""
        super().__init__(f"nobody provides version {version} of {service!r}{others}")
        self.service = service
        self.version = version
        self.versions = versions


class RequestTimeout(FabricError, TimeoutError):
    """A request had no reply within `timeout` seconds; whoever still worked on it (`providers`) was told to stop."""

    def __init__(self, service: str, timeout: float, providers: tuple[str, ...] = ()) -> None:
        who = f" from {', '.join(providers)}" if providers else ""
        super().__init__(f"no reply{who} to {service!r} within {timeout:g} s; give it longer with timeout=")
        self.service = service
        self.timeout = timeout
        self.providers = providers


class RemoteError(FabricError):
    """A service's handler raised an exception: `type` is its class, `trace` its traceback if the provider gives it."""

    def __init__(self, service: str, provider: str, type: str, message: str, trace: str | None = None) -> None:  # noqa: A002 - the public name
        super().__init__(f"{service!r} at {provider} failed: {type}: {message}")
        self.service = service
        self.provider = provider
        self.type = type
        self.message = message
        self.trace = trace


class InvalidArguments(RemoteError):
    """The arguments of a request do not fit the service; its handler was not called."""


class ProviderLost(FabricError):
    """The provider of a request left in the middle of it: whether it was done is not known.

    A request with `idempotent=True` is tried again elsewhere instead.
    """

    def __init__(self, service: str, provider: str) -> None:
        super().__init__(f"{provider} was lost while it worked on {service!r}: it may or may not have been done")
        self.service = service
        self.provider = provider


class Overloaded(FabricError):
    """Every provider of the service has more waiting than it can do in time. Try again in `retry_after` seconds."""

    def __init__(self, service: str, provider: str, retry_after: float) -> None:
        super().__init__(f"{service!r} is overloaded (at {provider}): try again in {retry_after:.3g} s")
        self.service = service
        self.provider = provider
        self.retry_after = retry_after


class RemoteProtocolError(FabricError):
    """A peer sent something that is not the protocol: counted and reported, never fatal."""

    def __init__(self, reason: str, peer: str | None = None) -> None:
        super().__init__(reason if peer is None else f"{peer}: {reason}")
        self.reason = reason
        self.peer = peer


class DecodeFailed(RemoteProtocolError):
    """A payload that is not MessagePack, or that does not fit the subscription's type."""


class CaptureError(FabricError):
    """A file that is no capture, or one of a version that this zfabric cannot read."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class LimitExceeded(FabricError):
    """A limit of `Config` was reached; `limit` names the field to raise."""

    def __init__(self, limit: str, value: float, maximum: float) -> None:
        super().__init__(f"{value} is over Config.{limit} = {maximum}")
        self.limit = limit
        self.value = value
        self.maximum = maximum


# -- the store ---------------------------------------------------------------------------------


class NotStored(FabricError):
    """A commit was not stored, and nothing of it is: `reason` says why. Full disk: free space, then send it again."""

    def __init__(self, reason: str, stream: str | None = None) -> None:
        super().__init__(reason if stream is None else f"{stream}: {reason}")
        self.reason = reason
        self.stream = stream


class ProducerFenced(NotStored):
    """A producer with a newer epoch took over: this one must stop, or open again and get an epoch of its own."""

    def __init__(self, stream: str, producer: bytes, epoch: int, current: int) -> None:
        super().__init__(f"producer {producer.hex()} of epoch {epoch} was replaced by epoch {current}", stream)
        self.producer = producer
        self.epoch = epoch
        self.current = current


class OutOfSequence(NotStored):
    """A batch does not start where its producer's messages end in the store: send again from `expected`."""

    def __init__(self, stream: str, producer: bytes, epoch: int, base: int, expected: int) -> None:
        super().__init__(
            f"producer {producer.hex()} of epoch {epoch} sent a batch from {base} where {expected} comes next", stream
        )
        self.producer = producer
        self.epoch = epoch
        self.base = base
        self.expected = expected


class PositionFenced(NotStored):
    """Somebody with a newer epoch writes this position: whoever asked has lost it and must let go."""

    def __init__(self, name: str, epoch: int, current: int) -> None:
        super().__init__(f"position {name!r} belongs to epoch {current}; epoch {epoch} may not write it")
        self.name = name
        self.epoch = epoch
        self.current = current


class StoreFailed(FabricError):
    """A write to the store's disk failed, so nothing more is confirmed: mend the disk, then start the store again."""


class StoreLost(FabricError):
    """A store left before it answered, so it may have stored what it was asked to: ask again, it will recognise it."""

    def __init__(self, store: str) -> None:
        super().__init__(f"the store {store!r} left before it answered; ask again when it is back")
        self.store = store


class TransactionFailed(FabricError):
    """A transaction was not stored, or its store left first: go on reading, whatever is not done comes again."""

    def __init__(self, group: str, reason: str) -> None:
        super().__init__(f"a transaction of group {group!r} failed: {reason}")
        self.group = group
        self.reason = reason


class GroupRefused(LocalProtocolError):
    """The store does not do that: no such group, or it reads another pattern, or the member's name was taken."""

    def __init__(self, group: str, reason: str) -> None:
        super().__init__(f"group {group!r}: {reason}")
        self.group = group
        self.reason = reason


class StoreDamaged(FabricError):
    """A store's files are not what it wrote last, or no store's: restore a backup, or see `zfabric store verify`."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class StoreLocked(FabricError):
    """Another process has this store open: stop it first, or use another directory."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} is in use by another store; stop that one first")
        self.path = path


class StoreNotFound(LocalProtocolError):
    """No store at this place, or no engine for this URL."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"{url}: {reason}")
        self.url = url
        self.reason = reason
