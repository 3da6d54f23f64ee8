"""Results as the JSON documents that scripts rely on. Keys are only ever added; removing one takes a new schema number."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from adaptertool import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable

    from adaptertool.errors import AdapterToolError
    from adaptertool.findings import Code, Finding
    from adaptertool.operations.base_copies import BaseCopies
    from adaptertool.operations.inspect import AdapterReport, Inspection, TargetReport
    from adaptertool.operations.projections import ProjectionReport
    from adaptertool.operations.rewrite import Rewrite

LISTED_TENSORS = 20
"""How many names a finding lists; its count tells how many there are."""


def inspection_document(result: Inspection) -> dict[str, Any]:
    """`inspect --format json`."""
    return {
        "schema": "adaptertool/inspect/1",
        "version": __version__,
        "target": target_block(result.target),
        "adapter": adapter_block(result.adapter),
        "size": {
            "file_bytes": result.file_bytes,
            "tensors": result.tensors,
            "roles": [{"role": one.role, "tensors": one.tensors, "bytes": one.bytes} for one in result.roles],
        },
        "projections": projections_block(result.projections),
        "findings": findings_block(result.findings),
        "notes": [
            {
                "message": note.message,
                "tensors": list(note.tensors[:LISTED_TENSORS]),
                "count": len(note.tensors),
                "bytes": note.bytes,
            }
            for note in result.notes
        ],
    }


def rewrite_document(result: Rewrite) -> dict[str, Any]:
    """`slim --format json` and `restore --format json`."""
    changed = "restored" if result.command == "restore" else "removed"
    return {
        "schema": f"adaptertool/{result.command}/1",
        "version": __version__,
        "target": target_block(result.target),
        "dry_run": result.dry_run,
        "action": result.action,
        "reason": result.reason,
        "hint": result.hint,
        "output": result.output,
        "bytes_before": result.bytes_before,
        "bytes_after": result.bytes_after,
        changed: {"tensors": result.tensors_changed, "bytes": result.bytes_changed},
        "pull_request": result.pull_request,
        "projections": projections_block(result.projections),
        "base_copies": _base_copies_block(result.base_copies),
        "findings": findings_block(result.findings),
    }


def _base_copies_block(copies: BaseCopies | None) -> dict[str, Any] | None:
    if copies is None:
        return None
    return {
        "base": copies.base,
        "revision": copies.revision,
        "removable": {"tensors": list(copies.same), "bytes": copies.bytes},
        "loads_with": list(copies.loads_with) if copies.same else [],
        "kept": [{"tensor": name, "reason": reason} for name, reason in copies.others.items()],
    }


def error_document(error: AdapterToolError, target: str | None = None) -> dict[str, Any]:
    """Any command's failure.

    Args:
        error: What went wrong.
        target: With which checkpoint, as it was named or found; None where it is about none.
    """
    where = {} if target is None else {"target": {"location": target}}
    return {
        "schema": "adaptertool/error/1",
        "version": __version__,
        **where,
        "error": {"code": error.code, "kind": error.kind, "message": error.message, "hint": error.hint},
    }


def codes_document(codes: Iterable[Code]) -> dict[str, Any]:
    """`explain --format json`."""
    return {
        "schema": "adaptertool/explain/1",
        "version": __version__,
        "codes": [asdict(code) for code in codes],
    }


def target_block(target: TargetReport) -> dict[str, Any]:
    """Where a checkpoint was read from, and at what cost."""
    return {
        "location": target.location,
        "kind": target.kind,
        "revision": target.revision,
        "weights": target.weights,
        "requests": target.requests,
        "bytes_read": target.bytes_read,
    }


def adapter_block(adapter: AdapterReport) -> dict[str, Any]:
    """What the adapter is."""
    return {
        "peft_type": adapter.peft_type,
        "peft_version": adapter.peft_version,
        "base_model": adapter.base_model,
        "base_revision": adapter.base_revision,
        "rank": adapter.rank,
        "parameters": adapter.parameters,
        "targets": dict(adapter.targets),
    }


def projections_block(report: ProjectionReport | None) -> dict[str, Any] | None:
    """The projections; None for a method that has none."""
    if report is None:
        return None
    return {
        "stored": report.stored,
        "copies": report.copies,
        "bytes": report.bytes,
        "one_copy_bytes": report.one_copy_bytes,
        "removable_bytes": report.removable_bytes,
        "verification": report.verification,
        "verdict": report.verdict,
        "reason": report.reason,
        "reproduced": report.reproduced,
        "recipe": report.recipe.as_json() if report.recipe else None,
        "loads_with": list(report.loads_with),
        "fingerprint": dict(report.fingerprint) if report.fingerprint else None,
        "save_projection": report.flag,
    }


def findings_block(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """All findings."""
    return [
        {
            "code": finding.code,
            "name": finding.name,
            "severity": finding.severity,
            "message": finding.message,
            "tensors": list(finding.tensors[:LISTED_TENSORS]),
            "count": finding.count,
            "bytes": finding.bytes,
            "fix": finding.fix,
        }
        for finding in findings
    ]
