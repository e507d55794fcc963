"""Whether batches were signed, and by whom; what is forged goes nowhere."""

from __future__ import annotations

from collections.abc import Callable

from zfabric.protocol.authority import Signer
from zfabric.wire.batch import Batch
from zfabric.wire.signatures import BadSignature

__all__ = ["UNSIGNED", "Signatures"]

UNSIGNED = "it is not signed"


class Signatures:
    """Checks whatever batch comes in: from its publisher, a store, or another node's memory."""

    def __init__(self, signer: Signer | None, refused: Callable[[Batch, str], None], *, required: bool) -> None:
        """Without `signer` nothing can be told of signatures. `refused(batch, reason)` hears of each bad one."""
        self._signer = signer
        self.own = "" if signer is None else signer.name
        self.required = required
        self._refused = refused
        self.refused = 0
        "Messages."

    def check(self, batch: Batch, *, required: bool = False) -> bool:
        """Whether a batch may be delivered; `batch.signer` tells who signed it."""
        if batch.signature and not batch.signer and not batch.refused and self._signer is not None:
            try:
                batch.signer = self._signer.signer_of(batch)
            except BadSignature as error:
                batch.refused = str(error)
        if self.required and not batch.signer and not batch.refused:
            batch.refused = UNSIGNED
        reason = batch.refused or (UNSIGNED if required and not batch.signer else "")
        if reason:
            self.refused += batch.count - batch.skip
            self._refused(batch, reason)
        return not reason
