"""Results on stdout, errors on stderr."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, RenderableType

    from adaptertool.errors import AdapterToolError
    from adaptertool.report.pipeline import PipelineResult

PIPELINE_FORMATS = ("github", "sarif", "junit")

PIPELINE_COMMANDS = ("inspect", "check-merge")
"""The commands that offer these formats."""

PIPE_WIDTH = 10_000
"""Columns where nobody watches: one line stays one line, so that it can be searched for."""


def print_text(renderable: RenderableType) -> None:
    """Print a text report."""
    console_for(sys.stdout).print(renderable)


def print_json(document: dict[str, Any]) -> None:
    """Print one JSON document."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def print_json_line(document: dict[str, Any]) -> None:
    """Print one JSON document on a line of its own, for whoever reads along."""
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def print_pipeline(results: Sequence[PipelineResult], form: str, exit_code: int) -> None:
    """Print results in one of the formats that pipelines read."""
    if form == "sarif":
        from adaptertool.report.sarif import sarif_document

        print_json(sarif_document(results, exit_code))
    elif form == "junit":
        from adaptertool.report.junit import junit_xml

        sys.stdout.write(junit_xml(results))
    else:
        from adaptertool.report.github import github_annotations

        sys.stdout.write(github_annotations(results))


def print_failure(
    error: AdapterToolError, form: str, command: str | None, target: str | None = None, exit_code: int | None = None
) -> None:
    """Say that a command could not do its work, in the format that was asked for, and on stderr.

    Args:
        error: What went wrong.
        form: The format that was asked for.
        command: The command; None where none is named.
        target: With which checkpoint, where it is about one.
        exit_code: What the command line ends with; by default the error's own.
    """
    if form in PIPELINE_FORMATS and command in PIPELINE_COMMANDS:
        from adaptertool.report.pipeline import failed_result

        code = error.exit_code if exit_code is None else exit_code
        print_pipeline([failed_result(command, target, error)], form, code)
    print_error(error, form, target)


def print_error(error: AdapterToolError, form: str = "text", target: str | None = None) -> None:
    """Say what went wrong: a document on stdout, or a line and a hint on stderr.

    Args:
        error: What went wrong.
        form: The format that was asked for.
        target: With which checkpoint, where it is about one.
    """
    if form in ("json", "jsonl"):
        from adaptertool.report.json import error_document

        (print_json if form == "json" else print_json_line)(error_document(error, target))
        return
    from adaptertool.report.text import error_text

    console_for(sys.stderr).print(error_text(error))


def console_for(stream: TextIO) -> Console:
    """A console that prints to a stream; where nobody watches, a line is never broken."""
    from rich.console import Console

    plain = bool(os.environ.get("NO_COLOR"))
    console = Console(
        file=stream, highlight=False, emoji=False, markup=False, color_system=None if plain else "auto", no_color=plain
    )
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console
