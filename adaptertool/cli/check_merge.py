"""`adaptertool check-merge`."""

from __future__ import annotations

from typing import Annotated

import typer

from adaptertool.cli.options import FindingsFormat, Revision, Subfolder, Token

EXAMPLES = """[bold]Examples[/bold]

adaptertool check-merge ./adapter --base ./base-model

adaptertool check-merge org/adapter --base org/base-model --dtype bfloat16

adaptertool check-merge ./adapter --format junit
"""


def command(
    adapter: Annotated[
        str,
        typer.Argument(
            metavar="ADAPTER", help="A folder, a weights file, or a Hub repo, as for inspect.", show_default=False
        ),
    ],
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="BASE",
            help="The base model, of which headers are read; by default what the adapter's config names.",
        ),
    ] = None,
    base_revision: Annotated[
        str | None,
        typer.Option("--base-revision", metavar="R", help="Branch, tag or commit of a base model on the Hub."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", metavar="DTYPE", help="The dtype in which the base is loaded for the merge, such as bfloat16."
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            help="Share of an update that may be lost to rounding before its layer is lossy.",
            show_default="0.25",
        ),
    ] = None,
    all_layers: Annotated[
        bool, typer.Option("--all", help="Show every layer, not one line for those that are alike.")
    ] = False,
    format: Annotated[FindingsFormat, typer.Option("--format", help="How to print the result.")] = FindingsFormat.text,  # noqa: A002
    revision: Revision = None,
    subfolder: Subfolder = None,
    token: Token = None,
) -> None:
    """Would merging into the base model work? A dry run, from headers."""
    from adaptertool.cli.output import print_json, print_pipeline, print_text
    from adaptertool.operations.check_merge import DEFAULT_THRESHOLD, check_merge

    report = check_merge(
        adapter,
        base,
        dtype=dtype,
        revision=revision,
        subfolder=subfolder,
        token=token,
        base_revision=base_revision,
        threshold=DEFAULT_THRESHOLD if threshold is None else threshold,
    )
    if format is FindingsFormat.json:
        from adaptertool.report.merge_json import merge_document

        print_json(merge_document(report))
    elif format is FindingsFormat.text:
        from adaptertool.report.merge_text import merge_text

        print_text(merge_text(report, all_layers=all_layers))
    else:
        from adaptertool.report.pipeline import merge_result

        print_pipeline(merge_result(report), format)
    raise typer.Exit(report.exit_code)
