"""Carrying a command out on one target or on many, and printing what comes of it in the format that was asked for."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import typer

from adaptertool.cli.interruption import Interrupted, InterruptedWorkError
from adaptertool.cli.output import (
    PIPELINE_FORMATS,
    print_error,
    print_failure,
    print_json,
    print_json_line,
    print_pipeline,
    print_text,
)
from adaptertool.cli.progress import ManyBar, ProgressBar
from adaptertool.errors import AdapterToolError, NotFoundError, UnsupportedError, UsageError
from adaptertool.signals import uninterrupted
from adaptertool.words import plural

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import RenderableType

    from adaptertool.checkpoint.discover import Found
    from adaptertool.operations.check_merge import MergeReport
    from adaptertool.operations.inspect import Inspection
    from adaptertool.operations.many import Outcome
    from adaptertool.operations.rewrite import Rewrite
    from adaptertool.progress import Progress
    from adaptertool.report.many import Line
    from adaptertool.report.pipeline import PipelineResult

    AnyResult = Inspection | Rewrite | MergeReport

R = TypeVar("R", bound="AnyResult")

LOOKED_AT = 1000
"""Checkpoints below a folder that are counted for a hint."""


class Job(Protocol[R]):
    """A command with its options: what it does with one target."""

    @property
    def name(self) -> str:
        """The command."""

    def check(self) -> None:
        """Refuse options that make no sense whatever the target.

        Raises:
            UsageError: they contradict each other, or a value makes no sense.
        """

    def one(self, found: Found, selection: Selection, progress: Progress, *, in_tree: bool) -> R:
        """Carry it out.

        Raises:
            AdapterToolError: it could not be done.
        """

    def exit_code(self, result: R) -> int:
        """0, or 1 where the answer is "no"."""

    def text(self, result: R) -> RenderableType:
        """What people read."""


@dataclass(frozen=True)
class Selection:
    """What a command is carried out on.

    Attributes:
        targets: As they were named.
        recursive: Whether folders below are looked at.
        jobs: How many checkpoints are worked on at once.
        revision: The revision of the one repo that is named.
        subfolder: The folder in the one target that is named.
        token: Access token for the Hub.
        output: The folder that outputs go to, which is not looked into.
    """

    targets: list[str]
    recursive: bool = False
    jobs: int | None = None
    revision: str | None = None
    subfolder: str | None = None
    token: str | None = None
    output: str | None = None

    @property
    def one(self) -> bool:
        """Whether a single checkpoint is named; what is asked for decides it, not what is found."""
        from adaptertool.checkpoint.discover import is_organisation

        return len(self.targets) == 1 and not self.recursive and not is_organisation(self.targets[0])


def carry_out(job: Job[R], selection: Selection, form: str) -> None:
    """Carry a command out and print what comes of it.

    Raises:
        typer.Exit: with the exit code; of several targets the highest.
        AdapterToolError: the one target could not be worked on, or the options make no sense.
        InterruptedWorkError: a signal ended it.
    """
    raise typer.Exit(_one(job, selection, form) if selection.one else _many(job, selection, form))


def _one(job: Job[R], selection: Selection, form: str) -> int:
    from adaptertool.checkpoint.discover import Found

    target = selection.targets[0]
    try:
        with ProgressBar() as progress:
            result = job.one(Found(target), selection, progress, in_tree=False)
    except AdapterToolError as error:
        if isinstance(error, NotFoundError):
            error.hint = _hint_of_nested(target, selection) or error.hint
        print_failure(error, form, job.name, target)
        return error.exit_code
    code = job.exit_code(result)
    if form == "text":
        print_text(job.text(result))
    elif form in PIPELINE_FORMATS:
        print_pipeline([_for_pipelines(result, code)], form, code)
    else:
        (print_json if form == "json" else print_json_line)(result.to_dict())
    return code


def _hint_of_nested(target: str, selection: Selection) -> str | None:
    """What to do where a folder that is no checkpoint holds some; only two levels are looked at, for a folder may be large."""
    from adaptertool.checkpoint.config import CONFIG_NAME

    folder = Path(target, selection.subfolder or "")
    if not folder.is_dir():
        return None
    configs = chain(folder.glob(f"*/{CONFIG_NAME}"), folder.glob(f"*/*/{CONFIG_NAME}"))
    below = {os.path.realpath(config.parent): config.parent for config in islice(configs, LOOKED_AT)}
    if not below:
        return None
    count = plural(len(below), "checkpoint") if len(below) < LOOKED_AT else "many checkpoints"
    return f"It holds {count} in folders below, such as {min(below.values())}: add -r to look at all of them."


def _many(job: Job[R], selection: Selection, form: str) -> int:
    from adaptertool.checkpoint.discover import discover
    from adaptertool.operations.many import Workers, default_jobs

    _check(selection)
    job.check()
    found = discover(
        selection.targets,
        recursive=selection.recursive,
        revision=selection.revision,
        subfolder=selection.subfolder,
        token=selection.token,
        exclude=Path(selection.output) if selection.output else None,
    )
    remote = any(target.startswith("hf://") or not os.path.lexists(target) for target in selection.targets)
    # Each target names its own revision and folder now.
    each = replace(selection, revision=None, subfolder=None)
    report = _Report(job, form)
    with ManyBar() as bar:
        workers = Workers(
            lambda one, progress: job.one(one, each, progress, in_tree=True),
            jobs=selection.jobs or default_jobs(remote=remote),
            watch=bar,
        )
        try:
            for outcome in workers.outcomes(report.numbered(found)):
                report.add(outcome)
        except Interrupted as interruption:
            report.interrupted = interruption
        finally:
            for outcome in workers.stop():
                report.add(outcome)
    code = report.end()
    if report.interrupted is not None:
        done, known = bar.counts
        hint = "Every checkpoint is whole. Run it again for the rest."
        message = f"interrupted: {done:,} of {plural(known, 'checkpoint')} done"
        print_error(UnsupportedError(message, hint=hint), "jsonl" if form == "jsonl" else "text")
        raise InterruptedWorkError(report.interrupted.exit_code)
    return code


def _check(selection: Selection) -> None:
    from adaptertool.checkpoint.discover import is_organisation

    several = len(selection.targets) > 1 or is_organisation(selection.targets[0])
    for option, value in (("--revision", selection.revision), ("--subfolder", selection.subfolder)):
        if several and value is not None:
            raise UsageError(
                f"{option} is for a single target, and there are several",
                hint="Name it in the target: hf://org/name@revision/sub/folder, or ./folder/sub.",
            )
    output = Path(selection.output) if selection.output else None
    for target in selection.targets:
        root = Path(target, selection.subfolder or "")
        if output is not None and output.exists() and root.is_dir() and output.samefile(root):
            raise UsageError(f"{output} is where the checkpoints are", hint="Use --in-place to change them there.")


class _Report(Generic[R]):
    """Prints many outcomes: as they come where the format allows it, else when all are there."""

    def __init__(self, job: Job[R], form: str) -> None:
        self._job, self._form = job, form
        self._code = 0
        self._lines: list[tuple[int, Line]] = []
        self._numbers: dict[str, int] = {}
        self._kept: list[tuple[int, str | PipelineResult]] = []
        self._latest: Outcome[R] | None = None
        self.interrupted: Interrupted | None = None

    def numbered(self, found: Iterable[Found]) -> Iterator[Found]:
        """The same, with their order remembered: that of documents which are printed at the end."""
        for one in found:
            self._numbers.setdefault(one.target, len(self._numbers))
            yield one

    def add(self, outcome: Outcome[R]) -> None:
        """One more is done, or the last one comes again because a signal came meanwhile.

        What is kept of it is small, however large its result.
        """
        if outcome is self._latest:
            return
        with uninterrupted():
            self._add(outcome)
            self._latest = outcome

    def _add(self, outcome: Outcome[R]) -> None:
        from adaptertool.report.many import line_of, outcome_document

        result, error = outcome.result, outcome.error
        code = error.exit_code if error is not None else self._job.exit_code(result) if result is not None else 0
        self._code = max(self._code, code)
        number = self._numbers[outcome.target]
        self._lines.append((number, line_of(outcome)))
        if self._form == "jsonl":
            print_json_line(outcome_document(outcome))
        elif self._form == "json":
            self._kept.append((number, json.dumps(outcome_document(outcome))))
        elif self._form in PIPELINE_FORMATS:
            from adaptertool.report.pipeline import failed_result

            if error is not None:
                self._kept.append((number, failed_result(self._job.name, outcome.target, error)))
            elif result is not None:
                self._kept.append((number, _for_pipelines(result, code)))

    def end(self) -> int:
        """All are done, or the work was interrupted.

        Returns:
            The exit code: the highest of all.
        """
        from adaptertool.report.many import many_head, many_tail

        code = self._code if self.interrupted is None else self.interrupted.exit_code
        kept = [one for _, one in sorted(self._kept, key=lambda pair: pair[0])]
        lines = [one for _, one in sorted(self._lines, key=lambda pair: pair[0])]
        if self._form == "text":
            from adaptertool.report.many_text import many_text

            print_text(many_text(lines))
        elif self._form == "json":
            head, tail = (
                json.dumps(part, indent=2)
                for part in (
                    many_head(self._job.name),
                    many_tail(lines, code, interrupted=self.interrupted is not None),
                )
            )
            results = ",\n    ".join(text for text in kept if isinstance(text, str))
            sys.stdout.write(f'{head[:-2]},\n  "results": [\n    {results}\n  ],{tail[1:]}\n')
        elif self._form in PIPELINE_FORMATS:
            print_pipeline([one for one in kept if not isinstance(one, str)], self._form, code)
        return code


def _for_pipelines(result: AnyResult, code: int) -> PipelineResult:
    from adaptertool.operations.rewrite import Rewrite
    from adaptertool.report.pipeline import pipeline_result

    assert not isinstance(result, Rewrite)  # noqa: S101 - commands that rewrite offer no such format
    return pipeline_result(result, code)
