"""Queues at-most-once with keys: who may push and pull, over the sockets that carry the jobs."""

from __future__ import annotations

import zmq

from tests.contract.support import next_event
from tests.security.town import Opened
from tests.waiting import wait_until_async
from zfabric import AccessDenied, AuthenticationFailed, Node, new_key
from zfabric.security.identities import Identities
from zfabric.testing import RealFabric
from zfabric.wire.batch import BatchWriter

ONE = b"\xdd\x00\x00\x00\x01\x07"


async def test_jobs_pass_with_one_key_for_all() -> None:
    """Also those of the node itself."""
    fabric = RealFabric()
    key = new_key(fabric.name)
    a, b = [await fabric.open(name, key=key) for name in "ab"]
    pusher = a.pusher("jobs", delivery="at-most-once")
    pullers = [node.puller("jobs", delivery="at-most-once") for node in (a, b)]
    await pusher.wait_for(2, timeout=30)
    sent: set[int] = set()
    while not all(puller.pending for puller in pullers):
        sent.add(await pusher.push(len(sent)))
        await wait_until_async(lambda: sum(puller.pending for puller in pullers) == len(sent))
    await fabric.close()


async def test_jobs_pass_between_identities_that_may(opened: Opened) -> None:
    """And neither a pusher nor a puller that may not gets to the other side."""
    boss, worker = await opened("boss", "boss"), await opened("worker", "worker")
    cheat = await opened("cheat", "viewer")
    assert cheat._driver is not None
    cheat._driver.rights.identities = None
    at_boss, at_worker = boss.events(), worker.events()
    thief, liar = cheat.puller("jobs.a", delivery="at-most-once"), cheat.pusher("jobs.a", delivery="at-most-once")
    pusher, puller = boss.pusher("jobs.a", delivery="at-most-once"), worker.puller("jobs.a", delivery="at-most-once")
    for events, action in ((at_boss, "pull"), (at_worker, "push")):
        while (await next_event(events, AccessDenied)).action != action:
            pass
    await pusher.push_many(range(10))
    assert [(await puller.receive(timeout=30)).value for _ in range(10)] == list(range(10))
    assert (pusher.workers, puller.pushers, thief.pending, liar.workers) == (1, 1, 0, 1), "the last one is its own"


async def test_who_pushes_to_a_socket_without_being_asked_is_not_heard(opened: Opened) -> None:
    """In somebody's name, or in its own without the right to: the key of its connection tells who it is."""
    boss, worker = await opened("boss", "boss"), await opened("worker", "worker")
    cheat = await opened("cheat", "viewer")
    puller = worker.puller("jobs.a", delivery="at-most-once")
    pusher = boss.pusher("jobs.a", delivery="at-most-once")
    await pusher.wait_for(1, timeout=30)
    await worker.wait_for_peers(2, timeout=10)
    events = worker.events()
    endpoint = _endpoint(worker)
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        _be(socket, cheat, worker)
        socket.connect(endpoint)
        for producer in (boss, cheat):
            writer = BatchWriter("jobs.a", bytes.fromhex(producer.id), 0)
            writer.buffer += ONE[5:]
            writer.count = 1
            socket.send(writer.seal(0, 0)[0])
        assert "in the name of" in (await next_event(events, AuthenticationFailed)).reason
        assert (await next_event(events, AccessDenied)).action == "push"  # its own words
    assert puller.pending == 0
    await pusher.push("good")
    assert (await puller.receive(timeout=30)).value == "good"


def _endpoint(node: Node) -> str:
    assert node._driver is not None
    endpoints: tuple[str, ...] = node._driver._transport._pull_endpoints(1)  # type: ignore[attr-defined]
    return next(endpoint for endpoint in endpoints if "127.0.0.1" in endpoint).rpartition("#")[0]


def _be(socket: zmq.Socket[bytes], cheat: Node, worker: Node) -> None:
    """Connect with the cheat's key."""
    assert cheat._driver is not None
    assert worker._driver is not None
    socket.set(zmq.LINGER, 0)
    mine, theirs = (node._driver._credentials for node in (cheat, worker) if node._driver is not None)
    assert isinstance(mine, Identities)
    assert isinstance(theirs, Identities)
    socket.set(zmq.CURVE_PUBLICKEY, mine.public)
    socket.set(zmq.CURVE_SECRETKEY, mine.secret)
    socket.set(zmq.CURVE_SERVERKEY, theirs.public)
