"""The TXT record and its endpoints: what we write is read back, and nothing else is believed."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfabric.discovery import Announcement
from zfabric.discovery._endpoints import ipc_path, parse_tcp, portable, reachable
from zfabric.discovery._txt import MalformedRecord, decode, encode, instance_name

NODE = bytes(range(16))
NAME = instance_name(NODE)


def strings(*items: bytes) -> bytes:
    """A TXT record of these strings."""
    return b"".join(bytes((len(item),)) + item for item in items)


def read(text: bytes, *, loopback: bool = False, name: str = NAME, zones: tuple[str, ...] = ()) -> Announcement:
    """Decode with four endpoints at most."""
    return decode(text, name, endpoints_max=4, loopback=loopback, zones=zones)


HONEST = (b"v=1", b"id=" + NODE.hex().encode(), b"f=plant", b"k=abcd", b"e0=tcp://192.168.1.5:7400")


def test_what_is_announced_is_what_is_read() -> None:
    """Id, fabric, fingerprint and tcp endpoints arrive; ipc stays at home."""
    endpoints = ("ipc:///run/zf/a", "tcp://192.168.1.5:7400", "tcp://[2001:db8::5]:7400")
    announcement = Announcement(NODE, "plant №1", endpoints, "f1:ng:er")

    assert read(encode(announcement, 4)) == Announcement(NODE, "plant №1", endpoints[1:], "f1:ng:er")
    assert b"ipc" not in encode(announcement, 4)


def test_only_as_many_endpoints_as_allowed_are_written() -> None:
    """The best ones, which come first."""
    announcement = Announcement(NODE, "plant", tuple(f"tcp://192.168.1.5:{port}" for port in range(1, 9)))

    assert read(encode(announcement, 4)).endpoints == announcement.endpoints[:4]


def test_a_fabric_name_that_does_not_fit_is_an_os_error() -> None:
    """The node then goes on with its other ways of discovery."""
    with pytest.raises(OSError, match="253") as caught:
        encode(Announcement(NODE, "x" * 254, ()), 4)

    assert caught.value.errno == errno.ENAMETOOLONG


def test_a_link_local_address_gets_the_zone_of_the_reader() -> None:
    """The announcer's name of the interface means nothing to others."""
    text = encode(Announcement(NODE, "plant", ("tcp://[fe80::5%enp3s0]:7400",)), 4)

    assert b"enp3s0" not in text
    assert read(text, zones=("eth0", "wlan0")).endpoints == ("tcp://[fe80::5%eth0]:7400", "tcp://[fe80::5%wlan0]:7400")
    with pytest.raises(MalformedRecord):
        read(text, zones=())


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        strings(*HONEST)[:-1],
        strings(b"v=2", *HONEST[1:]),
        strings(*HONEST[1:]),
        strings(HONEST[0], *HONEST[2:]),
        strings(HONEST[0], b"id=" + b"zz" * 16, *HONEST[2:]),
        strings(HONEST[0], b"id=" + b"00" * 15, *HONEST[2:]),
        strings(HONEST[0], b"id=" + b"00 " * 16, *HONEST[2:]),
        strings(HONEST[0], b"id=\xff", *HONEST[2:]),
        strings(HONEST[0], b"id=" + b"11" * 16, *HONEST[2:]),
        strings(*HONEST[:2], b"f=", *HONEST[3:]),
        strings(*HONEST[:2], b"f", *HONEST[3:]),
        strings(*HONEST[:2], b"f=\xff\xfe", *HONEST[3:]),
        strings(*HONEST[:2], b"f=a\nb", *HONEST[3:]),
        strings(*HONEST[:3], b"k=" + b"k" * 129, HONEST[4]),
        strings(*HONEST[:4]),
        strings(*HONEST, b"\xff\xff=1"),
        strings(*HONEST[:4], *(b"e%d=tcp://192.168.1.5:%d" % (port, port) for port in range(1, 6))),
        strings(*HONEST, *(b"x%d=" % number + b"x" * 200 for number in range(30))),
        strings(*HONEST, b"e1=tcp://example.com:80"),
        strings(*HONEST, b"e1=tcp://192.168.1.5:0"),
        strings(*HONEST[:4], b"e0=ipc:///run/zf/a"),
        strings(*HONEST[:4], b"e0=tcp://127.0.0.1:7400"),
    ],
)
def test_malformed_records_are_refused(text: bytes) -> None:
    """Each of them differs from an honest record in one thing."""
    assert read(strings(*HONEST)).fabric == "plant"
    with pytest.raises(MalformedRecord):
        read(text)


def test_the_name_must_be_the_id() -> None:
    """Nobody announces for another node by accident; names are compared without regard to case."""
    assert read(strings(*HONEST), name=NAME.upper()).node_id == NODE
    with pytest.raises(MalformedRecord):
        read(strings(*HONEST), name=instance_name(bytes(16)))


def test_ipc_and_unknown_transports_are_dropped() -> None:
    """Only the registry may announce ipc; transports of the future must not hide the tcp of today."""
    text = strings(*HONEST, b"e1=ipc:///run/zf/a", b"e2=quic://192.168.1.5:1", b"e3")

    assert read(text).endpoints == ("tcp://192.168.1.5:7400",)


def test_of_two_equal_keys_the_first_counts() -> None:
    """RFC 6763 section 6.4; strings without a key are skipped."""
    assert read(strings(*HONEST, b"f=other", b"=x", b"")).fabric == "plant"


def test_scopes_do_not_mix() -> None:
    """A loopback node never dials out because of what it heard, and nobody is sent to their own loopback."""
    both = ("tcp://127.0.0.1:1", "tcp://192.168.1.5:1", "tcp://[::1]:1", "tcp://[2001:db8::1]:1")

    assert reachable(both, loopback=True, zones=()) == ("tcp://127.0.0.1:1", "tcp://[::1]:1")
    assert reachable(both, loopback=False, zones=()) == ("tcp://192.168.1.5:1", "tcp://[2001:db8::1]:1")


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://0.0.0.0:1",
        "tcp://[::]:1",
        "tcp://224.0.0.1:1",
        "tcp://[ff02::1]:1",
        "tcp://255.255.255.255:1",
        "tcp://[::ffff:127.0.0.1]:1",
        "tcp://[2001:db8::1%eth0]:1",
        "tcp://192.168.1.5:65536",
        "tcp://192.168.1.5:",
        "tcp://192.168.1.5",
        "tcp://192.168.1.05:1",
        "tcp://2001:db8::1:1",
        "tcp://[192.168.1.5]:1",
        "tcp://[fe80::1%a;b]:1",
        "tcp://*:1",
        "tcp://eth0:1",
        "tcp://192.168.1.5:1\n",
        "tcp://192.168.1.5:٣",
        "udp://192.168.1.5:1",
        "tcp://[" + "0:" * 150 + "1]:1",
        "",
    ],
)
def test_these_are_no_tcp_endpoints(endpoint: str) -> None:
    """Names, wildcards, groups and anything not canonical would make ZeroMQ do something else than dial."""
    assert parse_tcp(endpoint) is None
    assert portable([endpoint]) == ()


def test_ipc_endpoints_are_absolute_paths() -> None:
    """Relative and abstract names mean something else in every process."""
    assert str(ipc_path("ipc:///run/zf/a")) == "/run/zf/a"
    assert ipc_path("ipc://a") is None
    assert ipc_path("ipc://@a") is None
    assert ipc_path("ipc:///a\0b") is None
    assert ipc_path("ipc:///" + "a" * 300) is None
    assert ipc_path("tcp://127.0.0.1:1") is None


@given(st.binary(max_size=600))
def test_any_bytes_decode_or_are_malformed(text: bytes) -> None:
    """No other exception leaves the decoder."""
    try:
        read(text)
    except MalformedRecord:
        pass


@given(
    st.lists(st.sampled_from([*HONEST, b"e1=tcp://[fe80::1]:2", b"e2=", b"e", b"v", b"id="]) | st.binary(max_size=40))
)
def test_any_mix_of_strings_decodes_or_is_malformed(items: list[bytes]) -> None:
    """Almost honest records are refused or give an announcement that is fit to dial."""
    try:
        announcement = read(strings(*items), zones=("eth0",))
    except MalformedRecord:
        return
    assert announcement.node_id == NODE
    assert announcement.endpoints
    assert all(parse_tcp(endpoint) for endpoint in announcement.endpoints)
