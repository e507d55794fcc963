"""Pipelines: `source -> map, flat_map, filter -> batch, window -> sink`, with any number of processes at each stage.

ZeroMQ Guide, chapter 1, "Divide and Conquer" (ventilator, workers, sink), with what chapter 4 adds to it: nothing is
lost when a worker dies, and nobody is drowned.

    words = Pipeline("words")                                # a module that every process imports
    words.map(read, workers=4).flat_map(split, processes=2).filter(len).batch(100)

    async with words.serve(node):                            # as many processes as you like, on any host
        await stop.wait()

    async for some in words.run(node, paths):                # one process: feeds the source, gets the results
        ...

Between two stages is a queue, held by whoever pushes to it. What came of one item of the source travels together, and
a worker acknowledges it only when the next stage has; the first queue's items are done when `run` has their results.
A worker that dies loses nothing: what it had is done again by another. `run` gives every item's results once, in the
order of the source if `ordered`.

What can fail: the process that runs `run` holds the source, so its death ends the run. An item whose function raises
`attempts` times counts as failed, see `on_error`, and so does one that kills its process of `processes=`. An item that
kills a worker's whole program every time is tried for ever. Functions may be called more than once for the same item,
so what they do to the outside world should bear repetition. With `ordered`, one slow item holds up those behind it, up
to `in_flight` items. Processes call functions by name: they are passed on by `multiprocessing` on one machine, never
through the fabric.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence, Sized
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from itertools import pairwise
from typing import Any, Literal, Self

from zfabric.patterns._plan import Kind, Plan, Stage, StageStatistics
from zfabric.patterns._progress import Bar
from zfabric.patterns._runs import ItemFailed, PipelineStatistics, Run, Source, collected
from zfabric.patterns._workers import Workers

from zfabric import Node

__all__ = ["ItemFailed", "Pipeline", "PipelineStatistics", "StageStatistics"]


class Pipeline:
    """Stages by name, the same in every process that takes part; see the module's description."""

    def __init__(self, name: str, *, attempts: int = 3) -> None:
        """`attempts`: how often a function may raise for one item before it counts as failed."""
        if attempts < 1:
            raise ValueError(f"attempts must be 1 or more, not {attempts}")
        self.name = name
        self._plan = Plan(name, attempts)
        self._stages = self._plan.stages
        self._collect: list[tuple[str, float]] = []

    def __repr__(self) -> str:
        return f"<Pipeline {self.name} [{' -> '.join(stage.name for stage in self._stages)}]>"

    # -- stages --------------------------------------------------------------------------------

    def map(self, function: Callable[[Any], Any], *, workers: int = 1, processes: int = 0) -> Self:
        """Each value becomes what the function returns.

        An `async def` runs in the event loop, `workers` at a time; a `def` in that many threads; with `processes`, in
        that many processes, for work that needs a processor of its own.
        """
        return self._add("map", function, workers, processes)

    def flat_map(self, function: Callable[[Any], Any], *, workers: int = 1, processes: int = 0) -> Self:
        """Each value becomes all values of the iterable that the function returns."""
        return self._add("flat_map", function, workers, processes)

    def filter(self, function: Callable[[Any], Any], *, workers: int = 1, processes: int = 0) -> Self:
        """Only values for which the function returns something true go on."""
        return self._add("filter", function, workers, processes)

    def _add(self, kind: Kind, function: Callable[[Any], Any], workers: int, processes: int) -> Self:
        if self._collect:
            raise ValueError("batch() and window() come last: they collect what all workers have sent")
        if not callable(function):
            raise TypeError(f"{function!r} is not a callable object")
        if workers < 1 or processes < 0:
            raise ValueError("workers must be 1 or more, processes 0 or more")
        if processes and (inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)):
            raise ValueError("processes= is for a `def`; an `async def` runs in the event loop")
        name = f"{len(self._stages)}-{getattr(function, '__name__', kind).strip('<>_')}"
        statistics = StageStatistics(name)
        self._stages.append(Stage(kind, function, processes or workers, processes > 0, name, statistics))
        return self

    def batch(self, count: int) -> Self:
        """Results come in lists of `count`; the last one may be shorter."""
        if count < 1:
            raise ValueError(f"a batch has 1 value or more, not {count}")
        self._collect.append(("batch", count))
        return self

    def window(self, seconds: float) -> Self:
        """Results come in lists of what arrived within `seconds` of their first value."""
        if not seconds > 0:
            raise ValueError(f"a window lasts longer than {seconds} seconds")
        self._collect.append(("window", seconds))
        return self

    @property
    def statistics(self) -> tuple[StageStatistics, ...]:
        """What each stage has done in this process."""
        return tuple(stage.statistics for stage in self._stages)

    def picture(self, format: Literal["mermaid", "dot"] = "mermaid") -> str:  # noqa: A002 - as the command says
        """The stages as a graph in the language of Mermaid or Graphviz."""
        if format not in ("mermaid", "dot"):
            raise ValueError(f"format must be 'mermaid' or 'dot', not {format!r}")
        names = ["source", *(f"{stage.name} x{stage.workers}" for stage in self._stages)]
        names += [f"{kind} {amount:g}" for kind, amount in self._collect]
        names.append("sink")
        if format == "dot":
            edges = "".join(f'  "{one}" -> "{other}";\n' for one, other in pairwise(names))
            return f'digraph "{self.name}" {{\n  rankdir=LR;\n{edges}}}\n'
        boxes = "".join(f'  s{number}["{name}"]\n' for number, name in enumerate(names))
        return f"flowchart LR\n{boxes}  {' --> '.join(f's{number}' for number in range(len(names)))}\n"

    # -- working -------------------------------------------------------------------------------

    @asynccontextmanager
    async def serve(self, node: Node, stages: Sequence[int] | None = None) -> AsyncIterator[None]:
        """Work for this pipeline as long as the body runs, in all stages or those with these numbers.

        Raises ValueError for a pipeline without stages, or stages that are not there.
        """
        numbers = range(len(self._stages)) if stages is None else stages
        if not self._stages or not all(0 <= number < len(self._stages) for number in numbers):
            raise ValueError(f"{self!r} has {len(self._stages)} stages; asked to serve {list(numbers)}")
        async with AsyncExitStack() as stack:
            for number in reversed(numbers):
                await stack.enter_async_context(Workers(self._plan, number, node))
            yield

    # -- running -------------------------------------------------------------------------------

    async def run(
        self,
        node: Node,
        source: Source,
        *,
        ordered: bool = True,
        in_flight: int = 1000,
        on_error: Literal["raise", "skip"] = "raise",
        statistics: PipelineStatistics | None = None,
    ) -> AsyncGenerator[Any, None]:
        """Feed the source to whoever serves this pipeline, and yield the results.

        `ordered`: as the source was; otherwise as they come. `in_flight`: items of the source that may be under way.
        `on_error`: raise ItemFailed for an item that failed, or leave it out and count it in `statistics`.
        """
        if not self._stages:
            raise ValueError(f"{self!r} has no stages")
        if in_flight < 1:
            raise ValueError(f"in_flight must be 1 or more, not {in_flight}")
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', not {on_error!r}")
        run = Run(self._plan, node, source, statistics or PipelineStatistics(), ordered, in_flight, on_error)
        async with aclosing(run.results()) as results:
            async for result in collected(results, self._collect):
                yield result

    async def into(
        self, node: Node, source: Source, sink: Callable[[Any], Any], *, progress: bool = False, **options: Any
    ) -> PipelineStatistics:
        """Call `sink` (a function or `async def`) with every result; options as of `run`.

        `progress` shows a bar on stderr, of known length if the source has one.
        """
        statistics = options.setdefault("statistics", PipelineStatistics())
        total = len(source) if isinstance(source, Sized) else None
        with Bar(self.name, total, shown=progress) as bar:
            async with aclosing(self.run(node, source, **options)) as results:
                async for result in results:
                    outcome = sink(result)
                    if isinstance(outcome, Awaitable):
                        await outcome
                    bar.update(statistics.done)
            bar.update(statistics.done)
        assert isinstance(statistics, PipelineStatistics)
        return statistics
