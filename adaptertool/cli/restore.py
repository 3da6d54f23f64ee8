"""`adaptertool restore`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from adaptertool.cli.options import (
    DryRun,
    Format,
    FormatOption,
    InPlace,
    Jobs,
    Output,
    Push,
    Recursive,
    Revision,
    Subfolder,
    Targets,
    Token,
    base_model,
)
from adaptertool.cli.rewriting import Place, Rewriting

if TYPE_CHECKING:
    from adaptertool.checkpoint.discover import Found
    from adaptertool.cli.running import Selection
    from adaptertool.operations.rewrite import Rewrite
    from adaptertool.progress import Progress

EXAMPLES = """Examples:

adaptertool restore ./adapter-slim -o ./adapter

adaptertool restore ./adapter --for-torch 2.11 --base org/base-model -o ./adapter-restored
"""


class LoadDtype(str, Enum):
    """The dtypes in which base models are loaded."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@dataclass(frozen=True)
class _Restore(Rewriting):
    for_torch: str | None
    base: str | None
    dtype: LoadDtype | None
    name: str = "restore"

    def check(self) -> None:
        self.place.check()

    def one(self, found: Found, selection: Selection, progress: Progress, *, in_tree: bool) -> Rewrite:
        from adaptertool.operations.restore import restore

        return restore(
            found.target,
            output=self.place.output_for(found, in_tree=in_tree),
            in_place=self.place.in_place,
            push=self.place.push,
            for_torch=self.for_torch,
            base=self.base,
            dtype=self.dtype.value if self.dtype else None,
            dry_run=self.place.dry_run,
            force=self.place.force,
            in_tree=in_tree,
            revision=selection.revision,
            subfolder=selection.subfolder,
            token=selection.token,
            progress=progress,
        )

    def exit_code(self, result: Rewrite) -> int:
        return int(result.action == "refused")


def command(
    targets: Targets,
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
        base_model(
            "The base model: its headers where there is no fingerprint, its embeddings where slim took copies out."
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
    format: FormatOption = Format.text,  # noqa: A002 - typer names the option by it
    recursive: Recursive = False,
    jobs: Jobs = None,
    revision: Revision = None,
    subfolder: Subfolder = None,
    token: Token = None,
) -> None:
    """The inverse of slim: put the projections back into the file."""
    from adaptertool.cli.running import Selection, carry_out

    job = _Restore(Place(output, in_place, push, dry_run, force), for_torch, base, dtype)
    carry_out(job, Selection(targets, recursive, jobs, revision, subfolder, token, output), format.value)
