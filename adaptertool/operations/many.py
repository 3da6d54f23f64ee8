"""One operation on many checkpoints, several at a time. What goes wrong with one is a value beside the others' results."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from adaptertool.checkpoint.bytes import os_error
from adaptertool.checkpoint.discover import Found
from adaptertool.errors import AdapterToolError, NoSpaceError, UsageError
from adaptertool.progress import SILENT, Progress

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

R = TypeVar("R")

MOST_JOBS = 8
"""Checkpoints that are worked on at once unless the caller says otherwise: on the Hub, or with as many processors."""

AHEAD = 4
"""Results a worker that may wait for the caller, before it waits itself."""


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """What became of one checkpoint.

    Attributes:
        target: As it was named or found.
        result: What the operation returned; None where it failed.
        error: Why it failed.
    """

    target: str
    result: R | None
    error: AdapterToolError | None = None


class Watch(Protocol):
    """An observer of work on many checkpoints; its methods are called from several threads."""

    def found(self) -> None:
        """There is one more checkpoint to work on."""

    def began(self) -> Progress:
        """Work on it begins; the answer is told how far it got."""

    def ended(self, progress: Progress | None) -> None:
        """It is done; the answer to `began` comes back, None where nothing could begin."""


class _Unwatched:
    def found(self) -> None:
        """Nothing is shown."""

    def began(self) -> Progress:
        """Nothing is shown."""
        return SILENT

    def ended(self, progress: Progress | None) -> None:
        """Nothing is shown."""


def each(
    operation: Callable[..., R], targets: Iterable[str | Path], *, jobs: int | None = None, **options: Any
) -> Generator[Outcome[R], None, None]:
    """Apply `inspect`, `slim`, `restore` or `check_merge` to many checkpoints.

    >>> for one in adaptertool.each(adaptertool.inspect, adaptertool.find("runs/"), verify="full"):
    ...     print(one.target, one.error or one.result.projections)

    Args:
        operation: What to do with each.
        targets: The checkpoints; taken one by one, so that work begins before all are found.
        jobs: How many are worked on at once; by default one a processor, at most `MOST_JOBS`.
        **options: What the operation takes beside its target.

    Yields:
        One outcome a target, in the order in which they are done. Closing the iterator ends the work: what runs stops at
        its next megabyte, and no checkpoint is left half written.

    Raises:
        UsageError: `jobs` is less than 1.
    """
    if jobs is not None and jobs < 1:
        raise UsageError(f"jobs is {jobs}", hint="At least one checkpoint is worked on at a time.")
    # Not in the generator itself, which would raise at the first outcome only.
    return _outcomes(operation, targets, jobs or default_jobs(remote=False), options)


def _outcomes(
    operation: Callable[..., R], targets: Iterable[str | Path], jobs: int, options: Mapping[str, Any]
) -> Generator[Outcome[R], None, None]:
    workers = Workers(lambda one, _: operation(one.target, **options), jobs=jobs)
    try:
        yield from workers.outcomes(Found(str(target)) for target in targets)
    finally:
        workers.stop()


def default_jobs(*, remote: bool) -> int:
    """How many checkpoints are worked on at once: on the Hub the network is waited for, on disk the processors are."""
    return MOST_JOBS if remote else min(MOST_JOBS, os.cpu_count() or 1)


class _CancelledError(Exception):
    """The caller wants no more."""


class Workers(Generic[R]):
    """Threads that work on checkpoints: numpy lets go of the interpreter while it draws and compares, and so does reading.

    Whoever makes one calls `stop` in the end, whatever happens.

    Args:
        work: Takes a checkpoint, and who is told how far it got. May raise `AdapterToolError`, `OSError`, `MemoryError` or
            `RecursionError`, which are outcomes; anything else ends the whole.
        jobs: How many are worked on at once.
        watch: Who is told how far the whole is.
    """

    def __init__(self, work: Callable[[Found, Progress], R], *, jobs: int, watch: Watch | None = None) -> None:
        self._work, self._watch = work, watch or _Unwatched()
        self._pool = ThreadPoolExecutor(jobs, thread_name_prefix="adaptertool")
        self._done: deque[Outcome[R] | BaseException] = deque()
        self._came: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._jobs = jobs
        self._room = threading.Semaphore(AHEAD * jobs)
        self._cancelled = threading.Event()

    def outcomes(self, targets: Iterable[Found]) -> Iterator[Outcome[R]]:
        """Work on checkpoints.

        Args:
            targets: Taken one by one, so that work begins before all are found. A problem that stands with one becomes its
                outcome.

        Yields:
            One outcome a target, in the order in which they are done.
        """
        due = 0
        for one in targets:
            self._watch.found()
            self._pool.submit(self._run, one)
            due += 1
            while self._done:
                due -= 1
                yield from self._next()
        while due:
            due -= 1
            yield from self._next()

    def stop(self) -> list[Outcome[R]]:
        """End the work: what runs stops at its next megabyte, what is being put in its place comes to be there.

        Returns:
            What is done by then and was not yielded; where a signal came while the last one was taken, that one first, again.
        """
        self._cancelled.set()
        for _ in range(self._jobs):
            self._room.release()
        self._pool.shutdown(wait=True, cancel_futures=True)
        return [outcome for outcome in self._done if isinstance(outcome, Outcome)]

    def _next(self) -> Iterator[Outcome[R]]:
        while not self._done:
            # With a limit, because waiting without one can't be interrupted on Windows.
            with contextlib.suppress(queue.Empty):
                self._came.get(timeout=1.0)
        outcome = self._done[0]
        if isinstance(outcome, BaseException):
            raise outcome
        yield outcome
        # Only now, so that one that a signal came upon is still there.
        self._done.popleft()
        self._room.release()

    def _run(self, found: Found) -> None:
        self._room.acquire()
        if self._cancelled.is_set():
            return
        try:
            self._done.append(self._outcome(found))
        except _CancelledError:
            return
        except BaseException as error:  # noqa: BLE001 - raised again where the outcomes are taken
            self._done.append(error)
        self._came.put(None)

    def _outcome(self, found: Found) -> Outcome[R]:
        if found.problem is not None:
            self._watch.ended(None)
            return Outcome(found.target, None, found.problem)
        progress = self._watch.began()
        try:
            return Outcome(found.target, self._work(found, _Cancellable(progress, self._cancelled)))
        except AdapterToolError as error:
            return Outcome(found.target, None, error)
        except (MemoryError, RecursionError):
            return Outcome(found.target, None, NoSpaceError("not enough memory"))
        except OSError as error:
            return Outcome(
                found.target, None, os_error(error, error.filename2 or error.filename or found.target, "use")
            )
        finally:
            self._watch.ended(progress)


class _Cancellable:
    """Ends the work of a thread at its next step once the caller wants no more."""

    def __init__(self, progress: Progress, cancelled: threading.Event) -> None:
        self._progress, self._cancelled = progress, cancelled

    def phase(self, what: str, total: int) -> None:
        if self._cancelled.is_set():
            raise _CancelledError
        self._progress.phase(what, total)

    def advance(self, count: int) -> None:
        if self._cancelled.is_set():
            raise _CancelledError
        self._progress.advance(count)
