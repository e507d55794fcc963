"""The verbs of `zfabric store` that work on the files of a store which does not run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import click

from zfabric.cli._exits import Exit, Stop
from zfabric.cli._options import AMOUNT, Number, Options, TopicParameter, output_options
from zfabric.cli._output import Output, count
from zfabric.cli._running import guard
from zfabric.cli.bw import human

if TYPE_CHECKING:
    from zfabric.model import Retention, StoredTopic
    from zfabric.store import Log, StreamInfo
    from zfabric.store.sqlite import SqliteLog

__all__ = ["VERBS", "kept", "retention_options", "show_topics"]

Verb = TypeVar("Verb", bound=Callable[..., Any])

_store = click.argument("url", metavar="DIR|URL")


def _run(options: Options, url: str, work: Callable[[Output, Log], int]) -> int:
    """Open the store, which must be there and not in use, and do the work."""
    output = Output(options)

    def with_log() -> int:
        from zfabric.store import open_log

        with open_log(url) as log:
            return work(output, log)

    return guard(options, output, with_log)


def _in_files(log: Log) -> SqliteLog:
    from zfabric.store.sqlite import SqliteLog

    if not isinstance(log, SqliteLog):
        raise Stop(Exit.USAGE, "only a store in files can do that; export and import work with every engine")
    return log


# -- looking ---------------------------------------------------------------------------------------


@click.command()
@_store
@output_options
def info(options: Options, url: str) -> int:
    """Show the topics that a store holds: offsets, size, and how long they are kept."""
    return _run(options, url, _info)


def _info(output: Output, log: Log) -> int:
    streams = log.streams()
    if output.json:
        for known in streams:
            output.record(
                {
                    "topic": known.name,
                    "first": known.first,
                    "next": known.next,
                    "bytes": known.bytes,
                    "retention": kept(known.retention),
                    "producers": len(log.marks(known.name)),
                }
            )
    else:
        show_topics(output, [(known.name, known) for known in streams])
    output.note(f"{count(len(streams), 'topic')}, {human(sum(known.bytes for known in streams))}")
    return _tell_damage(output, log)


def show_topics(output: Output, topics: Sequence[tuple[str, StreamInfo | StoredTopic]]) -> None:
    """A table of topics in logs."""
    output.table(
        ("TOPIC", "FIRST", "NEXT", "SIZE", "KEEPS"),
        [
            (name, f"{known.first:,}", f"{known.next:,}", human(known.bytes), _keeps(known.retention))
            for name, known in topics
        ],
    )


def kept(retention: Retention) -> dict[str, Any]:
    """The bounds of a topic, for JSON."""
    return {name: getattr(retention, name) for name in retention.__struct_fields__}


def _keeps(retention: Retention) -> str:
    parts = []
    if retention.age_s is not None:
        parts.append(f"{retention.age_s:g} s")
    if retention.bytes is not None:
        parts.append(human(retention.bytes))
    if retention.messages is not None:
        parts.append(count(retention.messages, "message"))
    if retention.compact:
        parts.append("last of each key")
    return ", ".join(parts) or "everything"


def _tell_damage(output: Output, log: Log) -> int:
    for finding in log.damage:
        output.warn(finding)
    return Exit.FAILED if log.damage else Exit.OK


@click.command()
@_store
@click.option(
    "--accept-loss",
    is_flag=True,
    help="Open a store whose newest part is gone: each topic gets a gap at its end, and goes on behind it.",
)
@output_options
def verify(options: Options, url: str, accept_loss: bool) -> int:
    """Read everything in a store and check it.

    Exits 1 if anything is damaged: what is damaged is told, and subscribers get a gap there; the rest is served.
    """
    if not accept_loss:
        return _run(options, url, _verify)
    output = Output(options)

    def mend() -> int:
        from zfabric.store.sqlite import SqliteLog, directory_of

        with SqliteLog(directory_of(url), accept_loss=True) as log:
            return _verify(output, log)

    return guard(options, output, mend)


def _verify(output: Output, log: Log) -> int:
    from zfabric.store.transfer import verify as read_all

    messages = missing = 0
    for found in read_all(log):
        messages += found.messages
        missing += sum(gap.next - gap.offset for gap in found.gaps)
        if output.json:
            gaps = [{"offset": gap.offset, "next": gap.next, "reason": gap.reason} for gap in found.gaps]
            output.record({"topic": found.stream, "batches": found.batches, "messages": found.messages, "gaps": gaps})
        for gap in found.gaps:
            output.warn(f"{found.stream}: offsets {gap.offset:,} to {gap.next - 1:,} are gone: {gap.reason}")
    damaged = _tell_damage(output, log) or (Exit.FAILED if missing else Exit.OK)
    output.note(f"{count(messages, 'message')} {'can be read' if damaged else 'and all is well'}")
    return damaged


# -- copying ---------------------------------------------------------------------------------------


@click.command()
@_store
@click.argument("target", type=click.Path(file_okay=False, path_type=Path))
@output_options
def backup(options: Options, url: str, target: Path) -> int:
    """Copy a store into the new directory TARGET, file by file. `restore` brings it back."""
    return _run(options, url, lambda output, log: _copy(output, _in_files(log), target))


@click.command()
@click.argument("source", type=click.Path(exists=True, file_okay=False))
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@output_options
def restore(options: Options, source: str, directory: Path) -> int:
    """Make the store DIRECTORY from the backup SOURCE, and check it. Exits 1 if the backup was damaged."""
    return _run(options, source, lambda output, log: _copy(output, _in_files(log), directory))


def _copy(output: Output, log: SqliteLog, target: Path) -> int:
    from zfabric.store import open_log

    log.backup(target)
    with open_log(str(target)) as copy:
        return _verify(output, copy)


@click.command()
@_store
@click.argument("file", default="-", metavar="[FILE|-]")
@output_options
def export(options: Options, url: str, file: str) -> int:
    """Write all that a store holds to FILE or stdout, as MessagePack or with --json as JSON, one object a line."""
    return _run(options, url, lambda output, log: _export(output, log, file))


def _export(output: Output, log: Log, file: str) -> int:
    from zfabric.store.transfer import records, write_records

    with _opened(file, "wb") as stream:
        total = write_records(records(log), stream, as_json=output.json)
    output.note(f"wrote {count(total, 'record')}")
    return _tell_damage(output, log)


@click.command("import")
@_store
@click.argument("file", default="-", metavar="[FILE|-]")
@output_options
def import_(options: Options, url: str, file: str) -> int:
    """Read an export from FILE or stdin into a store, which is made if it is not there.

    The store must have none of the topics yet. Offsets, positions and what is known of producers stay the same.
    """
    output = Output(options)

    def work() -> int:
        from zfabric.store import open_log
        from zfabric.store.transfer import read_records, restore_records

        with _opened(file, "rb") as stream, open_log(url, create=True) as log:
            as_json = stream.peek(1)[:1] == b"{"  # type: ignore[attr-defined]
            total = restore_records(read_records(stream, as_json=as_json), log)
        if output.json:
            output.record({"batches": total})
        output.note(f"read {count(total, 'batch') if total == 1 else f'{total:,} batches'}")
        return Exit.OK

    return guard(options, output, work)


@contextmanager
def _opened(file: str, mode: str) -> Iterator[BinaryIO]:
    from zfabric.store.directory import make_private

    if file == "-":
        yield (sys.stdin if mode == "rb" else sys.stdout).buffer
    else:
        if mode == "wb":
            make_private(Path(file))
        with Path(file).open(mode) as stream:
            yield stream  # type: ignore[misc]


# -- changing --------------------------------------------------------------------------------------


@click.command()
@_store
@click.argument("topic", type=TopicParameter())
@click.option("--before", type=AMOUNT, metavar="OFFSET", help="Only what is before this offset.")
@click.option(
    "--forget",
    is_flag=True,
    help="The topic itself, too, with its offsets, producers and the groups' positions.",
)
@output_options
def purge(options: Options, url: str, topic: str, before: int | None, forget: bool) -> int:
    """Remove the messages of TOPIC from a store."""
    if forget and before is not None:
        raise click.UsageError("--before and --forget exclude each other")
    return _run(options, url, lambda output, log: _purge(output, log, topic, before, forget))


def _purge(output: Output, log: Log, topic: str, before: int | None, forget: bool) -> int:
    known = _known(log, topic)
    if forget:
        from zfabric.store.group import forget_stream

        forget_stream(log, topic)
        log.delete(topic)
        first = known.next
    else:
        first = log.purge(topic) if before is None else log.trim(topic, before)
    if output.json:
        output.record({"topic": topic, "removed": first - known.first})
    output.note(f"removed {count(first - known.first, 'message')} of {topic}")
    return Exit.OK


def _known(log: Log, topic: str) -> Any:
    known = log.info(topic)
    if known is None:
        raise Stop(Exit.NOBODY, f"no topic {topic!r} in this store: `zfabric store info` lists them")
    return known


@click.command()
@_store
@click.argument("topics", nargs=-1, type=TopicParameter())
@output_options
def compact(options: Options, url: str, topics: tuple[str, ...]) -> int:
    """Of each key of TOPICS keep only the last value; by default of those that are kept that way. Give room back."""
    return _run(options, url, lambda output, log: _compact(output, log, topics))


def _compact(output: Output, log: Log, topics: tuple[str, ...]) -> int:
    before = sum(known.bytes for known in log.streams())
    for topic in topics:
        _known(log, topic)
    for known in log.streams():
        if known.name in topics or (not topics and known.retention.compact):
            log.compact(known.name)
    log.enforce()
    after = sum(known.bytes for known in log.streams())
    if output.json:
        output.record({"bytes_before": before, "bytes": after})
    output.note(f"{human(before)} before, {human(after)} now")
    return Exit.OK


def retention_options(command: Verb) -> Verb:
    """The options that say how long a topic is kept: the fields of `Retention`."""
    age = Number(0, AMOUNT.max)
    for decorate in (
        click.option("--compact", is_flag=True, help="Keep only the last value of each key."),
        click.option("--messages", type=AMOUNT, metavar="N", help="Keep about N messages."),
        click.option("--bytes", type=AMOUNT, metavar="N", help="Keep about N bytes."),
        click.option("--age", "age_s", type=age, metavar="SECONDS", help="Remove what was stored longer ago."),
    ):
        command = decorate(command)
    return command


@click.command()
@_store
@click.argument("topic", type=TopicParameter())
@retention_options
@output_options
def retain(options: Options, url: str, topic: str, **bounds: Any) -> int:
    """Set how long TOPIC is kept, instead of what was set before; without options for ever."""

    def work(output: Output, log: Log) -> int:
        from zfabric.store import Retention

        retention = Retention(**bounds)
        log.retain(topic, retention)
        log.enforce()
        if output.json:
            output.record({"topic": topic, "retention": kept(retention)})
        output.note(f"{topic}: {_keeps(retention)}")
        return Exit.OK

    return _run(options, url, work)


VERBS = (info, verify, backup, restore, export, import_, purge, compact, retain)
"The commands."
