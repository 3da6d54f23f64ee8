"""Any result, whichever command it is of, as JSON and as HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adaptertool.operations.result import Result

HTML_COLUMNS = 96
"""How wide a report is in a notebook, in characters; a narrower cell gets a scroll bar."""

_HTML_COLOURS = ("#57606a", "#d73a49", "#2da44e", "#bf8700", "#218bff", "#a371f7", "#1b9aaa", "#8c959f")
"""Black, red, green, yellow, blue, magenta, cyan and white, which are read on a light page and on a dark one."""


def document(result: Result) -> dict[str, Any]:
    """Any result as its command's JSON document."""
    # By the name of its class: whoever has a result has imported its own command, and need not import the others.
    made: Any = result
    match type(result).__name__:
        case "Inspection":
            from adaptertool.report.json import inspection_document

            return inspection_document(made)
        case "Rewrite":
            from adaptertool.report.json import rewrite_document

            return rewrite_document(made)
        case "MergeReport":
            from adaptertool.report.merge_json import merge_document

            return merge_document(made)
    raise TypeError(f"{type(result).__name__} is no result of a command")


def text(result: Result) -> RenderableType:
    """Any result as its command's text report."""
    made: Any = result
    match type(result).__name__:
        case "Inspection":
            from adaptertool.report.text import inspection_text

            return inspection_text(made)
        case "Rewrite":
            from adaptertool.report.text import rewrite_text

            return rewrite_text(made)
        case "MergeReport":
            from adaptertool.report.merge_text import merge_text

            return merge_text(made)
    raise TypeError(f"{type(result).__name__} is no result of a command")


def html(result: Result) -> str:
    """The text report as HTML: one `pre` element with its colours, everything in it escaped, no script and no style sheet."""
    import io

    from rich.color import Color
    from rich.console import Console
    from rich.terminal_theme import TerminalTheme

    palette: list[tuple[int, int, int]] = [Color.parse(one).get_truecolor() for one in _HTML_COLOURS]
    theme = TerminalTheme((255, 255, 255), (0, 0, 0), palette)
    console = Console(
        file=io.StringIO(),
        record=True,
        width=HTML_COLUMNS,
        force_terminal=True,
        force_jupyter=False,
        color_system="truecolor",
        highlight=False,
        emoji=False,
        markup=False,
    )
    console.print(text(result))
    style = "overflow-x:auto;white-space:pre;line-height:normal;font-family:Menlo,'DejaVu Sans Mono',consolas,monospace"
    page = console.export_html(theme=theme, inline_styles=True, code_format=f'<pre style="{style}">{{code}}</pre>')
    # Rich writes the terminal's own colour as black, which a dark notebook would not show.
    return page.replace("color: #000000; text-decoration-color: #000000", "color: inherit")
