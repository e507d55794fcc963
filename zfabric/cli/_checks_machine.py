"""The doctor's checks of the software and of this machine."""

from __future__ import annotations

import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import zmq

from zfabric.cli.checks import Check, Situation, failed, ok, warned
from zfabric.discovery import announcements, runtime_dir
from zfabric.transport.listening import IPC_PATH_MAX, LIBZMQ_MIN

__all__ = ["CHECKS", "clock", "descriptors", "libraries", "python", "registry", "runtime_directory"]

_PYTHON_MIN = (3, 11)
_DESCRIPTORS_MIN = 1024
_SOCKET_NAME_BYTES = 21
"A slash, 16 digits and `.out`."
_RELEASED_S = 1_760_000_000
"No clock that is right shows a time before this program was written."


def python(_: Situation) -> Iterator[Check]:
    """Is this Python new enough?"""
    detail = f"{platform.python_implementation()} {platform.python_version()} on {platform.system()}"
    if sys.version_info < _PYTHON_MIN:
        yield failed("python", detail, "install Python 3.11 or newer")
    else:
        yield ok("python", detail)


def libraries(_: Situation) -> Iterator[Check]:
    """Are the libraries there, new enough, and able to do what we need?"""
    detail = f"pyzmq {zmq.pyzmq_version()}, libzmq {zmq.zmq_version()}"
    if zmq.zmq_version_info() < LIBZMQ_MIN:
        yield failed("zeromq", f"{detail} has known security holes", "pip install --upgrade 'pyzmq>=27'")
    else:
        yield ok("zeromq", detail)
    if zmq.has("curve"):
        yield ok("curve", "libzmq can encrypt")
    else:
        yield warned("curve", "libzmq cannot encrypt", "install the pyzmq wheel: pip install --force-reinstall pyzmq")
    if zmq.has("ipc"):
        yield ok("ipc", "nodes of one host use ipc")
    elif sys.platform == "win32":
        yield ok("ipc", "not on Windows: nodes of one host use tcp")
    else:
        yield warned("ipc", "libzmq lacks it: nodes of one host use tcp", "pip install --force-reinstall pyzmq")
    for name in ("msgspec", "zeroconf"):
        try:
            yield ok(name, version(name))
        except PackageNotFoundError:
            yield failed(name, "not installed", f"pip install {name}")


def runtime_directory(_: Situation) -> Iterator[Check]:
    """Can nodes leave their files and ipc sockets?"""
    name = "runtime directory"
    try:
        path = runtime_dir()
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        cure = "set ZFABRIC_RUNTIME_DIR to a directory that only you can write to (chmod 700)"
        yield failed(name, str(error), cure)
        return
    if zmq.has("ipc") and len(str(path).encode()) + _SOCKET_NAME_BYTES > IPC_PATH_MAX:
        yield warned(name, f"{path} is too long for ipc sockets", "set ZFABRIC_RUNTIME_DIR to a shorter path")
    else:
        yield ok(name, str(path))


def registry(_: Situation) -> Iterator[Check]:
    """Who is announced on this host, and who died without a goodbye?"""
    try:
        living = announcements()
        files = sum(not path.name.startswith(".") for path in (runtime_dir() / "nodes").glob("*/*"))
    except OSError as error:
        yield failed("registry", str(error), "see the runtime directory; until then nodes of one host need mDNS")
        return
    fabrics = len({announcement.fabric for announcement in living})
    detail = f"{len(living)} live on {fabrics} fabrics" if living else "no node on this host now"
    stale = max(0, files - len(living))
    if stale:
        detail += f"; {stale} stale, until the next node of their fabric starts"
    yield ok("registry", detail)


def descriptors(_: Situation) -> Iterator[Check]:
    """How many connections can a process have?"""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail = f"{soft} open files, {hard} if asked for"
    if soft < _DESCRIPTORS_MIN:
        cure = f"ulimit -n {min(hard, 65_536) if hard > 0 else 65_536}: every peer takes a few"
        yield warned("file descriptors", detail, cure)
    else:
        yield ok("file descriptors", detail)


def clock(_: Situation) -> Iterator[Check]:
    """Can timestamps and ttls be right?"""
    now = time.time()
    resolution_ms = time.get_clock_info("monotonic").resolution * 1000
    if now < _RELEASED_S:
        shown = time.strftime("%Y-%m-%d", time.gmtime(now))
        yield failed("clock", f"it says {shown}", "set it (timedatectl set-ntp true): messages would count as expired")
    elif resolution_ms > 20:
        yield warned("clock", f"its steps are {resolution_ms:.0f} ms", "timeouts will be coarse on this system")
    else:
        yield ok("clock", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now)))


CHECKS = (python, libraries, runtime_directory, registry, descriptors, clock)
