"""Fixtures of the node tests."""

from tests.node.support import make_node, start

__all__ = ["make_node", "start"]
