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
    from rich.progress import TaskID

    from adaptertool.progress import Progress

BAR_AFTER = 1.0
"""Seconds after which work gets a progress bar."""

BAR_WIDTH = 20
"""Columns of a bar; terminals without room for one and what is said beside it get the words alone."""

NARROW = 64
"""Terminals of fewer columns get the share in place of sizes."""

LEAST_SHARE = 0.005
"""Less done than this says nothing about the time that is left."""


def _watched() -> bool:
    """Whether somebody may watch a bar: not where the terminal can't move its cursor, or the Hub's users turn bars off."""
    off = os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS", "").upper() in ("1", "ON", "YES", "TRUE")
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown") and not off


class _Line:
    """One line that is drawn again and again: what, a bar where there is room, and how far, how fast and how long."""

    def __init__(self) -> None:
        self._shown = _watched()
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._narrow = False

    def due(self, elapsed: float) -> bool:
        """Whether it has taken long enough to be drawn."""
        return self._shown and elapsed >= BAR_AFTER

    def draw(self, what: str, share: float, facts: list[str], elapsed: float) -> None:
        """Draw it.

        Args:
            what: What is done.
            share: How much of it is, from 0 to 1.
            facts: How far and how fast.
            elapsed: Seconds that it took so far, from its first byte on.
        """
        if self._bar is None:
            from rich.progress import BarColumn, Progress, TextColumn

            from adaptertool.cli.output import console_for

            console = console_for(sys.stderr)
            text = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[facts]}", markup=False)
            bar = [BarColumn(bar_width=BAR_WIDTH)] if console.width >= BAR_WIDTH + 60 else []
            self._bar = Progress(text[0], *bar, text[1], console=console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=1.0, facts="")
            self._narrow = console.width < NARROW
        if self._task is not None:
            left = [f"{_clock(elapsed * (1 - share) / share)} left"] if share > LEAST_SHARE else []
            shown = [f"{share:.0%}"] if self._narrow else facts
            self._bar.update(self._task, description=what, completed=share, facts=", ".join(shown + left))

    def clear(self) -> None:
        """Take it away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar, self._task = None, None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class ProgressBar:
    """How far the work on one checkpoint is: a line for each phase."""

    def __init__(self) -> None:
        self._line = _Line()
        self._what, self._total, self._done = "", 0, 0
        self._began = time.monotonic()
        self._first: float | None = None

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.clear()

    def phase(self, what: str, total: int) -> None:
        """A phase begins; the line of the one before goes."""
        self._line.clear()
        self._what, self._total, self._done = what, total, 0
        self._first = None

    def advance(self, count: int) -> None:
        """So many more bytes are done."""
        self._done += count
        now = time.monotonic()
        self._first = self._first or now
        if self._line.due(now - self._began) and now > self._first:
            elapsed = now - self._first
            facts = [f"{size(self._done)} of {size(self._total)}", f"{size(int(self._done / elapsed))}/s"]
            self._line.draw(self._what, min(1.0, self._done / (self._total or 1)), facts, elapsed)


class ManyBar:
    """How far the work on many checkpoints is: one line for all of them."""

    def __init__(self) -> None:
        self._line = _Line()
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._first: float | None = None
        self._found = self._ended = self._bytes = 0
        self._under_way = 0.0

    def __enter__(self) -> ManyBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.clear()

    @property
    def counts(self) -> tuple[int, int]:
        """How many checkpoints are done, and how many were found."""
        return self._ended, self._found

    def found(self) -> None:
        """There is one more checkpoint to work on."""
        with self._lock:
            self._found += 1

    def began(self) -> Part:
        """Work on it begins."""
        return Part(self)

    def ended(self, progress: Progress | None) -> None:
        """It is done, and counts as a whole from now on."""
        with self._lock:
            self._ended += 1
        self.draw(0, -progress.share if isinstance(progress, Part) else 0.0)

    def draw(self, count: int, share: float) -> None:
        """So many more bytes are done, and so much more of a checkpoint that is under way."""
        with self._lock:
            self._bytes += count
            self._under_way += share
            now = time.monotonic()
            self._first = self._first or now
            if self._line.due(now - self._began) and now > self._first:
                elapsed = now - self._first
                rate = [size(self._bytes), f"{size(int(self._bytes / elapsed))}/s"] if self._bytes else []
                done = min(1.0, (self._ended + self._under_way) / (self._found or 1))
                self._line.draw(f"{self._ended:,} of {plural(self._found, 'checkpoint')}", done, rate, elapsed)


class Part:
    """The work on one of many checkpoints. Its first phase, the comparison, is nearly all of it.

    Attributes:
        share: How much of it is done, from 0 to 1.
    """

    def __init__(self, whole: ManyBar) -> None:
        self._whole = whole
        self._total = 0
        self.share = 0.0

    def phase(self, what: str, total: int) -> None:  # noqa: ARG002 - what every progress takes
        """A phase begins."""
        self._total = self._total or total

    def advance(self, count: int) -> None:
        """So many more bytes are done."""
        share = min(count / self._total, 1.0 - self.share) if self._total else 0.0
        self.share += share
        self._whole.draw(count, share)
