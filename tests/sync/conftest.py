"""Two blocking nodes that find each other by the same-host registry."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sync.support import CONFIG
from zfabric.sync import Node


@pytest.fixture
def near() -> Iterator[Node]:
    """The node that publishes in most tests."""
    with Node("near", config=CONFIG) as node:
        yield node


@pytest.fixture
def far() -> Iterator[Node]:
    """The node that subscribes in most tests."""
    with Node("far", config=CONFIG) as node:
        yield node
