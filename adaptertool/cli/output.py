"""Results on stdout; progress and errors on stderr."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console, RenderableType
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from adaptertool.cli.options import FindingsFormat
    from adaptertool.errors import AdapterToolError
    from adaptertool.report.pipeline import PipelineResult

BAR_AFTER = 1.0
"""Seconds after which work gets a progress bar."""

PIPE_WIDTH = 10_000
"""Columns where nobody watches: one line stays one line, so that it can be searched for."""


def print_text(renderable: RenderableType) -> None:
    """Print a text report."""
    _console(sys.stdout).print(renderable)


def print_json(document: dict[str, Any]) -> None:
    """Print one JSON document."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def print_pipeline(result: PipelineResult, form: FindingsFormat) -> None:
    """Print a result in one of the formats that pipelines read."""
    if form.value == "sarif":
        from adaptertool.report.sarif import sarif_document

        print_json(sarif_document(result))
    elif form.value == "junit":
        from adaptertool.report.junit import junit_xml

        sys.stdout.write(junit_xml(result))
    else:
        from adaptertool.report.github import github_annotations

        sys.stdout.write(github_annotations(result))


def print_error(error: AdapterToolError, *, as_json: bool) -> None:
    """Say what went wrong: a document on stdout, or a line and a hint on stderr."""
    if as_json:
        from adaptertool.report.json import error_document

        print_json(error_document(error))
        return
    from adaptertool.report.text import error_text

    _console(sys.stderr).print(error_text(error))


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    console = Console(file=stream, highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


class ProgressBar:
    """A progress bar on stderr, for work that takes longer than a second and a terminal that someone may watch."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
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
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
            from rich.progress import TransferSpeedColumn as SpeedColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                SpeedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(file=sys.stderr), transient=True)
            self._bar.start()
        if self._task is None:
            self._task = self._bar.add_task(self._what, total=self._total)
        self._bar.update(self._task, completed=self._done)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar, self._task = None, None
