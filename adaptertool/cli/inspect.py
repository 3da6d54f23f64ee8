"""`adaptertool inspect`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from adaptertool.cli.options import (
    FindingsFormat,
    FindingsFormatOption,
    ForTorch,
    Jobs,
    Recursive,
    Revision,
    Subfolder,
    Targets,
    Token,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adaptertool.checkpoint.discover import Found
    from adaptertool.cli.running import Selection
    from adaptertool.operations.inspect import Inspection
    from adaptertool.progress import Progress

EXAMPLES = """Examples:

adaptertool inspect ./adapter

adaptertool inspect org/name@main --format json

adaptertool inspect ./adapter --verify full --fail-on warning

adaptertool inspect -r ./runs
"""


class Verify(str, Enum):
    """How much of the projections to compare."""

    none = "none"
    sample = "sample"
    full = "full"


class FailOn(str, Enum):
    """From which severity on findings make the exit code 1."""

    error = "error"
    warning = "warning"
    info = "info"
    never = "never"


@dataclass(frozen=True)
class _Inspect:
    verify: Verify | None
    fail_on: FailOn
    for_torch: str | None
    name: str = "inspect"

    def check(self) -> None:
        from adaptertool.projection.loader import parse_version

        if self.for_torch is not None:
            parse_version(self.for_torch)

    def one(self, found: Found, selection: Selection, progress: Progress, *, in_tree: bool) -> Inspection:  # noqa: ARG002 - for commands that write
        from adaptertool.operations.inspect import inspect

        return inspect(
            found.target,
            verify=self.verify.value if self.verify else None,
            for_torch=self.for_torch,
            revision=selection.revision,
            subfolder=selection.subfolder,
            token=selection.token,
            progress=progress,
        )

    def exit_code(self, result: Inspection) -> int:
        from adaptertool.findings import SEVERITIES

        grave = () if self.fail_on is FailOn.never else SEVERITIES[: SEVERITIES.index(self.fail_on.value) + 1]
        return int(any(finding.severity in grave for finding in result.findings))

    def text(self, result: Inspection) -> RenderableType:
        from adaptertool.report.text import inspection_text

        return inspection_text(result)


def command(
    targets: Targets,
    verify: Annotated[
        Verify | None,
        typer.Option(
            "--verify",
            metavar="LEVEL",
            help="How much of stored projections to compare with what torch draws: none, sample or full; by default a "
            "sample where torch is installed.",
            show_default=False,
        ),
    ] = None,
    fail_on: Annotated[
        FailOn,
        typer.Option(
            "--fail-on",
            metavar="SEVERITY",
            help="Exit with 1 from this severity of findings on: error, warning, info or never.",
        ),
    ] = FailOn.never,
    for_torch: ForTorch = None,
    format: FindingsFormatOption = FindingsFormat.text,  # noqa: A002 - typer names the option by it
    recursive: Recursive = False,
    jobs: Jobs = None,
    revision: Revision = None,
    subfolder: Subfolder = None,
    token: Token = None,
) -> None:
    """What is in this checkpoint, and what is in it needlessly."""
    from adaptertool.cli.running import Selection, carry_out

    selection = Selection(targets, recursive, jobs, revision, subfolder, token)
    carry_out(_Inspect(verify, fail_on, for_torch), selection, format.value)
