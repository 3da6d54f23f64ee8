"""`adaptertool restore`."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from adaptertool.cli.options import DryRun, Format, InPlace, Output, Push, Revision, Subfolder, Target, Token

EXAMPLES = """[bold]Examples[/bold]

adaptertool restore ./adapter-slim -o ./adapter

adaptertool restore ./adapter --for-torch 2.11 --base org/base-model -o ./adapter-restored
"""


class LoadDtype(str, Enum):
    """The dtypes in which base models are loaded."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def command(
    target: Target,
    output: Output = None,
    in_place: InPlace = False,
    push: Push = False,
    for_torch: Annotated[
        str | None,
        typer.Option(
            "--for-torch",
            metavar="VERSION",
            help="Without a fingerprint: the torch that drew the projections in training, such as 2.11.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base", metavar="BASE", help="Without a fingerprint: the base model, of which headers are read."
        ),
    ] = None,
    dtype: Annotated[
        LoadDtype | None,
        typer.Option(
            "--dtype", help="Without a fingerprint: the dtype in which the base is loaded.", show_default=False
        ),
    ] = None,
    dry_run: DryRun = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing output.")] = False,
    format: Annotated[Format, typer.Option("--format", help="How to print the result.")] = Format.text,  # noqa: A002
    revision: Revision = None,
    subfolder: Subfolder = None,
    token: Token = None,
) -> None:
    """The inverse of slim: put the projections back into the file."""
    from adaptertool.cli.output import ProgressBar
    from adaptertool.cli.rewriting import report
    from adaptertool.operations.restore import restore

    with ProgressBar() as progress:
        result = restore(
            target,
            output=output,
            in_place=in_place,
            push=push,
            for_torch=for_torch,
            base=base,
            dtype=dtype.value if dtype else None,
            dry_run=dry_run,
            force=force,
            revision=revision,
            subfolder=subfolder,
            token=token,
            progress=progress,
        )
    report(result, format)
    if result.action == "refused":
        raise typer.Exit(1)
