"""Text and tables that are read in any width, and leave no spaces at the ends of lines."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rich.cells import cell_len, chop_cells
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

GAP = 2
"""Columns between two cells."""

LEAST_NAME = 24
"""Columns that the name at the end of a line is given before the table becomes a list."""


WHOLE_NAME = 48
"""Columns up to which a name is kept whole at the cost of columns that can be spared."""


_BREAK = re.compile(r"[,/]|(?<!\.)\.(?!\.)")
"""After what a long name is broken."""


class Records:
    """Entries of a few short cells and a name of any length, which comes last and is folded, never cut.

    Args:
        titles: Of the cells and of the name. A title that begins with `>` is of numbers, which are aligned to the right.
        rows: The cells and the name of each entry.
        spare: Columns that go, in this order, where the table does not fit.
    """

    def __init__(self, titles: Sequence[str], rows: Sequence[Sequence[Text]], spare: Sequence[int] = ()) -> None:
        self._spare = spare
        self._right = [title.startswith(">") for title in titles]
        self._titles = [title.removeprefix(">") for title in titles]
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Choose by the width that there is."""
        # A column that is empty throughout says nothing.
        kept = [at for at in range(len(self._titles) - 1) if any(row[at].plain for row in self._rows)]
        widths = {at: max(cell_len(self._titles[at]), *(row[at].cell_len for row in self._rows)) for at in kept}
        longest = max((row[-1].cell_len for row in self._rows), default=0)
        for at in (None, *self._spare):
            widths.pop(-1 if at is None else at, None)
            room = options.max_width - sum(widths.values()) - GAP * len(widths)
            if room >= min(longest, WHOLE_NAME):
                break
        if room >= min(longest, LEAST_NAME):
            yield from self._table(widths, max(room, 1))
        else:
            yield from self._list(kept, max(options.max_width, 1))

    def _table(self, widths: dict[int, int], room: int) -> RenderResult:
        head = [Text(title, style="dim") for title in self._titles]
        for row in [head, *self._rows]:
            line = Text(no_wrap=True, overflow="ignore")
            for at, width in widths.items():
                gap = " " * (width - row[at].cell_len)
                line.append_text(Text.assemble(gap, row[at]) if self._right[at] else Text.assemble(row[at], gap))
                line.append(" " * GAP)
            indent = line.cell_len
            for number, piece in enumerate(_folded(row[-1], room)):
                if number:
                    line.append("\n" + " " * indent)
                line.append_text(piece)
            line.rstrip()
            yield line

    def _list(self, kept: Sequence[int], width: int) -> RenderResult:
        for row in self._rows:
            yield from _folded(row[-1], width)
            facts = Text()
            for at in kept:
                if row[at].plain:
                    facts.append("" if not facts.plain else ", ")
                    facts.append(f"{self._titles[at]} " if self._titles[at] else "", style="dim")
                    facts.append_text(row[at])
            yield Indented(facts)


def _folded(name: Text, width: int) -> list[Text]:
    """Lines of a name, broken after a comma or a dot where there is one in the line's second half."""
    pieces, start = [], 0
    while start < len(name.plain):
        # A character that is wider than the line is a line.
        piece = chop_cells(name.plain[start : start + width], width)[0] or name.plain[start]
        if start + len(piece) < len(name.plain):
            cut = max((found.end() for found in _BREAK.finditer(piece)), default=0)
            piece = piece[:cut] if cut > len(piece) // 2 else piece
        pieces.append(name[start : start + len(piece)])
        start += len(piece)
    for line in pieces:
        line.no_wrap, line.overflow = True, "ignore"
    return pieces or [name]


class Indented:
    """A paragraph that is set in from the left, all its lines.

    Args:
        text: The paragraph.
        by: Columns.
        mark: What stands before its first line, such as `- `; the others are set in by as much.
        hang: Columns that all lines but the first are set in further.
    """

    def __init__(self, text: Text, by: int = 2, mark: str = "", hang: int = 0) -> None:
        self._text, self._by, self._mark, self._hang = text, by, mark, hang + len(mark)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Wrap it."""
        width = max(options.max_width - self._by - self._hang, 1)
        for number, line in enumerate(self._text.wrap(console, width)):
            line.rstrip()
            lead = " " * self._by + (self._mark if number == 0 else " " * self._hang)
            yield Text.assemble(lead, line, no_wrap=True, overflow="ignore")


def bullets(texts: Iterable[str], by: int = 2) -> list[RenderableType]:
    """A list, an entry a text."""
    return [Indented(Text(text), by, "- ") for text in texts]
