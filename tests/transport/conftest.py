"""Fixtures of the transport tests."""

from tests.transport.support import line, sockets

__all__ = ["line", "sockets"]
