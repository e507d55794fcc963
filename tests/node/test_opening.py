"""What keeps a node from opening, and what it says then."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from tests.node.support import MakeNode
from zfabric import Config, InsecureInterface, InterfaceNotFound, LocalProtocolError, Node, NodeClosed
from zfabric.discovery.interfaces import Scope
from zfabric.node.environment import Machine


async def test_libzmq_with_known_holes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything listens, with the cure."""
    monkeypatch.setattr("zmq.zmq_version_info", lambda: (4, 3, 4))
    with pytest.raises(OSError, match="install pyzmq"):
        await Node("old", config=Config(mdns=False, registry=False)).open()


async def test_an_unknown_interface_lists_the_known_ones() -> None:
    """The error names what there is."""
    node = Node(interface="no-such-interface0", insecure=True, config=Config(mdns=False))

    with pytest.raises(InterfaceNotFound, match=r"no-such-interface0.*there are: .*lo") as caught:
        await node.open()
    assert (caught.value.interface, "lo" in caught.value.known) == ("no-such-interface0", True)


class Abroad(Machine):
    """A machine whose interface leaves it."""

    def scope(self, interface: str) -> Scope:
        """An address that is not loopback; nothing is bound to it."""
        here = super().scope("loopback")
        return type(here)(**{**{name: getattr(here, name) for name in here.__slots__}, "loopback": False})


async def test_an_interface_that_leaves_the_machine_needs_a_key_or_consent() -> None:
    """Nothing is bound before that is settled."""
    node = Node(interface="lan", config=Config(mdns=False))
    node._environment = Abroad()

    with pytest.raises(InsecureInterface, match="insecure=True") as caught:
        await node.open()
    assert caught.value.interface == "lan"
    with pytest.raises(LocalProtocolError):
        node.publisher("x")


async def test_a_taken_port_is_an_oserror_that_names_it() -> None:
    """The address stands in the message; the node stays closed and can be opened when the port is free."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        node = Node(config=Config(mdns=False, registry=False, port=port))

        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
            await node.open()

    await node.open()
    assert f"tcp://127.0.0.1:{port}" in node.endpoints
    await node.close()


async def test_a_node_opens_once(make_node: MakeNode) -> None:
    """Opening again is an error, before and after closing."""
    node = await make_node("a")
    with pytest.raises(LocalProtocolError, match="opens once"):
        await node.open()
    await node.close()
    with pytest.raises(LocalProtocolError, match="opens once"):
        await node.open()
    with pytest.raises(NodeClosed):
        node.publisher("x")


async def test_seeds_that_cannot_be_dialled_do_not_keep_a_node_from_opening(make_node: MakeNode) -> None:
    """Nonsense among the seeds, also twice, is tried for ever in vain."""
    first = await make_node("first", registry=False)
    nonsense = ["", "tcp://", "nonsense", "tcp://127.0.0.1:1", "tcp://127.0.0.1:1"]

    second = await make_node("second", registry=False, seeds=[*nonsense, *first.endpoints, *first.endpoints])

    await second.wait_for_peers(1, timeout=30)


@pytest.mark.parametrize(
    ("options", "cure"),
    [
        ({"name": "n" * 256}, "up to 255"),
        ({"fabric": "f" * 256}, "up to 255"),
        ({"name": "caf\udce9"}, "name= is text"),
        ({"name": 7}, "name= is text"),
        ({"seeds": "tcp://127.0.0.1:7400"}, r"list of addresses: \['tcp:"),
    ],
)
async def test_what_no_peer_would_take_is_refused(options: dict[str, Any], cure: str) -> None:
    """In place of a node that nobody meets."""
    with pytest.raises(LocalProtocolError, match=cure):
        await Node(**options, config=Config(mdns=False)).open()


async def test_longest_names_meet(make_node: MakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a program's own file may be called anything."""
    monkeypatch.setattr("sys.argv", [f"/{'x' * 250}\udce9.py"])
    first, second = await make_node("n" * 255), await make_node(Node().name)

    await second.wait_for_peers(1, timeout=30)

    assert [peer.name for peer in second.peers] == [first.name]


@pytest.mark.parametrize(
    ("field", "value"),
    [("window_bytes", 0), ("peers_max", -1), ("port", 65_536), ("port", -1), ("heartbeat_interval_s", 3.0)],
)
def test_nonsense_in_a_config_is_refused_by_name(field: str, value: float) -> None:
    """The error names the field."""
    with pytest.raises(ValueError, match=field):
        Config(**{field: value})  # type: ignore[arg-type]
