"""Fork, Ctrl-C and the end of the interpreter."""

from __future__ import annotations

import os
import signal

import pytest

from tests.node.support import TIMEOUT, MakeNode, Start, line_of, next_event
from zfabric import PeerLeft

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX processes")

FORKED = """
loop = asyncio.new_event_loop()
node = Node("parent", config=CONFIG)
loop.run_until_complete(node.open())
publisher = node.publisher("t", delivery="at-least-once")
subscription = node.subscribe("t")
publisher.publish_nowait("before")

def attempt(name, use):
    try:
        result = use()
        if asyncio.iscoroutine(result):
            asyncio.run(asyncio.wait_for(result, 5))
    except zfabric.NodeForked as error:
        say(name, "NodeForked", "open a new node" in str(error).lower())
    except BaseException as error:
        say(name, type(error).__name__, error)
    else:
        say(name, "worked")

warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, where there are threads
child = os.fork()
if child == 0:
    attempt("publish_nowait", lambda: publisher.publish_nowait(1))
    attempt("publish", lambda: publisher.publish(1))
    attempt("publish_many", lambda: publisher.publish_many([1, 2]))
    attempt("flush", publisher.flush)
    attempt("confirmed", lambda: publisher.confirmed(0))
    attempt("wait_for", publisher.wait_for)
    attempt("receive", subscription.receive)
    attempt("publisher", lambda: node.publisher("u"))
    attempt("subscribe", lambda: node.subscribe("u"))
    attempt("events", node.events)
    attempt("peers", lambda: node.peers)
    asyncio.run(node.close())
    async def anew():
        async with Node("child", config=CONFIG) as mine:
            await mine.wait_for_peers(1, timeout=10)
    asyncio.run(anew())
    say("a new node works")
    os._exit(0)
async def both():
    status = await asyncio.to_thread(os.waitpid, child, 0)
    say((await subscription.receive(timeout=30)).value, "exit", status[1])
    await node.close()
loop.run_until_complete(both())
loop.close()
"""


async def test_a_forked_child_is_told_to_open_a_node_of_its_own(start: Start) -> None:
    """Every use of the parent's node in the child raises NodeForked; the parent's node is untouched."""
    process = start(FORKED)

    output, errors = process.communicate(timeout=30)

    names = ["publish_nowait", "publish", "publish_many", "flush", "confirmed", "wait_for", "receive"]
    expected = [f"{name} NodeForked True" for name in (*names, "publisher", "subscribe", "events", "peers")]
    assert output.splitlines() == [*expected, "a new node works", "before exit 0"]
    assert (errors, process.returncode) == ("", 0)


BUSY = """
async def main():
    async with Node("busy", config=CONFIG) as node:
        publisher = node.publisher("t")
        @node.on("t")
        async def handle(message):
            await asyncio.sleep(0)
        @node.on("t")
        def in_thread(message):
            pass
        say("ready")
        {body}

asyncio.run(main())
"""


@pytest.mark.parametrize(
    "body",
    [
        "await node.wait_for_peers(1)",
        "await node.subscribe('never').receive()",
        "async for event in node.events(): pass",
        "while True: await publisher.publish(1); await asyncio.sleep(0)",
    ],
    ids=["peers", "receive", "events", "publish"],
)
async def test_ctrl_c_ends_cleanly(start: Start, body: str) -> None:
    """SIGINT while a coroutine waits or works closes the node; KeyboardInterrupt is all that is heard."""
    process = start(BUSY.format(body=body))
    assert await line_of(process) == "ready"

    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)

    assert process.returncode == -signal.SIGINT
    assert errors.strip().endswith("KeyboardInterrupt")
    assert "never retrieved" not in errors and "Task was destroyed" not in errors and "zfabric-" not in errors


FORGOTTEN = """
async def main():
    node = Node("forgotten", config=CONFIG)
    await node.open()
    node.publisher("t").publish_nowait(1)
    say("leaving")

asyncio.run(main())
"""


async def test_a_node_that_nobody_closes_does_not_hang_the_interpreter(start: Start) -> None:
    """Leaving without close() is untidy, and the process ends all the same."""
    process = start(FORGOTTEN)

    output, errors = process.communicate(timeout=30)

    assert output == "leaving\n"
    assert process.returncode == 0, errors


WORKER = """
async def main():
    config = Config(mdns=False, peer_timeout_s=300, ipc=sys.argv[2] == "ipc")
    async with Node("worker", config=config, fabric=sys.argv[1]) as node:
        puller = node.puller("work")
        job = await puller.receive()
        say("has", job.value)
        await asyncio.sleep(300)
asyncio.run(main())
"""


@pytest.mark.parametrize("way", ["ipc", "tcp"])
async def test_a_killed_process_is_missed_long_before_it_counts_as_silent(
    make_node: MakeNode, start: Start, way: str
) -> None:
    """Nobody listens at its addresses any more: its job is another one's at once."""
    node = await make_node("pusher", peer_timeout_s=300.0, ipc=way == "ipc")
    events = node.events()
    worker = start(WORKER, node.fabric, way)
    pusher = node.pusher("work")
    await pusher.push("a job")
    assert await line_of(worker) == "has a job"

    worker.kill()

    assert (await next_event(events, PeerLeft)).reason == "gone"
    async with node.puller("work") as puller:
        job = await puller.receive(TIMEOUT)
        assert (job.value, job.attempt) == ("a job", 2)
        await job.ack()
    await pusher.flush()
