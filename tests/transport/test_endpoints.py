"""Where the transport binds, and what becomes of that when it is bound anew or fails."""

from __future__ import annotations

import socket as plain
from pathlib import Path

import pytest
import zmq

from tests.transport.support import BOTH, LOOPBACK, Lines, Recorder, reached
from tests.waiting import wait_until_async
from zfabric import Config
from zfabric.transport.sockets import ZmqTransport


@BOTH
async def test_endpoints_name_what_is_bound(line: Lines, ipc: bool) -> None:
    """ipc first, if it is on, then tcp on each address; without ipc there is none."""
    both = line(ipc=ipc, addresses=("127.0.0.1", "127.0.0.2"))

    kinds = [endpoint.rpartition(":")[0] for endpoint in both.inbox_endpoints if endpoint.startswith("tcp")]

    assert kinds == ["tcp://127.0.0.1", "tcp://127.0.0.2"]
    assert both.inbox_endpoints[0].startswith("ipc://") is ipc
    assert len(both.outlet_endpoints) == 2 + ipc


async def test_ipc_can_be_turned_off(runtime_dir: Path) -> None:
    """Config.ipc=False, or a path too long for the kernel, leaves tcp."""
    for config, stem in [
        (Config(ipc=False), runtime_dir / "x"),
        (Config(), runtime_dir / ("x" * 120)),
        (Config(), None),
    ]:
        transport = ZmqTransport(config, LOOPBACK, stem)
        transport.open(Recorder())
        assert [endpoint[:3] for endpoint in transport.inbox_endpoints] == ["tcp"]
        await transport.close(0)


async def test_usable_endpoints(line: Lines, runtime_dir: Path) -> None:
    """tcp may always work; ipc only if we have it and the other's socket file is there."""
    with_ipc, without = line(ipc=True), line()
    there = with_ipc.inbox_endpoints[0]
    (runtime_dir / "file").touch()

    assert with_ipc.usable(there)
    assert not without.usable(there)
    assert not with_ipc.usable(there + "x")
    assert not with_ipc.usable(f"ipc://{runtime_dir}/file")
    assert with_ipc.usable("tcp://10.0.0.1:1")
    assert not any(with_ipc.usable(endpoint) for endpoint in ("", "inproc://x", "udp://127.0.0.1:1", "ipc://@abstract"))


async def test_rebinding_keeps_what_stays(line: Lines) -> None:
    """Routes through an address that stays go on, new ones listen, old ones do not, impossible ones are left out."""
    far = line(addresses=("127.0.0.1", "127.0.0.2"))
    near = line()
    kept, old = far.inbox_endpoints
    near.dial(1, kept)
    back = await reached(near, 1, far)

    far.rebind(("127.0.0.1", "127.0.0.3", "203.0.113.1"))

    assert [endpoint.rpartition(":")[0] for endpoint in far.inbox_endpoints] == ["tcp://127.0.0.1", "tcp://127.0.0.3"]
    assert (far.inbox_endpoints[0], len(far.outlet_endpoints)) == (kept, 2)
    assert far.send(back, b"still")
    await wait_until_async(lambda: near.got.control == [(1, b"still")])
    near.dial(2, far.inbox_endpoints[1])
    await reached(near, 2, far)
    await wait_until_async(lambda: _refuses(old))


async def test_rebinding_moves_pullers_too(line: Lines) -> None:
    """A puller's socket leaves the old addresses for the new ones; jobs come by what stays and by what is new."""
    far, near = line(addresses=("127.0.0.1", "127.0.0.2")), line()
    kept, old = far.open_pull(1)
    near.open_push("jobs")
    near.connect_push("jobs", kept)

    where = far.rebind(("127.0.0.1", "127.0.0.3", "203.0.113.1"))

    assert [endpoint.rpartition(":")[0] for endpoint in where[1]] == ["tcp://127.0.0.1", "tcp://127.0.0.3"]
    assert where[1][0] == kept
    await wait_until_async(lambda: near.push("jobs", [b"kept"]))
    await wait_until_async(lambda: far.got.jobs == [(1, [b"kept"])])
    near.disconnect_push("jobs", kept)
    near.connect_push("jobs", where[1][1])
    # What is still given to the connection that ends is lost.
    await wait_until_async(lambda: near.push("jobs", [b"new"]) and far.got.jobs[-1] == (1, [b"new"]))
    await wait_until_async(lambda: _refuses(old))


def _refuses(endpoint: str) -> bool:
    host, _, number = endpoint[6:].rpartition(":")
    try:
        plain.create_connection((host, int(number)), 1).close()
    except ConnectionRefusedError:
        return True
    return False


async def test_a_taken_port_is_an_oserror_that_names_it(line: Lines) -> None:
    """Opening on an address in use fails as sockets do, and leaves nothing open."""
    taken = line().inbox_endpoints[0].rpartition(":")[2]
    transport = ZmqTransport(Config(port=int(taken)), LOOPBACK, None)

    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{taken}"):
        transport.open(Recorder())


async def test_an_ipc_path_that_cannot_be_bound_is_an_oserror(tmp_path: Path) -> None:
    """A directory that is not there is an OSError, not an error of another library."""
    transport = ZmqTransport(Config(), LOOPBACK, tmp_path / "no" / "x")

    with pytest.raises(OSError, match="cannot open sockets"):
        transport.open(Recorder())


async def test_too_few_sockets_are_an_oserror() -> None:
    """Config.connections_max is the context's MAX_SOCKETS: below what a node needs, it does not open."""
    transport = ZmqTransport(Config(connections_max=2), LOOPBACK, None)

    with pytest.raises(OSError, match="cannot open sockets"):
        transport.open(Recorder())


async def test_every_option_of_the_documentation_is_set(line: Lines) -> None:
    """What docs/zeromq.md says of options is true of all four sockets."""
    transport = line(backlog=77, frame_bytes_max=12345, handshake_timeout_s=1.5)
    config = transport._config
    control, data = (transport._inbox, transport._dialler), (transport._outlet, transport._feed)

    for socket in (*control, *data):
        assert socket.get(zmq.MAXMSGSIZE) == (255 + 1024 if socket is transport._outlet else 12345)
        assert socket.get(zmq.HANDSHAKE_IVL) == 1500
        assert socket.get(zmq.BACKLOG) == 77
        assert socket.get(zmq.LINGER) == 0
        assert socket.get(zmq.RECONNECT_IVL) == round(config.reconnect_interval_s * 1000)
        assert socket.get(zmq.RECONNECT_IVL_MAX) == round(config.reconnect_interval_s_max * 1000)
        assert socket.get(zmq.TCP_KEEPALIVE) == 1
        assert socket.get(zmq.ZAP_DOMAIN) == b"zfabric"
        assert socket.get(zmq.HEARTBEAT_IVL) == 0
    assert {socket.get(zmq.TCP_MAXRT) for socket in control} == {round(config.peer_timeout_s * 2000)}
    assert transport._dialler.get(zmq.RCVHWM) == 0
    assert transport._inbox.get(zmq.RCVHWM) == config.control_queue_frames
    assert transport._feed.get(zmq.SNDHWM) == 0
