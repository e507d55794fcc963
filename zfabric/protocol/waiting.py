"""Jobs that are with nobody: who of them may go next, and who has to wait for time or for another job."""

from __future__ import annotations

import heapq
from collections import deque
from itertools import count
from math import inf

from zfabric.protocol.jobs import Block, Entry, Job, Run
from zfabric.protocol.lines import Line
from zfabric.wire.selectors import Selector

__all__ = ["Taken", "Waiting"]

TIDY_MIN = 1024

Taken = tuple[Block | None, int, list[Job], int]
"""What one lease takes: (block, position of the first, [], count), or (None, 0, jobs, count)."""


class Waiting:
    """The waiting jobs of one queue."""

    def __init__(self, queue: str, ageing_s: float) -> None:
        self._queue = queue
        self._ageing_s = ageing_s
        self._everything = Line(queue, None, ageing_s)
        self._lines: dict[str, tuple[Line, int]] = {}
        "Those of selectors, and how many workers use each."
        self._groups: dict[bytes, deque[Job]] = {}
        "For each key that is in use, the jobs behind the one whose turn it is."
        self._suspects: deque[Job] = deque()
        self._agenda: list[tuple[float, int, Job]] = []
        "Jobs whose time comes, or whose ttl passes."
        self._order = count()
        self._tidy_at = TIDY_MIN
        self.ready = 0
        "Jobs that wait for a worker and nothing else."
        self.expired: list[Job] = []
        "Jobs whose ttl passed, until the dispatcher looks."

    # -- lines ---------------------------------------------------------------------------------

    def open_line(self, selector: Selector | None) -> Line:
        """The line for workers with this selector."""
        if selector is None:
            return self._everything
        line, users = self._lines.get(selector.text, (None, 0))
        if line is None:
            line = Line(self._queue, selector, self._ageing_s)
            for entry in self._everything.entries():
                line.add(entry)
        self._lines[selector.text] = line, users + 1
        return line

    def close_line(self, line: Line) -> None:
        """One of its workers is gone."""
        if line.selector is not None:
            text = line.selector.text
            users = self._lines[text][1]
            if users == 1:
                del self._lines[text]
            else:
                self._lines[text] = line, users - 1

    def _join(self, entry: Entry, *, first: bool) -> None:
        self._everything.add(entry, first=first)
        for line, _ in self._lines.values():
            line.add(entry, first=first)

    # -- in ------------------------------------------------------------------------------------

    def add_run(self, run: Run, *, first: bool = False) -> None:
        """Jobs that can go at once."""
        self.ready += run.stop - run.start
        self._join(run, first=first)

    def add(self, job: Job, delay_s: float, now: float) -> None:
        """A new job."""
        if job.expires_at < inf:
            self._remember(job.expires_at, job)
        if job.group is not None:
            behind = self._groups.get(job.group)
            if behind is not None:
                job.ready_at = now + delay_s
                job.blocked = True
                behind.append(job)
                return
            self._groups[job.group] = deque()
        self._wait(job, delay_s, now)

    def again(self, job: Job, delay_s: float, now: float) -> None:
        """A job that was leased waits again. It stays in front of those that follow it by key."""
        self._wait(job, delay_s, now, first=True)

    def _wait(self, job: Job, delay_s: float, now: float, *, first: bool = False) -> None:
        if job.expires_at <= now:
            self.expired.append(job)
        elif delay_s > 0:
            job.ready_at = now + delay_s
            self._remember(job.ready_at, job)
        else:
            job.ready = True
            self.ready += 1
            if job.suspect:
                (self._suspects.appendleft if first else self._suspects.append)(job)
            else:
                self._join(job, first=first)

    def ended(self, job: Job, now: float) -> None:
        """A job of its own will not come back: the next of its key may go."""
        job.ended = True
        if job.ready:
            job.ready = False
            self.ready -= 1
        if job.group is None or job.blocked:
            return
        behind = self._groups[job.group]
        while behind:
            follower = behind.popleft()
            follower.blocked = False
            if not follower.ended:
                self._wait(follower, follower.ready_at - now, now)
                return
        del self._groups[job.group]

    # -- out -----------------------------------------------------------------------------------

    def take(self, line: Line, jobs_max: int, bytes_max: int, now: float) -> Taken | None:
        """What is next in a line: jobs for one lease, at least one even if it is over `bytes_max`."""
        entry = line.head()
        if entry is None:
            return None
        if isinstance(entry, Run):
            block = entry.block
            some = min(jobs_max, entry.stop - entry.start, max(1, bytes_max * block.count // block.nbytes))
            start = entry.start
            entry.start += some
            self.ready -= some
            return block, start, [], some
        jobs: list[Job] = []
        nbytes = 0
        while isinstance(entry, Job) and len(jobs) < jobs_max and (nbytes + entry.nbytes <= bytes_max or not jobs):
            if entry.alone and jobs:
                break
            entry.ready = False
            self.ready -= 1
            if entry.expires_at <= now:
                self.expired.append(entry)
            else:
                jobs.append(entry)
                nbytes += entry.nbytes
                if entry.alone:
                    break
            entry = line.head()
        return (None, 0, jobs, len(jobs)) if jobs else self.take(line, jobs_max, bytes_max, now)

    def take_suspect(self, line: Line, now: float) -> Taken | None:
        """A job that travels alone."""
        for _ in range(len(self._suspects)):
            job = self._suspects.popleft()
            if not job.ready:
                continue
            if job.expires_at <= now:
                job.ready = False
                self.ready -= 1
                self.expired.append(job)
            elif line.matches(job):
                job.ready = False
                self.ready -= 1
                return None, 0, [job], 1
            else:
                self._suspects.append(job)
        return None

    def has_for(self, line: Line) -> tuple[bool, bool]:
        """Whether anything waits in a line, and whether a job that travels alone does."""
        if not self.ready:
            return False, False
        return line.head() is not None, any(job.ready and line.matches(job) for job in self._suspects)

    # -- time ----------------------------------------------------------------------------------

    def _remember(self, when: float, job: Job) -> None:
        heapq.heappush(self._agenda, (when, next(self._order), job))
        if len(self._agenda) > self._tidy_at:
            self._agenda = [entry for entry in self._agenda if not entry[2].ended]
            heapq.heapify(self._agenda)
            self._tidy_at = max(TIDY_MIN, 2 * len(self._agenda))

    def timer(self) -> float:
        """When `handle_timer` has something to do."""
        return self._agenda[0][0] if self._agenda else inf

    def handle_timer(self, now: float) -> None:
        """Let those go whose time has come; give up those whose ttl has passed, unless somebody has them."""
        while self._agenda and self._agenda[0][0] <= now:
            _, _, job = heapq.heappop(self._agenda)
            if job.ended:
                continue
            if job.expires_at <= now:
                if not job.leased:
                    self.expired.append(job)
            elif not job.ready and not job.leased:
                self._wait(job, 0.0, now)
