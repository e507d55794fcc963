"""The fabric for threads and scripts: the names of zfabric, blocking.

    with zfabric.sync.Node("viewer") as node:
        for message in node.subscribe("plant.*.temp"):
            print(message.value)

Behind each node runs one private event loop in a daemon thread. Everything here may be called from many threads at
once, but not from inside a running event loop, which it would block: there use zfabric.Node.
"""

from zfabric.sync.node import Node
from zfabric.sync.publisher import Publisher
from zfabric.sync.queues import Binding, Puller, Pusher
from zfabric.sync.reader import EventStream, Subscription
from zfabric.sync.services import Service
from zfabric.sync.tables import Table, Watch
from zfabric.sync.transaction import Transaction

__all__ = [
    "Binding",
    "EventStream",
    "Node",
    "Publisher",
    "Puller",
    "Pusher",
    "Service",
    "Subscription",
    "Table",
    "Transaction",
    "Watch",
]
