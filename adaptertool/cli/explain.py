"""`adaptertool explain`."""

from __future__ import annotations

from typing import Annotated

import typer

from adaptertool.cli.completion import codes
from adaptertool.cli.options import DocumentFormat

EXAMPLES = """Examples:

adaptertool explain

adaptertool explain ADP103
"""


def command(
    code: Annotated[
        str | None,
        typer.Argument(
            metavar="CODE", help="Such as ADP103; all codes without.", show_default=False, autocompletion=codes
        ),
    ] = None,
    format: Annotated[DocumentFormat, typer.Option("--format", help="How to print the result.")] = DocumentFormat.text,  # noqa: A002 - typer names the option by it
) -> None:
    """What a finding code means, why it matters, what to do."""
    from adaptertool.cli.output import print_json, print_text
    from adaptertool.errors import UsageError
    from adaptertool.findings import CODES
    from adaptertool.report.json import codes_document
    from adaptertool.report.text import code_table, explanation_text

    chosen = CODES if code is None else {code.upper(): CODES.get(code.upper())}
    known = [one for one in chosen.values() if one is not None]
    if not known:
        raise UsageError(f"{code} is no finding code", hint="adaptertool explain lists them all.")
    if format is DocumentFormat.json:
        print_json(codes_document(known))
    else:
        print_text(code_table(known) if code is None else explanation_text(known[0]))
