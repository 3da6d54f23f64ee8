"""Workflow commands of GitHub Actions: one annotation a finding, in the log."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

from adaptertool.words import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adaptertool.report.pipeline import PipelineResult

_LEVELS = {"error": "error", "warning": "warning", "info": "notice"}


def github_annotations(results: Sequence[PipelineResult]) -> str:
    """Lines of `::error …::message`, ending in a newline; a notice with the summary closes those of each checkpoint.

    GitHub shows ten errors, ten warnings and ten notices a step; one a finding keeps a single checkpoint below that.
    """
    return "".join(_annotations(result) for result in results)


def _annotations(result: PipelineResult) -> str:
    lines = []
    file = "" if "://" in result.uri else f",file={_property(unquote(result.uri))}"
    for finding in result.findings:
        title = _property(f"{finding.code} {finding.name}")
        lines.append(f"::{_LEVELS[finding.severity]} title={title}{file}::{_data(finding.message)}")
        if finding.fix:
            lines[-1] += _data(f"\n{finding.fix}")
    title = _property(f"adaptertool {result.command}")
    lines.extend(f"::error title={title}{file}::{_data(f'could not find out: {one}')}" for one in result.open_questions)
    lines.append(f"::notice title={title}{file}::{_data(f'{result.location}: {result.summary}')}")
    return "\n".join(lines) + "\n"


def _data(text: str) -> str:
    """A message: controls escaped so that they reach no terminal, line breaks as workflow commands write them."""
    text = "\n".join(printable(line) for line in text.split("\n"))
    return text.replace("%", "%25").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
