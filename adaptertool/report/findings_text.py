"""Findings as text, for every command that reports some."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from adaptertool.report.layout import Indented
from adaptertool.report.styles import FIX, SEVERITIES
from adaptertool.words import collapsed, printable, shortened, size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from adaptertool.findings import Finding

NAMES = 2
"""Names of tensors that a finding shows."""


def findings_text(findings: Sequence[Finding], *, names: bool = True) -> list[RenderableType]:
    """All of them, with an empty line between two.

    Args:
        findings: What was found.
        names: Whether the tensors are named.
    """
    parts: list[RenderableType] = []
    for finding in findings:
        head = Text()
        head.append(f"{finding.severity} ", style=SEVERITIES[finding.severity])
        head.append(f"{finding.code} {finding.name}", style="bold")
        if finding.bytes:
            head.append(f"  {size(finding.bytes)}")
        parts += [*([""] if parts else []), head, Indented(Text(shortened(finding.message, 600)))]
        if names and finding.tensors:
            shown = collapsed(shortened(name) for name in finding.tensors)
            more = f" and {len(shown) - NAMES} more" if len(shown) > NAMES else ""
            parts.append(Indented(Text(", ".join(shown[:NAMES]) + more, style="dim")))
        if finding.fix:
            parts.append(Indented(Text(f"fix: {printable(finding.fix)}", style=FIX)))
    return parts
