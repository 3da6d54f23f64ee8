"""Results of many checkpoints as text: one table, largest savings first, then what failed, then what it adds up to."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, TypeVar

from rich.console import Group, RenderableType
from rich.text import Text

from adaptertool.report.layout import Indented, Records
from adaptertool.report.many import FailedLine, InspectionLine, MergeLine, RewriteLine
from adaptertool.report.styles import ACTIONS, FIX, MERGES, PROJECTIONS, SEVERITIES
from adaptertool.words import plural, printable, shortened, size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adaptertool.findings import Severity
    from adaptertool.report.many import Line

SHOWN = 40
"""Up to how many lines are all shown; of more, those with nothing to say are counted."""

L = TypeVar("L", InspectionLine, RewriteLine, MergeLine)


def many_text(lines: Sequence[Line]) -> RenderableType:
    """What `inspect`, `slim`, `restore` and `check-merge` show of several targets.

    Args:
        lines: One for each target, in any order.
    """
    inspected = [line for line in lines if isinstance(line, InspectionLine)]
    rewritten = [line for line in lines if isinstance(line, RewriteLine)]
    merged = [line for line in lines if isinstance(line, MergeLine)]
    failed = [line for line in lines if isinstance(line, FailedLine)]
    parts: list[RenderableType] = []
    if inspected:
        parts += _inspections(inspected)
    if rewritten:
        parts += _rewrites(rewritten)
    if merged:
        parts += _merges(merged)
    if failed:
        parts += _failures(failed)
    head = Text(_counted(len(lines)), style="bold")
    for text, style in [
        *_sums(inspected, rewritten, merged),
        *([(f"{len(failed)} failed", "bold red")] if failed else []),
    ]:
        head.append(", ", style="not bold")
        head.append(text, style=style)
    return Group(*parts, head)


def _counted(count: int) -> str:
    return plural(count, "checkpoint")


def _inspections(lines: Sequence[InspectionLine]) -> list[RenderableType]:
    loud = [line for line in lines if line.removable_bytes or line.severities]
    shown, hidden = _chosen(lines, loud)
    shown.sort(key=lambda line: (-line.removable_bytes, -line.file_bytes))
    rows = [
        (
            Text(
                size(line.removable_bytes) if line.removable_bytes else "-", style="" if line.removable_bytes else "dim"
            ),
            Text(size(line.file_bytes)),
            Text(shortened(line.peft_type, 20)),
            Text(*PROJECTIONS[line.verdict][:2]) if line.verdict else Text(),
            _severities(line.severities),
            _name(line.location),
        )
        for line in shown
    ]
    table = Records((">could go", ">size", "method", "projections", "findings", "checkpoint"), rows, spare=(2, 1))
    return [table, *_hidden(hidden, "nothing to remove and no findings"), ""]


def _severities(found: Sequence[Severity]) -> Text:
    """How many of the gravest."""
    for severity, style in SEVERITIES.items():
        count = sum(one == severity for one in found)
        if count:
            return Text(f"{count} info" if severity == "info" else plural(count, severity), style=style)
    return Text()


def _rewrites(lines: Sequence[RewriteLine]) -> list[RenderableType]:
    shown, hidden = _chosen(lines, [line for line in lines if line.action != "nothing-to-do"])
    shown.sort(key=lambda line: (line.bytes_after - line.bytes_before, line.action != "refused", -line.bytes_before))
    rows = []
    for line in shown:
        changed = line.bytes_after != line.bytes_before
        done, planned, style = ACTIONS[line.action]
        if changed and line.action == "nothing-to-do":
            done = planned = "done before"
        rows.append(
            (
                Text(
                    size(abs(line.bytes_before - line.bytes_after)) if changed else "-",
                    style="bold" if changed else "dim",
                ),
                Text(size(line.bytes_before)),
                Text(size(line.bytes_after)),
                Text(planned if line.dry_run else done, style=style),
                _name(line.location),
            )
        )
    saves = all(line.bytes_after <= line.bytes_before for line in lines)
    titles = (">saved" if saves else ">added", ">before", ">after", "", "checkpoint")
    parts: list[RenderableType] = [Records(titles, rows, spare=(2, 1)), *_hidden(hidden, "nothing to do"), ""]
    for line in shown:
        if line.action == "refused":
            parts.append(Text.assemble(("refused ", "bold red"), _name(line.location)))
            parts.append(Indented(Text(shortened(line.reason or "", 400))))
    return [*parts, ""] if any(line.action == "refused" for line in shown) else parts


def _merges(lines: Sequence[MergeLine]) -> list[RenderableType]:
    shown, hidden = _chosen(lines, [line for line in lines if line.verdict != "mergeable"])
    order = ("not-mergeable", "lossy", "unknown", "mergeable")
    shown.sort(key=lambda line: order.index(line.verdict))
    rows = [
        (
            Text(line.verdict, style=MERGES[line.verdict]),
            Text(shortened(line.peft_type, 20)),
            Text(shortened(line.counts, 60)),
            _name(line.location),
        )
        for line in shown
    ]
    return [Records(("verdict", "method", "layers", "checkpoint"), rows, spare=(1,)), *_hidden(hidden, "mergeable"), ""]


def _failures(lines: Sequence[FailedLine]) -> list[RenderableType]:
    parts: list[RenderableType] = []
    hints: set[str] = set()
    for line in lines:
        error = line.error
        parts.append(Text.assemble(("failed ", "bold red"), _name(line.location)))
        code = f" [{error.code}]" if error.code else ""
        parts.append(Indented(Text(printable(error.message) + code)))
        if error.hint and error.hint not in hints:
            hints.add(error.hint)
            parts.append(Indented(Text(f"hint: {printable(error.hint)}", style=FIX)))
    return [*parts, ""]


def _sums(
    inspected: Sequence[InspectionLine], rewritten: Sequence[RewriteLine], merged: Sequence[MergeLine]
) -> list[tuple[str, str]]:
    sums: list[tuple[str, str]] = []
    if inspected:
        removable = sum(line.removable_bytes for line in inspected)
        sums.append((size(sum(line.file_bytes for line in inspected)), "not bold"))
        sums.append((f"{size(removable)} could go", "bold yellow" if removable else "not bold"))
    if rewritten:
        before, after = sum(line.bytes_before for line in rewritten), sum(line.bytes_after for line in rewritten)
        sums.append((f"{size(before)} -> {size(after)}", "not bold"))
        for action, count in Counter(line.action for line in rewritten).items():
            done, planned, style = ACTIONS[action]
            word = planned if rewritten[0].dry_run else done
            sums.append((f"{count} {'with ' if action == 'nothing-to-do' else ''}{word}", f"not bold {style}"))
    sums += [
        (f"{count} {verdict}", MERGES[verdict]) for verdict, count in Counter(line.verdict for line in merged).items()
    ]
    return sums


def _chosen(lines: Sequence[L], loud: list[L]) -> tuple[list[L], int]:
    """The lines to show, and how many are only counted."""
    return (list(lines), 0) if len(lines) <= SHOWN else (loud, len(lines) - len(loud))


def _hidden(count: int, what: str) -> list[RenderableType]:
    return [Text(f"{count:,} more: {what}", style="dim")] if count else []


def _name(location: str) -> Text:
    return Text(shortened(location, 400))
