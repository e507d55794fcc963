"""The key of a fabric as text and as a file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfabric import InvalidKey, new_key
from zfabric.security.finding import find_credentials
from zfabric.security.identities import Identities
from zfabric.security.keyfiles import config_dir, key_files, key_path, read_key, write_key
from zfabric.security.keys import FabricKey, fingerprint

KNOWN = "zfk1:plant:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh9slIzI"
NAMES = st.text(min_size=1, max_size=40).filter(lambda name: name.encode("utf-8", "replace").decode() == name)


def test_the_pair_follows_from_fabric_and_secret() -> None:
    """The derivation never changes: members of different versions must come to the same pair."""
    key = FabricKey("plant", bytes(range(32)))

    assert key.text == KNOWN
    assert key.public == b"*][ji*)#t&aq2L<dD]Cq]7705sZb]>:}.!9!U@&."
    assert key.fingerprint == "adbcce6ff2144cbb"
    assert FabricKey("plan", bytes(range(32))).public != key.public


@given(NAMES)
def test_text_keeps_everything(fabric: str) -> None:
    """Any name of a fabric, and the secret, come back from the text, which is one line of ASCII."""
    text = new_key(fabric)

    again = FabricKey.parse(f" {text}\n")

    assert (again.fabric, again.text) == (fabric, text)
    assert text.isascii()
    assert text.isprintable()


@given(st.one_of(st.text(), st.binary(), st.text().map(lambda t: f"zfk1:{t}"), st.text().map(lambda t: f"zfk1:x:{t}")))
def test_any_text_is_a_key_or_invalid(text: str | bytes) -> None:
    """Nothing but InvalidKey leaves the parser."""
    try:
        assert isinstance(FabricKey.parse(text), FabricKey)
    except InvalidKey:
        pass


@given(st.integers(0, len(KNOWN) - 1), st.characters(min_codepoint=33, max_codepoint=126))
def test_one_wrong_letter_is_noticed(index: int, letter: str) -> None:
    """A slip of the hand gives no other key."""
    text = KNOWN[:index] + letter + KNOWN[index + 1 :]

    if text != KNOWN:
        with pytest.raises(InvalidKey):
            FabricKey.parse(text)


def test_a_key_that_was_cut_short_is_told_from_what_is_none() -> None:
    """Whoever pastes half a line is not told that it should begin as it does; a path as text is told what to do."""
    for missing in range(1, 48):
        with pytest.raises(InvalidKey, match="damaged"):
            FabricKey.parse(new_key("plant")[:-missing])
    with pytest.raises(InvalidKey, match="given as a Path"):
        FabricKey.parse("/etc/zfabric/plant.key")


def test_the_secret_is_not_shown() -> None:
    """Neither `repr` nor the fingerprint tell the secret or the public key."""
    key = FabricKey.parse(new_key("plant"))

    assert key.text.split(":")[2] not in repr(key)
    assert key.public.decode() not in repr(key)
    assert fingerprint(key.public) == key.fingerprint


def test_files_are_private_and_never_replaced(tmp_path: Path) -> None:
    """A key file has mode 0600 whatever the umask, in a directory of mode 0700; what exists stays."""
    path, key = tmp_path / "deep" / "plant.key", FabricKey.parse(new_key("plant"))
    before = os.umask(0)
    try:
        write_key(path, key)
    finally:
        os.umask(before)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert read_key(path).text == key.text
    with pytest.raises(FileExistsError):
        write_key(path, FabricKey.parse(new_key("plant")))
    dangling = tmp_path / "dangling.key"
    dangling.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        write_key(dangling, key)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o666])
def test_files_that_others_can_open_are_refused(tmp_path: Path, mode: int) -> None:
    """Group- or world-accessible: the error names the cure."""
    path = tmp_path / "plant.key"
    write_key(path, FabricKey.parse(new_key("plant")))
    path.chmod(mode)

    with pytest.raises(InvalidKey, match="chmod 600"):
        read_key(path)


BAD_FILES = {
    "empty": b"",
    "two keys": f"{KNOWN}\n{KNOWN}\n".encode(),
    "noise": bytes(range(256)),
    "long": b"#" * 100_000,
    "only comments": b"# nothing\n",
}


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_are_refused(tmp_path: Path, content: bytes) -> None:
    """Anything but one key among comments is InvalidKey and names the file."""
    path = tmp_path / "bad.key"
    path.write_bytes(content)
    path.chmod(0o600)

    with pytest.raises(InvalidKey, match=r"bad\.key"):
        read_key(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A directory or a pipe is no key, and nobody waits for the pipe."""
    os.mkfifo(tmp_path / "pipe", 0o600)

    for name in (".", "pipe"):
        with pytest.raises(InvalidKey, match="no file"):
            read_key(tmp_path / name)


@given(st.binary(max_size=300))
def test_any_file_is_a_key_or_invalid(content: bytes) -> None:
    """Nothing but InvalidKey leaves the reader."""
    path = config_dir() / "fuzz.key"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(InvalidKey):
        read_key(path)


def test_where_keys_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is passed comes first, then $ZFABRIC_KEY_FILE, then the user's file of that fabric."""
    passed, named, users = (FabricKey.parse(new_key("plant")) for _ in range(3))
    assert find_credentials("plant", None) is None
    write_key(key_path("plant"), users)
    write_key(tmp_path / "named", named)
    write_key(tmp_path / "passed", passed)

    def found(key: str | bytes | Path | None = None) -> str | None:
        key_ = find_credentials("plant", key)
        assert not isinstance(key_, Identities)
        return None if key_ is None else key_.text

    assert found() == users.text
    assert find_credentials("other", None) is None
    monkeypatch.setenv("ZFABRIC_KEY_FILE", str(tmp_path / "named"))
    assert found() == named.text
    assert found(passed.text) == found(passed.text.encode()) == found(tmp_path / "passed") == passed.text
    with pytest.raises(InvalidKey, match="belongs to fabric 'plant'"):
        find_credentials("other", None)
    monkeypatch.setenv("ZFABRIC_KEY_FILE", str(tmp_path / "missing"))
    with pytest.raises(FileNotFoundError):
        find_credentials("plant", None)


@pytest.mark.parametrize("fabric", ["plant", "../../etc", ".", "a/b", "Ä", "x" * 500])
def test_each_fabric_has_a_file_of_its_own(fabric: str) -> None:
    """Whatever a fabric is called, its key lies in the one directory."""
    write_key(key_path(fabric), FabricKey.parse(new_key(fabric)))

    assert key_files() == [key_path(fabric)]
    assert key_path(fabric).parent == config_dir() / "keys"
