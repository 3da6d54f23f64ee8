"""Workflow commands of GitHub Actions: one annotation a finding, in the log."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

from adaptertool.words import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adaptertool.report.pipeline import PipelineResult

_LEVELS = {"error": "error", "warning": "warning", "info": "notice"}


def github_annotations(results: Sequence[PipelineResult]) -> str:
    """Lines of `::error …::message`, ending in a newline; a notice with the answer comes first for each checkpoint.

    GitHub shows ten errors, ten warnings and ten notices a step, the first ones. One a finding keeps a single checkpoint below
    that; of several, a line that counts them comes before all others.
    """
    counts = [_counted(results)] if len(results) > 1 else []
    return "".join(f"{line}\n" for line in (*counts, *(line for result in results for line in _annotations(result))))


def _counted(results: Sequence[PipelineResult]) -> str:
    codes = [result.exit_code for result in results]
    parts = [
        f"{count} {word}"
        for word, count in (
            ("with the answer no", codes.count(1)),
            ("that could not be decided", sum(code > 1 for code in codes)),
            ("fine", codes.count(0)),
        )
        if count
    ]
    level = "error" if any(codes) else "notice"
    title = _property(f"adaptertool {results[0].command}")
    message = f"{len(results)} checkpoints: {', '.join(parts)}"
    return f"::{level} title={title}::{_data(message)}"


def _annotations(result: PipelineResult) -> Iterator[str]:
    on_disk = result.uri is not None and result.page is None and "://" not in result.uri
    file = f",file={_property(unquote(result.uri or ''))}" if on_disk else ""
    title = _property(f"adaptertool {result.command}")
    answer = f"{result.location}: {result.summary}" if result.location else result.summary
    yield f"::notice title={title}{file}::{_data(answer)}"
    for finding in result.findings:
        name = _property(f"{finding.code} {finding.name}")
        message = "\n".join(filter(None, (finding.message, finding.fix)))
        yield f"::{_LEVELS[finding.severity]} title={name}{file}::{_data(message)}"
    for question in result.open_questions:
        yield f"::error title={title}{file}::{_data(f'could not find out: {question}')}"


def _data(text: str) -> str:
    """A message: controls escaped so that they reach no terminal, line breaks as workflow commands write them."""
    text = "\n".join(printable(line) for line in text.split("\n"))
    return text.replace("%", "%25").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
