"""`adaptertool check-merge`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from adaptertool.cli.completion import paths
from adaptertool.cli.options import (
    FindingsFormat,
    FindingsFormatOption,
    Jobs,
    Recursive,
    Revision,
    Subfolder,
    Token,
    base_model,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adaptertool.checkpoint.discover import Found
    from adaptertool.cli.running import Selection
    from adaptertool.operations.check_merge import MergeReport
    from adaptertool.progress import Progress

EXAMPLES = """Examples:

adaptertool check-merge ./adapter --base ./base-model

adaptertool check-merge org/adapter --base org/base-model --dtype bfloat16

adaptertool check-merge ./adapter --format junit

adaptertool check-merge -r ./runs --base ./base-model
"""


@dataclass(frozen=True)
class _CheckMerge:
    base: str | None
    base_revision: str | None
    dtype: str | None
    threshold: float
    all_layers: bool
    all_biases: bool
    name: str = "check-merge"

    def check(self) -> None:
        from adaptertool.operations.check_merge import check_options

        check_options(self.dtype, self.threshold)

    def one(self, found: Found, selection: Selection, progress: Progress, *, in_tree: bool) -> MergeReport:  # noqa: ARG002 - for commands that write
        from adaptertool.operations.check_merge import check_merge

        progress.phase("checking", 0)
        return check_merge(
            found.target,
            self.base,
            dtype=self.dtype,
            revision=selection.revision,
            subfolder=selection.subfolder,
            token=selection.token,
            base_revision=self.base_revision,
            threshold=self.threshold,
            all_biases=self.all_biases,
        )

    def exit_code(self, result: MergeReport) -> int:
        return result.exit_code

    def text(self, result: MergeReport) -> RenderableType:
        from adaptertool.report.merge_text import merge_text

        return merge_text(result, all_layers=self.all_layers)


def command(
    adapters: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER", help="Adapters, named as for inspect.", show_default=False, autocompletion=paths
        ),
    ],
    base: Annotated[
        str | None,
        base_model("The base model, of which headers are read; by default what the adapter's config names."),
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
    all_biases: Annotated[
        bool,
        typer.Option(
            "--all-biases",
            help="Read every bias of a base on the Hub, a request each; by default only if there are no more than 64.",
        ),
    ] = False,
    format: FindingsFormatOption = FindingsFormat.text,  # noqa: A002 - typer names the option by it
    recursive: Recursive = False,
    jobs: Jobs = None,
    revision: Revision = None,
    subfolder: Subfolder = None,
    token: Token = None,
) -> None:
    """Would merging into the base model work? A dry run, from headers."""
    from adaptertool.cli.running import Selection, carry_out
    from adaptertool.operations.check_merge import DEFAULT_THRESHOLD

    share = DEFAULT_THRESHOLD if threshold is None else threshold
    job = _CheckMerge(base, base_revision, dtype, share, all_layers, all_biases)
    carry_out(job, Selection(adapters, recursive, jobs, revision, subfolder, token), format.value)
