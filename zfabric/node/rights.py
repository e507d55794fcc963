"""What this node's own identity may do, and what changes for all of them while it runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from zfabric.errors import InvalidKey, LocalProtocolError, NotAuthorized
from zfabric.security.identities import Identities
from zfabric.security.keys import FabricKey, fingerprint
from zfabric.transport.base import Credentials
from zfabric.wire.batch import Sign
from zfabric.wire.topics import Pattern

__all__ = ["Rights", "mismatch"]

log = logging.getLogger("zfabric")


class Rights:
    """Asks before the peers do, so that what they would deny is an error where it is asked for."""

    def __init__(self, credentials: FabricKey | Identities | None) -> None:
        """Without identities everything is allowed."""
        self._credentials = credentials
        self.identities = credentials if isinstance(credentials, Identities) else None

    def check(self, action: str, name: str) -> None:
        """Raise NotAuthorized unless this node may `publish`, `push`, `pull`, `serve` `request` or `store` a name."""
        mine = self.identities
        if mine is not None and not mine.may(mine.name, action, name):
            raise NotAuthorized(mine.name, action, name)

    def check_stores(self, patterns: Sequence[str]) -> None:
        """Raise NotAuthorized unless this node may keep all durable topics that match these patterns."""
        mine = self.identities
        for pattern in patterns:
            if mine is not None and not mine.may_all(mine.name, "store", pattern):
                raise NotAuthorized(mine.name, "store", pattern)

    def check_subscribe(self, pattern: Pattern, *, signed: bool = False) -> None:
        """Raise NotAuthorized unless this node may subscribe to a pattern; with `signed` also what `signs` raises."""
        if signed:
            self.signs()
        mine = self.identities
        if mine is not None and not mine.filters(mine.name, pattern.prefix):
            raise NotAuthorized(mine.name, "subscribe", pattern.text)

    def signs(self) -> Sign:
        """What signs this node's batches. Raises LocalProtocolError where signatures cannot be made or checked."""
        if self._credentials is None:
            raise LocalProtocolError("signatures need a key: `zfabric keys new`, or `zfabric keys init`")
        return self._credentials.signs()

    def node_id(self, random: bytes) -> bytes:
        """16 random bytes as an id that others accept from this node's identity."""
        return random if self.identities is None else self.identities.node_id(random[:8])

    def located(self, seeds: Sequence[str]) -> tuple[str, ...]:
        """Seeds as they are dialled: with identities `tcp://host:port#name` says whose key must answer there.

        Raises InvalidKey where that is missing, LocalProtocolError for a text in place of a list.
        """
        if isinstance(seeds, str):
            raise LocalProtocolError(f"seeds= is a list of addresses: [{seeds!r}]")
        if self.identities is None:
            return tuple(seeds)
        found = []
        for seed in seeds:
            address, _, name = seed.rpartition("#")
            key = self.identities.server_key(name)
            if key is None:
                raise InvalidKey(f"in a fabric with identities a seed is tcp://host:port#name, not {seed!r}")
            found.append(f"{address}#{fingerprint(key)}")
        return tuple(found)

    async def watch(self, interval_s: float, changed: Callable[[], None]) -> None:
        """Read the directory again from time to time; `changed()` when somebody lost or may do something else."""
        identities = self.identities
        while identities is not None:
            await asyncio.sleep(interval_s)
            try:
                news = identities.reload()
            except (InvalidKey, OSError) as error:
                log.warning("the identities in %s cannot be read, the old ones stay: %s", identities.directory, error)
            else:
                if news:
                    changed()


def mismatch(theirs: str, credentials: Credentials | None) -> str:
    """Why a node that announces such a key cannot be talked to."""
    if credentials is None:
        return f"it announces a key, {theirs}, and this node has none"
    if credentials.distinguishes:
        return f"it announces {f'a key that is not trusted here, {theirs}' if theirs else 'no key'}"
    return f"it announces {f'another key, {theirs}' if theirs else 'no key'}; this node's is {credentials.fingerprint}"
