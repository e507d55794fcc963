"""The doctor's checks of keys."""

from __future__ import annotations

import os
from collections.abc import Iterator

from zfabric.cli.checks import Check, Situation, failed, ok, warned
from zfabric.errors import InvalidKey
from zfabric.security.finding import KEY_FILE, find_credentials
from zfabric.security.identities import Identities
from zfabric.security.keyfiles import key_files, read_key

__all__ = ["CHECKS", "fabric_key", "key_files_of_user"]


def fabric_key(situation: Situation) -> Iterator[Check]:
    """Has this fabric a key, and which?"""
    chosen = os.environ.get(KEY_FILE)
    try:
        key = find_credentials(situation.fabric, None)
    except (InvalidKey, OSError) as error:
        where = f"the file that ${KEY_FILE} names: " if chosen else ""
        yield failed("key", f"{where}{error}", "mend it, or `zfabric keys join` with the token of your fabric")
        return
    if key is None:
        detail = f"fabric {situation.fabric!r} has none here: everything is plain, and stays on this machine"
        yield ok("key", detail)
    elif isinstance(key, Identities):
        known = "" if key.name in key.trusted else " (which is not itself among them)"
        detail = f"fabric {situation.fabric!r} has {len(key.trusted)} identities here; this is {key.name!r}{known}"
        yield ok("key", f"{detail}, and announces {key.fingerprint}")
    else:
        yield ok("key", f"fabric {situation.fabric!r} is encrypted; all of its nodes must announce {key.fingerprint}")


def key_files_of_user(_: Situation) -> Iterator[Check]:
    """Can all of this user's key files be used?"""
    for path in key_files():
        try:
            if path.is_dir():
                Identities(path)
            else:
                read_key(path)
        except (InvalidKey, OSError) as error:
            yield warned("key files", str(error), "mend it, or remove it")


CHECKS = (fabric_key, key_files_of_user)
