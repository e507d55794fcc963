"""The directory of the registry and of ipc sockets: private, or not used at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from zfabric.config import Config
from zfabric.discovery import Announcement, RegistryDiscovery, _files, is_alive, runtime_dir

ANNOUNCEMENT = Announcement(bytes(16), "test", ("tcp://127.0.0.1:7400",))


def test_the_runtime_directory_is_private(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is made for the user alone, also when the umask would allow more."""
    monkeypatch.setenv("ZFABRIC_RUNTIME_DIR", str(tmp_path / "a" / "b"))

    made = _files.runtime_dir()

    assert made == tmp_path / "a" / "b"
    assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_the_session_directory_is_used_when_it_is_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """XDG_RUNTIME_DIR before the temporary files; after sudo it is somebody else's and does not count."""
    monkeypatch.delenv("ZFABRIC_RUNTIME_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))

    assert runtime_dir() == tmp_path / "zfabric"

    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))

    assert runtime_dir() == tmp_path / "tmp" / f"zfabric-{os.getuid()}"

    if os.getuid() == 0:
        os.chown(tmp_path, 12_345, -1)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        assert runtime_dir() == tmp_path / "tmp" / "zfabric-0"
        os.chown(tmp_path, 0, -1)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
async def test_a_directory_that_others_may_write_is_refused(runtime_dir: Path, mode: int) -> None:
    """Somebody else could plant an address there."""
    os.chmod(runtime_dir, mode)  # noqa: PTH101 - a call on a path would be asked to leave the event loop
    discovery = RegistryDiscovery(Config())

    with pytest.raises(PermissionError):
        await discovery.start(ANNOUNCEMENT, print)
    await discovery.close()
    assert not is_alive("test", bytes(16))


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to give a directory away")
async def test_a_directory_of_somebody_else_is_refused(runtime_dir: Path) -> None:
    """Also when nobody but its owner may write."""
    os.chown(runtime_dir, 12_345, 12_345)

    with pytest.raises(PermissionError):
        await RegistryDiscovery(Config()).start(ANNOUNCEMENT, print)


async def test_something_else_in_the_directorys_place_is_an_os_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file, a dangling link or a link to a directory: the node goes on without the registry."""
    for name in ("file", "link", "other"):
        (tmp_path / name).touch() if name == "file" else (tmp_path / name).symlink_to(tmp_path / f"{name}-target")
    (tmp_path / "other-target").mkdir(mode=0o700)
    for name in ("file", "link", "other"):
        monkeypatch.setenv("ZFABRIC_RUNTIME_DIR", str(tmp_path / name))
        with pytest.raises(OSError, match=name):
            await RegistryDiscovery(Config()).start(ANNOUNCEMENT, print)
