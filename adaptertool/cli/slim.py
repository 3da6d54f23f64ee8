"""`adaptertool slim`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from adaptertool.cli.options import (
    DryRun,
    Format,
    FormatOption,
    ForTorch,
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

adaptertool slim ./adapter -o ./adapter-slim

adaptertool slim ./adapter --keep-one-copy --in-place

adaptertool slim ./adapter --check

adaptertool slim -r ./runs --in-place
"""


@dataclass(frozen=True)
class _Slim(Rewriting):
    keep_one_copy: bool
    for_torch: str | None
    base: str | None
    check_only: bool
    name: str = "slim"

    def check(self) -> None:
        from adaptertool.projection.loader import parse_version

        self.place.check()
        if self.for_torch is not None:
            parse_version(self.for_torch)

    def one(self, found: Found, selection: Selection, progress: Progress, *, in_tree: bool) -> Rewrite:
        from adaptertool.operations.slim import slim

        return slim(
            found.target,
            output=self.place.output_for(found, in_tree=in_tree),
            in_place=self.place.in_place,
            push=self.place.push,
            keep_one_copy=self.keep_one_copy,
            for_torch=self.for_torch,
            base=self.base,
            dry_run=self.place.dry_run,
            force=self.place.force,
            in_tree=in_tree,
            revision=selection.revision,
            subfolder=selection.subfolder,
            token=selection.token,
            progress=progress,
        )

    def exit_code(self, result: Rewrite) -> int:
        return int(result.action == "refused" or (self.check_only and result.action != "nothing-to-do"))


def command(
    targets: Targets,
    output: Output = None,
    in_place: InPlace = False,
    push: Push = False,
    keep_one_copy: Annotated[
        bool, typer.Option("--keep-one-copy", help="Keep the pair that PEFT loads, and remove the further copies.")
    ] = False,
    for_torch: ForTorch = None,
    base: Annotated[
        str | None, base_model("The base model: proves that PEFT draws these shapes, and copies of its embeddings go.")
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
    format: FormatOption = Format.text,  # noqa: A002 - typer names the option by it
    recursive: Recursive = False,
    jobs: Jobs = None,
    revision: Revision = None,
    subfolder: Subfolder = None,
    token: Token = None,
) -> None:
    """Strip the projections that verify as regenerable, or keep one copy."""
    from adaptertool.cli.running import Selection, carry_out

    place = Place(output, in_place, push, dry_run or check, force)
    job = _Slim(place, keep_one_copy, for_torch, base, check)
    carry_out(job, Selection(targets, recursive, jobs, revision, subfolder, token, output), format.value)
