"""Signals, fork and the end of the interpreter, each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.sync.support import TIMEOUT_S
from zfabric import PeerLeft
from zfabric.sync import Node

ROOT = Path(__file__).parents[2]

PRELUDE = """
import os, signal, sys, threading, warnings, zfabric
from tests.sync.support import CONFIG, TIMEOUT_S, innermost_function, wired
from tests.waiting import wait_until
from zfabric.sync import Node

def tell_when_blocked():
    main = threading.main_thread().ident
    wait_until(lambda: innermost_function(main) in {"get_within", "acquire_within"})
    print("blocked", flush=True)
"""

Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start Python programs; those that still run at the end are killed."""
    started = []

    def run(program: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + program], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> str:
    """What a program printed; it must end by itself, without an error."""
    output, errors = process.communicate(timeout=2 * TIMEOUT_S)
    assert process.returncode == 0, errors
    assert errors == ""
    return output


INTERRUPTED = """
try:
    with Node("x", config=CONFIG) as node:
        subscription = node.subscribe("t")
        threading.Thread(target=tell_when_blocked, daemon=True).start()
        {read}
except KeyboardInterrupt:
    wait_until(lambda: not any(thread.name.startswith("zfabric") for thread in threading.enumerate()))
    print("interrupted")
"""


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
@pytest.mark.parametrize(
    "read",
    [
        "subscription.receive()",
        "subscription.receive(timeout=60)",
        "list(subscription)",
        "list(subscription.batches())",
        "list(node.events())",
        "node.wait_for_peers(1)",
        "node.publisher('t2').wait_for(1)",
    ],
)
def test_ctrl_c_interrupts_whatever_waits(start: Start, read: str) -> None:
    """KeyboardInterrupt leaves a blocked call at once, and the with-block closes the node."""
    process = start(INTERRUPTED.format(read=read))
    assert process.stdout is not None
    assert process.stdout.readline() == "blocked\n"

    process.send_signal(signal.SIGINT)

    assert finish(process) == "interrupted\n"


PUBLISH_THROUGH_INTERRUPTS = """
near, far = Node("near", config=CONFIG), Node("far", config=CONFIG)
near.open(), far.open()
publisher, subscription = wired(near, far, overflow="block")
interrupts, last, armed = 0, -1, False
enough = threading.Event()
main = threading.main_thread().ident

def on_signal(*_):
    global armed
    if armed:
        armed = False
        raise KeyboardInterrupt

signal.signal(signal.SIGINT, on_signal)

def interrupt():
    while not enough.wait(0.002):
        signal.pthread_kill(main, signal.SIGINT)

def publish():
    global last
    n = 0
    while True:
        n += 1
        if n % 10:
            last = publisher.publish(n, key=n if n % 3 else None)
        else:
            last = publisher.publish_many([0, 0, 0])

thread = threading.Thread(target=interrupt)
thread.start()
while interrupts < 100:
    try:
        armed = True
        publish()
    except KeyboardInterrupt:
        interrupts += 1
enough.set()
thread.join()
end = publisher.publish("end")
for seq, message in enumerate(subscription.iterate(TIMEOUT_S)):
    assert message.seq == seq, (message, seq)
    if message.value == "end":
        break
    assert message.key == (message.value if message.value % 3 else None), message
assert not message.key
assert seq == end >= last
assert far.statistics().total("undecodable") == far.statistics().total("lost") == 0
far.close(), near.close()
print("whole")
"""


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_never_tears_a_batch(start: Start) -> None:
    """Wherever in `publish` an interrupt strikes, the stream stays whole: no gap, no garbage, no misplaced key."""
    assert finish(start(PUBLISH_THROUGH_INTERRUPTS)) == "whole\n"


SIGNAL_HANDLER_PUBLISHES = """
with Node("x", config=CONFIG) as node:
    publisher, subscription = node.publisher("t"), node.subscribe("t", overflow="block")
    signal.signal(signal.SIGALRM, lambda *_: publisher.publish_nowait("signal"))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    for n in range(50_000):
        publisher.publish(n)
    signal.setitimer(signal.ITIMER_REAL, 0)
    publisher.publish("end")
    values = []
    for seq, message in enumerate(subscription.iterate(TIMEOUT_S)):
        assert message.seq == seq
        if message.value == "end":
            break
        values.append(message.value)
    assert [value for value in values if value != "signal"] == list(range(50_000))
    assert "signal" in values
    print("whole")
"""


@pytest.mark.skipif(os.name == "nt", reason="needs interval timers")
def test_a_signal_handler_may_publish(start: Start) -> None:
    """`publish_nowait` in a signal handler neither deadlocks with nor tears what its thread is publishing."""
    assert finish(start(SIGNAL_HANDLER_PUBLISHES)) == "whole\n"


EXIT_WITHOUT_CLOSE = """
node = Node("careless", config=CONFIG)
node.open()
go = node.subscribe("go")
threading.Thread(target=list, args=[node.subscribe("other")], daemon=True).start()
publisher = node.publisher("t")
publisher.wait_for(1, TIMEOUT_S)
publisher.publish("hello")
assert go.receive(TIMEOUT_S).value == "go"
"""


def test_exit_without_close_does_not_hang(start: Start, near: Node) -> None:
    """A program that ends without `close()` ends, and its peers hear a goodbye."""
    events, subscription, go = near.events(), near.subscribe("t"), near.publisher("go")

    process = start(EXIT_WITHOUT_CLOSE)
    assert subscription.receive(TIMEOUT_S).value == "hello"
    go.wait_for(1, TIMEOUT_S)
    go.publish("go")

    assert finish(process) == ""
    for event in events.iterate(TIMEOUT_S):
        if isinstance(event, PeerLeft):
            assert event.reason == "goodbye"
            break


EXIT_WITH_BLOCKED_LOOP = """
node = Node("blocked", config=CONFIG)
node.open()
blocked = threading.Event()

@node.on("t")
async def handler(message):
    blocked.set()
    threading.Event().wait()

node.publisher("t").publish(1)
blocked.wait()
"""


@pytest.mark.slow
def test_exit_with_a_blocked_loop_does_not_hang(start: Start) -> None:
    """Even a loop that never runs again does not keep the interpreter from ending."""
    process = start(EXIT_WITH_BLOCKED_LOOP)
    process.communicate(timeout=2 * TIMEOUT_S)

    assert process.returncode == 0


FORK = """
near, far = Node("near", config=CONFIG), Node("far", config=CONFIG)
near.open(), far.open()
publisher, subscription = wired(near, far)
events = near.events()
uses = [
    lambda: publisher.publish(1), lambda: publisher.publish_nowait(1), publisher.flush, subscription.receive,
    lambda: subscription.receive(0), lambda: next(iter(subscription)), lambda: near.peers, near.statistics,
    lambda: near.subscribe("t"), events.receive,
]
warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, where there are threads
child = os.fork()
if not child:
    for use in uses:
        try:
            use()
        except zfabric.NodeForked:
            continue
        os._exit(1)
    subscription.close(), publisher.close(), near.close(), far.close()
    with Node("child", config=CONFIG) as own:
        own.wait_for_peers(2, TIMEOUT_S)
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
publisher.publish("parent")
print(subscription.receive(TIMEOUT_S).value)
near.close(), far.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_cannot_use_the_node(start: Start) -> None:
    """In the child every use raises NodeForked and it can open a node of its own; the parent's goes on."""
    assert finish(start(FORK)) == "parent\n"
