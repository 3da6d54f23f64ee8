"""`adaptertool check-merge`."""

from __future__ import annotations

import typer

from adaptertool.cli.options import Target

EXAMPLES = ""


def command(adapter: Target) -> None:
    """Would merging into the base model work? A dry run."""
    raise typer.Exit(3)
