"""What `slim` and `restore` print."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptertool.cli.options import Format
from adaptertool.cli.output import print_json, print_text

if TYPE_CHECKING:
    from adaptertool.operations.rewrite import Rewrite


def report(result: Rewrite, form: Format) -> None:
    """Print the result of a command that rewrites checkpoints."""
    if form is Format.json:
        from adaptertool.report.json import rewrite_document

        print_json(rewrite_document(result))
    else:
        from adaptertool.report.text import rewrite_text

        print_text(rewrite_text(result))
