"""A progress bar for those who want one."""

from __future__ import annotations

from typing import Self

__all__ = ["Bar"]


class Bar:
    """A progress bar, if it is wanted."""

    def __init__(self, name: str, total: int | None, *, shown: bool) -> None:
        self._name = name
        self._total = total
        self._shown = shown

    def __enter__(self) -> Self:
        if self._shown:
            from rich.console import Console
            from rich.progress import Progress

            self._progress = Progress(console=Console(stderr=True))
            self._progress.start()
            self._task = self._progress.add_task(self._name, total=self._total)
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._progress.stop()

    def update(self, done: int) -> None:
        """So many items are done."""
        if self._shown:
            self._progress.update(self._task, completed=done)
