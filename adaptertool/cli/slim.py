"""`adaptertool slim`."""

from __future__ import annotations

from typing import Annotated

import typer

from adaptertool.cli.options import DryRun, Format, ForTorch, InPlace, Output, Push, Revision, Subfolder, Target, Token

EXAMPLES = """[bold]Examples[/bold]

adaptertool slim ./adapter -o ./adapter-slim

adaptertool slim ./adapter --keep-one-copy --in-place

adaptertool slim ./adapter --check
"""


def command(
    target: Target,
    output: Output = None,
    in_place: InPlace = False,
    push: Push = False,
    keep_one_copy: Annotated[
        bool, typer.Option("--keep-one-copy", help="Keep the pair that PEFT loads, and remove the further copies.")
    ] = False,
    for_torch: ForTorch = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base", metavar="BASE", help="Prove from the base model's headers that PEFT draws these shapes."
        ),
    ] = None,
    dry_run: DryRun = False,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing, and exit with 1 where there is something to do.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Overwrite an existing output; with --keep-one-copy, keep the canonical pair even where copies differ.",
        ),
    ] = False,
    format: Annotated[Format, typer.Option("--format", help="How to print the result.")] = Format.text,  # noqa: A002
    revision: Revision = None,
    subfolder: Subfolder = None,
    token: Token = None,
) -> None:
    """Strip the projections that verify as regenerable, or keep one copy."""
    from adaptertool.cli.output import ProgressBar
    from adaptertool.cli.rewriting import report
    from adaptertool.operations.slim import slim

    with ProgressBar() as progress:
        result = slim(
            target,
            output=output,
            in_place=in_place,
            push=push,
            keep_one_copy=keep_one_copy,
            for_torch=for_torch,
            base=base,
            dry_run=dry_run or check,
            force=force,
            revision=revision,
            subfolder=subfolder,
            token=token,
            progress=progress,
        )
    report(result, format)
    if result.action == "refused" or (check and result.action != "nothing-to-do"):
        raise typer.Exit(1)
