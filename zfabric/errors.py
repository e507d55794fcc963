"""The errors, by who is at fault; each carries the fields that a handler needs."""

from __future__ import annotations

__all__ = [
    "DecodeFailed",
    "DeliveryFailed",
    "EncodeFailed",
    "FabricError",
    "InsecureInterface",
    "InterfaceNotFound",
    "InvalidKey",
    "LimitExceeded",
    "LocalProtocolError",
    "NoSubscribers",
    "NodeClosed",
    "NodeForked",
    "RemoteProtocolError",
    "SelectorError",
    "TopicError",
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


class RemoteProtocolError(FabricError):
    """A peer sent something that is not the protocol: counted and reported, never fatal."""

    def __init__(self, reason: str, peer: str | None = None) -> None:
        super().__init__(reason if peer is None else f"{peer}: {reason}")
        self.reason = reason
        self.peer = peer


class DecodeFailed(RemoteProtocolError):
    """A payload that is not MessagePack, or that does not fit the subscription's type."""


class LimitExceeded(FabricError):
    """A limit of `Config` was reached; `limit` names the field to raise."""

    def __init__(self, limit: str, value: float, maximum: float) -> None:
        super().__init__(f"{value} is over Config.{limit} = {maximum}")
        self.limit = limit
        self.value = value
        self.maximum = maximum
