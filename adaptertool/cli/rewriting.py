"""What `slim` and `restore` share on the command line: where they write, and how they show what they did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adaptertool.checkpoint.discover import Found
    from adaptertool.operations.rewrite import Rewrite


@dataclass(frozen=True)
class Place:
    """The options that say where a new checkpoint goes; see `Destination`."""

    output: str | None
    in_place: bool
    push: bool
    dry_run: bool
    force: bool

    def check(self) -> None:
        """Refuse options that name no place, or several.

        Raises:
            UsageError: they do.
        """
        from adaptertool.operations.rewrite import Destination

        output = Path(self.output) if self.output else None
        Destination(output, self.in_place, self.push, self.dry_run, self.force).check_named()

    def output_for(self, found: Found, *, in_tree: bool) -> Path | None:
        """The folder for one checkpoint: the one that is named, or of several the same path below it.

        Raises:
            UsageError: it would be changed in place, and only a symlink leads to it.
        """
        if self.in_place and found.linked and not self.dry_run:
            from adaptertool.errors import UsageError

            raise UsageError(
                f"{found.target} is reached through a symlink, so it is not changed in place",
                hint=f"It is {Path(found.target).resolve()}; name that to change it.",
            )
        return None if self.output is None else Path(self.output, found.place) if in_tree else Path(self.output)


@dataclass(frozen=True)
class Rewriting:
    """What `slim` and `restore` have in common as jobs.

    Attributes:
        place: Where the new checkpoint goes.
    """

    place: Place

    def text(self, result: Rewrite) -> RenderableType:
        """See `Job`."""
        from adaptertool.report.text import rewrite_text

        return rewrite_text(result)
