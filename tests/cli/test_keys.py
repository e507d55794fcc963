"""`zfabric keys`: a key is made, taken elsewhere and used, as a new user would do it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cli.processes import Commands
from zfabric.security.keyfiles import key_path


async def test_init_and_join(cli: Commands, tmp_path: Path) -> None:
    """What `init` prints can be typed on another machine; both then have the same key, in private files."""
    made = await cli.run("keys", "init", "plant")
    assert made.code == 0, made.err
    token = made.out.split()[-1]
    assert made.out == f"zfabric keys join {token}\n"

    ways: dict[str, tuple[list[str], bytes | None]] = {
        "token": ([token], None),
        "stdin": ([], f"{token}\n".encode()),
        "dash": (["-"], f"{token}\n".encode()),
        "file": ([str(key_path("plant"))], None),
    }
    for name, (arguments, given) in ways.items():
        home = str(tmp_path / name)
        joined = await cli.run("keys", "join", *arguments, stdin=given, XDG_CONFIG_HOME=home)
        assert joined.code == 0, joined.err
        (path,) = (tmp_path / name).rglob("*.key")
        assert (path.stat().st_mode & 0o777, path.read_bytes()) == (0o600, key_path("plant").read_bytes())
        listed = await cli.run("keys", "list", "--json", XDG_CONFIG_HOME=home)
        assert [record["fabric"] for record in listed.records] == ["plant"]
    again = await cli.run("keys", "join", token)
    assert again.code == 0


async def test_keys_are_never_replaced(cli: Commands) -> None:
    """A second `init`, or the token of another key, is refused, and what was there stays."""
    assert (await cli.run("keys", "init", "plant")).code == 0
    before = key_path("plant").read_bytes()
    other = (await cli.run("keys", "init", "plant", "--json", XDG_CONFIG_HOME=str(key_path("x").parent))).records[0]

    second = await cli.run("keys", "init", "plant")
    foreign = await cli.run("keys", "join", other["token"])

    assert (second.code, "exists" in second.err) == (1, True)
    assert (foreign.code, "another key" in foreign.err) == (1, True)
    assert key_path("plant").read_bytes() == before


async def test_bad_tokens_and_missing_keys(cli: Commands) -> None:
    """Each has its own exit code and tells what to do."""
    bad = await cli.run("keys", "join", "zfk1:plant:AAAA")
    missing = await cli.run("keys", "show", "plant")
    none = await cli.run("keys", "list")

    assert (bad.code, "damaged" in bad.err) == (77, True)
    assert (missing.code, "keys init" in missing.err) == (1, True)
    assert none.code == 69


@pytest.mark.parametrize(
    ("arguments", "cure"),
    [
        (("join", "-"), "give the line that `zfabric keys init` or `invite` printed"),
        (("rotate", "plant"), "`zfabric keys new` makes the first"),
        (("list", "plant"), "`zfabric keys new` makes the first"),
    ],
)
async def test_what_is_missing_is_told_with_its_cure(cli: Commands, arguments: tuple[str, ...], cure: str) -> None:
    """No token on stdin, no identity in the fabric."""
    refused = await cli.run("keys", *arguments, stdin=b"\n")

    assert refused.code in (1, 69)
    assert cure in refused.err


@pytest.mark.slow
async def test_verbs_use_the_key_and_the_doctor_explains(cli: Commands, tmp_path: Path) -> None:
    """With the key `nodes` sees a keyed fabric, without it hears why not; the doctor shows the fingerprint."""
    made = (await cli.run("keys", "init", "plant", "--json")).records[0]
    listening = await cli.start("sub", "a", "--fabric", "plant")
    await listening.note("listening")

    member = await cli.run("nodes", "--fabric", "plant", "--wait", "1", "--json")
    stranger = await cli.run("nodes", "--fabric", "plant", XDG_CONFIG_HOME=str(tmp_path))
    doctor = await cli.run("doctor", "--fabric", "plant", "--json")
    lost = await cli.run("doctor", "--fabric", "plant", "--json", XDG_CONFIG_HOME=str(tmp_path))
    key_path("plant").chmod(0o644)
    ill = await cli.run("doctor", "--fabric", "plant", "--json")

    assert [record["name"] for record in member.records] != []
    assert (stranger.code, made["fingerprint"] in stranger.err) == (77, True)
    assert {made["fingerprint"] in record["detail"] for record in doctor.records if record["check"] == "key"} == {True}
    assert {record["detail"] for record in doctor.records if record["check"] == "fabric"} == {
        "'plant' has 1 node, all encrypted"
    }
    (refused,) = [record for record in lost.records if record["check"] == "fabric"]
    assert (lost.code, refused["status"]) == (1, "failed")
    assert made["fingerprint"] in refused["detail"] and "keys join" in refused["cure"]
    found = {record["check"]: record for record in ill.records}
    assert (found["key"]["status"], "chmod 600" in found["key"]["detail"]) == ("failed", True)


async def test_one_key_and_identities_exclude_each_other(cli: Commands, tmp_path: Path) -> None:
    """A key that no node would use is not made and not taken over; an identity has roles that there are."""
    made = await cli.run("keys", "init", "plant", XDG_CONFIG_HOME=str(tmp_path / "other"))
    wrong = await cli.run("keys", "new", "plant", "ada", "--role", "nonsense")
    assert (wrong.code, "no role 'nonsense'" in wrong.err) == (77, True)
    assert (await cli.run("keys", "new", "plant", "ada")).code == 0

    for refused in (await cli.run("keys", "init", "plant"), await cli.run(*made.out.split()[1:])):
        assert (refused.code, "has identities" in refused.err) == (1, True)
    assert [record["fabric"] for record in (await cli.run("keys", "list", "--json")).records] == ["plant"]


async def test_an_invitation_works_once(cli: Commands, tmp_path: Path) -> None:
    """The newcomer makes its own secret; both ends show its key; the same line is worth nothing afterwards."""
    homes: list[dict[str, Any]] = [{"XDG_CONFIG_HOME": str(tmp_path / name)} for name in ("two", "three")]
    assert (await cli.run("keys", "new", "plant", "ada")).code == 0
    waiting = await cli.start("keys", "invite", "plant", "bob", "--interface", "loopback")
    await waiting.note("on the machine of")
    line = (await waiting.line()).split()[1:]
    joined = await cli.run(*line, **homes[0])
    assert joined.code == 0, joined.err
    inviter = await waiting.end()
    key = joined.err.partition("see the key ")[2].split()[0]
    assert (inviter.code, key in inviter.err) == (0, True)
    again = await cli.run(*line, **homes[1])
    assert (again.code, "was used" in again.err) == (69, True)
    for home in ({}, homes[0]):
        listed = (await cli.run("keys", "list", "plant", "--json", **home)).records
        assert {record["identity"]: record["fingerprint"] for record in listed}["bob"] == key
    (secret,) = (tmp_path / "two").rglob("self.key")
    assert (secret.stat().st_mode & 0o777, secret.read_text().strip() in " ".join(line)) == (0o600, False)
    twice = await cli.run("keys", "invite", "plant", "bob")
    assert (twice.code, "exists" in twice.err) == (1, True)


async def test_an_invitation_expires(cli: Commands) -> None:
    """After a while the inviter waits no more, and trusts nobody new."""
    assert (await cli.run("keys", "new", "plant", "ada")).code == 0
    expired = await cli.run("keys", "invite", "plant", "bob", "--interface", "loopback", "--expires", "1")
    assert (expired.code, "expired" in expired.err) == (75, True)
    assert [record["identity"] for record in (await cli.run("keys", "list", "plant", "--json")).records] == ["ada"]


@pytest.mark.slow
async def test_identities_from_the_shell(cli: Commands, tmp_path: Path) -> None:
    """New, invite, join, list, revoke and rotate, as on two machines."""
    home: dict[str, Any] = {"XDG_CONFIG_HOME": str(tmp_path / "two")}
    assert (await cli.run("keys", "new", "plant", "ada")).code == 0
    invited = await cli.run("keys", "invite", "plant", "bob", "--offline")
    assert invited.code == 0, invited.err
    joined = await cli.run(*invited.out.split()[1:], **home)
    assert joined.code == 0, joined.err
    assert (await cli.run(*invited.out.split()[1:], **home)).code == 1
    listed = await cli.run("keys", "list", "plant", "--json", **home)
    assert {(record["identity"], record["own"]) for record in listed.records} == {("ada", False), ("bob", True)}

    listening = await cli.start("sub", "a", "--fabric", "plant", **home)
    await listening.note("listening")
    assert (await cli.run("pub", "a", "1", "--fabric", "plant", "--wait", "1")).code == 0
    assert "1" in await listening.line()
    assert (await cli.run("keys", "rotate", "plant", **home)).code == 0
    assert (await cli.run("keys", "revoke", "plant", "bob")).code == 0
    assert (await cli.run("keys", "revoke", "plant", "bob")).code == 1
    alone = await cli.run("pub", "a", "2", "--fabric", "plant", "--require-match")
    assert alone.code == 69
    assert (await cli.run("keys", "list", "--json")).records[0]["fabric"] == "plant"


@pytest.mark.slow
async def test_signed_from_the_shell(cli: Commands, tmp_path: Path) -> None:
    """`--signed` takes what `pub --sign` and `play --sign` send, and tells of what it refused."""
    await cli.run("keys", "init", "plant")
    common = ("--fabric", "plant")
    recording = await cli.start("record", str(tmp_path / "a.zfr"), "-e", "a", "--count", "1", "--signed", *common)
    await recording.note("recording")
    listening = await cli.start("sub", "a", "--count", "2", "--signed", "--json", *common)
    await listening.note("listening")
    for value, *signed in (("1",), ("2", "--sign")):
        assert (await cli.run("pub", "a", value, "--wait", "2", *signed, *common)).code == 0
    assert (await recording.end()).code == 0
    inspected = await cli.run("inspect", str(tmp_path / "a.zfr"), "--signed", "--json")
    assert (inspected.code, inspected.records[0]["signatures"]["signers"]) == (0, {"member": 1})
    assert (await cli.run("play", str(tmp_path / "a.zfr"), "--wait", "1", "--sign", *common)).code == 0
    heard = await listening.end()
    without = await cli.run("pub", "a", "1", "--sign")

    assert [record["value"] for record in heard.records] == [2, 2]
    assert "not signed" in heard.err
    assert (without.code, "keys init" in without.err) == (1, True)
