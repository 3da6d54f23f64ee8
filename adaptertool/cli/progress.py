"""Progress bars on stderr, for work that takes longer than a second and a terminal that someone may watch."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING

from adaptertool.words import plural, size

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress as Bar
    from rich.progress import ProgressColumn, TaskID

BAR_AFTER = 1.0
"""Seconds after which work gets a progress bar."""


def _watched() -> bool:
    """Whether somebody may watch a bar: not where the terminal can't move its cursor, or the Hub's users turn bars off."""
    off = os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS", "").upper() in ("1", "ON", "YES", "TRUE")
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown") and not off


def _bar(*columns: ProgressColumn) -> Bar:
    from rich.console import Console
    from rich.progress import Progress

    return Progress(*columns, console=Console(file=sys.stderr), transient=True)


class ProgressBar:
    """How far the work on one checkpoint is: a bar of bytes for each phase."""

    def __init__(self) -> None:
        self._shown = _watched()
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._what, self._total, self._done = "", 0, 0
        self._began = time.monotonic()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def phase(self, what: str, total: int) -> None:
        """A phase begins; the bar of the one before goes."""
        self._stop()
        self._what, self._total, self._done = what, total, 0

    def advance(self, count: int) -> None:
        """So many more bytes are done."""
        self._done += count
        if not self._shown or time.monotonic() - self._began < BAR_AFTER:
            return
        if self._bar is None:
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

            self._bar = _bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(compact=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=self._total)
        if self._task is not None:
            self._bar.update(self._task, completed=self._done)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar, self._task = None, None


class ManyBar:
    """How far the work on many checkpoints is: one bar that counts them, and the bytes of all that are under way."""

    def __init__(self) -> None:
        self._shown = _watched()
        self._lock = threading.Lock()
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._began = time.monotonic()
        self._found = self._ended = self._bytes = 0

    def __enter__(self) -> ManyBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def counts(self) -> tuple[int, int]:
        """How many checkpoints are done, and how many were found."""
        return self._ended, self._found

    def found(self) -> None:
        """There is one more checkpoint to work on."""
        self._add(found=1)

    def began(self) -> _Share:
        """Work on it begins."""
        return _Share(self)

    def ended(self) -> None:
        """It is done."""
        self._add(ended=1)

    def _add(self, found: int = 0, ended: int = 0, bytes_: int = 0) -> None:
        with self._lock:
            self._found += found
            self._ended += ended
            self._bytes += bytes_
            elapsed = time.monotonic() - self._began
            if not self._shown or elapsed < BAR_AFTER:
                return
            if self._bar is None:
                from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

                self._bar = _bar(
                    TextColumn("{task.description}"),
                    BarColumn(bar_width=20),
                    TextColumn("{task.fields[bytes]}"),
                    TimeRemainingColumn(compact=True),
                )
                self._bar.start()
                self._task = self._bar.add_task("", total=None, bytes="")
            if self._task is not None:
                self._bar.update(
                    self._task,
                    description=f"{self._ended:,} of {plural(self._found, 'checkpoint')}",
                    completed=self._ended,
                    total=self._found,
                    bytes=f"{size(self._bytes)}, {size(int(self._bytes / elapsed))}/s" if self._bytes else "",
                )


class _Share:
    """One checkpoint's part of the whole."""

    def __init__(self, whole: ManyBar) -> None:
        self._whole = whole

    def phase(self, what: str, total: int) -> None:
        """The whole has no phases."""

    def advance(self, count: int) -> None:
        """So many more bytes are done."""
        self._whole._add(bytes_=count)
