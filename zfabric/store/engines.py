"""Finding the engine of a log by its URL."""

from __future__ import annotations

from importlib.metadata import entry_points

from zfabric.config import Config
from zfabric.errors import StoreNotFound
from zfabric.store.log import Log

__all__ = ["open_log"]

ENTRY_POINTS = "zfabric.stores"
"Group of entry points that name a `(url, config, create) -> Log` by the scheme of its URL."


def open_log(url: str, config: Config | None = None, *, create: bool = False) -> Log:
    """Open the log at a URL: `sqlite:///absolute/path`, `sqlite:relative/path` or `memory:`; a plain path is SQLite's.

    `create=True` makes a new one where there is none. Raises StoreNotFound, StoreLocked, StoreDamaged, OSError.
    """
    scheme, colon, _ = url.partition(":")
    if not colon or not scheme.isalpha() or len(scheme) == 1:
        scheme, url = "sqlite", f"sqlite:{url}"
    engines = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if scheme not in engines:
        raise StoreNotFound(url, f"no engine {scheme!r}; there are: {', '.join(sorted(engines))}")
    try:
        engine = engines[scheme].load()
    except ModuleNotFoundError as error:
        raise StoreNotFound(url, f"its engine needs {error.name}: pip install 'zfabric[store]'") from error
    log = engine(url, config or Config(), create)
    assert isinstance(log, Log)
    return log
