"""Bring what the README shows of the program up to date: outputs, the table of codes, and the picture.

    python -m tests.tools.refresh_readme

All commands run, in a scratch clone. A block that shows only the beginning of an output ends with three dots, and keeps its
number of lines. Read the change before you commit it: the words around an output may have to change with it.
"""

from __future__ import annotations

import io
import re
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from adaptertool.findings import CODES
from tests.tools.readme import COLUMNS, README, ROOT, Clone, blocks, elided, session, without_installs

PICTURE = ROOT / ".github" / "adaptertool.svg"

SHOWN = (
    "adaptertool inspect fixtures/randlora-llama",
    "adaptertool slim fixtures/randlora-llama -o adapter-slim",
)
"""The commands in the picture."""

_COLOURS = (
    "484f58 ff7b72 3fb950 d29922 58a6ff bc8cff 39c5cf b1bac4 6e7681 ffa198 56d364 e3b341 79c0ff d2a8ff 56d4dd f0f6fc"
)
_PALETTE = [(int(one[:2], 16), int(one[2:4], 16), int(one[4:], 16)) for one in _COLOURS.split()]
THEME = TerminalTheme((13, 17, 23), (201, 209, 217), _PALETTE[:8], _PALETTE[8:])
"""The picture's colours, which are read on a light page and on a dark one."""

_CODE_TABLE = re.compile(r"(?<=^\| --- \| --- \| --- \| --- \|\n)(\| ADP\d+ .*\n)+", re.MULTILINE)


class BlockError(Exception):
    """A block of the README does not run."""


def refreshed(text: str, clone: Clone) -> str:
    """The README with what its commands print today.

    Args:
        text: As it is.
        clone: Where its blocks run, in their order.

    Raises:
        BlockError: one ends with an error.
    """
    pieces, at = [], 0
    printed = ""
    for block in blocks(text):
        body = block.body
        if block.language == "bash" and block.heading != "Development":
            done = clone.script(without_installs(body))
            if done.returncode != 0:
                raise BlockError(f"{body}\n{done.stdout}{done.stderr}")
        elif block.language == "python":
            done = clone.python(body)
            if done.returncode != 0:
                raise BlockError(f"{body}\n{done.stdout}{done.stderr}")
            printed = clone.elsewhere(done.stdout)
        elif block.language == "text":  # what the Python block before it prints
            body = printed
        elif block.language == "console":
            shown = ((command, elided(clone.terminal(command), output)) for command, output in session(body))
            body = "".join(f"$ {command}\n{output}" for command, output in shown)
        pieces += [text[at : block.start], body]
        at = block.start + len(block.body)
    text = "".join([*pieces, text[at:]])
    rows = [f"| {code.code} | {code.name} | {code.severity} | {code.meaning} |\n" for code in CODES.values()]
    return _CODE_TABLE.sub(lambda _: "".join(rows), text)


def picture(clone: Clone) -> str:
    """What a terminal shows of the commands in the picture, as SVG."""
    console = Console(file=io.StringIO(), record=True, width=COLUMNS, force_terminal=True, color_system="truecolor")
    for command in SHOWN:
        console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
        console.print(Text.from_ansi(clone.terminal(command, colours=True)), "")
    svg = console.export_svg(title="adaptertool", theme=THEME, unique_id="adaptertool")
    # The letters are those of the reader's own terminal: a picture fetches nothing.
    return "".join(
        line.rstrip() + "\n" for line in re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL).split("\n")
    )


def main() -> None:
    """Rewrite the README and the picture."""
    with tempfile.TemporaryDirectory() as folder, Clone(Path(folder) / "clone") as clone:
        drawn = picture(clone)
    with tempfile.TemporaryDirectory() as folder, Clone(Path(folder) / "clone") as clone:
        text = refreshed(README.read_text(encoding="utf-8"), clone)
    for path, content in ((README, text), (PICTURE, drawn)):
        changed = not path.exists() or path.read_text(encoding="utf-8") != content
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {'brought up to date' if changed else 'up to date'}", file=sys.stderr)


if __name__ == "__main__":
    main()
