"""`adaptertool inspect`."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from adaptertool.cli.options import FindingsFormat, ForTorch, Revision, Subfolder, Target, Token

EXAMPLES = """[bold]Examples[/bold]

adaptertool inspect ./adapter

adaptertool inspect org/name@main --format json

adaptertool inspect ./adapter --verify full --fail-on warning
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


def command(
    target: Target,
    verify: Annotated[
        Verify | None,
        typer.Option(
            "--verify",
            help="How much of stored projections to compare with what torch draws; by default a sample where torch is "
            "installed.",
            show_default=False,
        ),
    ] = None,
    fail_on: Annotated[
        FailOn, typer.Option("--fail-on", help="Exit with 1 from this severity of findings on.")
    ] = FailOn.never,
    for_torch: ForTorch = None,
    format: Annotated[FindingsFormat, typer.Option("--format", help="How to print the result.")] = FindingsFormat.text,  # noqa: A002
    revision: Revision = None,
    subfolder: Subfolder = None,
    token: Token = None,
) -> None:
    """What is in this checkpoint, and what is in it needlessly."""
    from adaptertool.cli.output import ProgressBar, print_json, print_pipeline, print_text
    from adaptertool.findings import SEVERITIES
    from adaptertool.operations.inspect import inspect

    with ProgressBar() as progress:
        result = inspect(
            target,
            verify=verify.value if verify else None,
            for_torch=for_torch,
            revision=revision,
            subfolder=subfolder,
            token=token,
            progress=progress,
        )
    grave = () if fail_on is FailOn.never else SEVERITIES[: SEVERITIES.index(fail_on.value) + 1]
    exit_code = int(any(finding.severity in grave for finding in result.findings))
    if format is FindingsFormat.json:
        from adaptertool.report.json import inspection_document

        print_json(inspection_document(result))
    elif format is FindingsFormat.text:
        from adaptertool.report.text import inspection_text

        print_text(inspection_text(result))
    else:
        from adaptertool.report.pipeline import inspection_result

        print_pipeline(inspection_result(result, exit_code), format)
    raise typer.Exit(exit_code)
