"""Results of many checkpoints: a line of each, what they add up to, and the JSON document of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from adaptertool import __version__
from adaptertool.report.json import error_document
from adaptertool.report.result import document

if TYPE_CHECKING:
    from adaptertool.errors import AdapterToolError
    from adaptertool.findings import Severity
    from adaptertool.operations.check_merge import MergeReport
    from adaptertool.operations.inspect import Inspection
    from adaptertool.operations.many import Outcome
    from adaptertool.operations.result import Result
    from adaptertool.operations.rewrite import Rewrite


@dataclass(frozen=True)
class InspectionLine:
    """An inspection in a line.

    Attributes:
        location: Where.
        peft_type: The method.
        file_bytes: The length of the weights file.
        removable_bytes: What could go.
        verdict: About projections; None where the method has none.
        severities: Of its findings.
    """

    location: str
    peft_type: str
    file_bytes: int
    removable_bytes: int
    verdict: str | None
    severities: tuple[Severity, ...]


@dataclass(frozen=True)
class RewriteLine:
    """A rewrite in a line; see `Rewrite`."""

    location: str
    action: str
    dry_run: bool
    bytes_before: int
    bytes_after: int
    reason: str | None


@dataclass(frozen=True)
class MergeLine:
    """A dry run of a merge in a line.

    Attributes:
        location: Where the adapter is.
        peft_type: The method.
        verdict: See `MergeReport.verdict`.
        counts: How many layers are blocked, lossy or unknown; empty where all can be merged into.
    """

    location: str
    peft_type: str
    verdict: str
    counts: str


@dataclass(frozen=True)
class FailedLine:
    """What could not be found out or done."""

    location: str
    error: AdapterToolError


AnyResult = TypeVar("AnyResult", bound="Inspection | Rewrite | MergeReport")
Line = InspectionLine | RewriteLine | MergeLine | FailedLine


def line_of(outcome: Outcome[AnyResult]) -> Line:
    """The line that stays of an outcome once its result has been reported."""
    from adaptertool.operations.inspect import Inspection
    from adaptertool.operations.rewrite import Rewrite

    result = outcome.result
    if result is None:
        assert outcome.error is not None  # noqa: S101 - an outcome has one of the two
        return FailedLine(outcome.target, outcome.error)
    location = result.target.location
    if isinstance(result, Inspection):
        projections = result.projections
        return InspectionLine(
            location,
            result.adapter.peft_type,
            result.file_bytes,
            projections.removable_bytes if projections else 0,
            projections.verdict if projections else None,
            tuple(finding.severity for finding in result.findings),
        )
    if isinstance(result, Rewrite):
        return RewriteLine(
            location, result.action, result.dry_run, result.bytes_before, result.bytes_after, result.reason
        )
    statuses = Counter(layer.status for layer in result.layers)
    words = [f"{statuses[status]} {status}" for status in ("blocked", "lossy", "unknown") if statuses[status]]
    counts = f"{', '.join(words)} of {len(result.layers)}" if words else ""
    return MergeLine(location, result.adapter.peft_type, result.verdict, counts)


def totals(lines: Sequence[Line]) -> dict[str, Any]:
    """What the lines add up to, in bytes and counts."""
    failed = sum(isinstance(line, FailedLine) for line in lines)
    counted: dict[str, Any] = {"targets": len(lines), "failed": failed}
    inspected = [line for line in lines if isinstance(line, InspectionLine)]
    rewritten = [line for line in lines if isinstance(line, RewriteLine)]
    merged = [line for line in lines if isinstance(line, MergeLine)]
    if inspected:
        severities = Counter(severity for line in inspected for severity in line.severities)
        counted["file_bytes"] = sum(line.file_bytes for line in inspected)
        counted["removable_bytes"] = sum(line.removable_bytes for line in inspected)
        counted["verdicts"] = dict(Counter(line.verdict for line in inspected if line.verdict))
        counted["findings"] = {severity: severities[severity] for severity in ("error", "warning", "info")}
    if rewritten:
        counted["bytes_before"] = sum(line.bytes_before for line in rewritten)
        counted["bytes_after"] = sum(line.bytes_after for line in rewritten)
        counted["actions"] = dict(Counter(line.action for line in rewritten))
    if merged:
        counted["verdicts"] = dict(Counter(line.verdict for line in merged))
    return counted


def outcome_document(outcome: Outcome[Any]) -> dict[str, Any]:
    """One target's document: the one that `--format json` prints of it alone."""
    result: Result | None = outcome.result
    if result is not None:
        return document(result)
    assert outcome.error is not None  # noqa: S101 - an outcome has one of the two
    return error_document(outcome.error, outcome.target)


def many_head(command: str) -> dict[str, Any]:
    """How the document of many targets begins; `results` follow, then `many_tail`."""
    return {"schema": f"adaptertool/{command}-many/1", "version": __version__}


def many_tail(lines: Sequence[Line], exit_code: int, *, interrupted: bool) -> dict[str, Any]:
    """How it ends."""
    return {"totals": totals(lines), "exit_code": exit_code, "interrupted": interrupted}
