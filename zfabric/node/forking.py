"""A child of fork() has its parent's sockets and none of its threads: every use of a node is an error there."""

from __future__ import annotations

import os
import weakref

from zfabric.node.driver import Driver

__all__ = ["open_drivers"]

open_drivers: weakref.WeakSet[Driver] = weakref.WeakSet()
"Of this process."


def _forked() -> None:
    for driver in list(open_drivers):
        if driver.open_state == "open":
            driver.open_state = "forked"
            for outbox in driver.core.interests.outboxes.values():
                outbox.ready = False


def _keep_held() -> None:
    for driver in list(open_drivers):
        driver.core.lending.keep_held()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_keep_held, after_in_child=_forked, after_in_parent=_keep_held)
