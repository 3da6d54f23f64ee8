"""What a pipeline is told, whatever format it reads: a list of checks, each passed, failed, warned about or left open."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from adaptertool.checkpoint.config import CONFIG_NAME
from adaptertool.checkpoint.weights import PICKLE_WEIGHTS, SAFETENSORS_WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adaptertool.errors import AdapterToolError
    from adaptertool.findings import Finding
    from adaptertool.merge.result import LayerResult, Status
    from adaptertool.operations.check_merge import MergeReport
    from adaptertool.operations.inspect import Inspection

Outcome = Literal["passed", "failed", "open"]

NO_BIAS = "ADP201"
"""The finding that ways out are about."""


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Attributes:
        name: What was checked, such as a module path.
        outcome: `open` where the tool could not find out.
        code: The finding code of a failure.
        message: Why it did not pass.
        remedy: What to do about it, where that is known.
    """

    name: str
    outcome: Outcome = "passed"
    code: str | None = None
    message: str = ""
    remedy: str | None = None


@dataclass(frozen=True)
class PipelineResult:
    """A result for the formats that pipelines read.

    Attributes:
        command: The command, such as `check-merge`.
        location: What was examined, as a person reads it; empty where the command was not understood so far.
        uri: The file that findings are about, percent-encoded: relative to the repository with forward slashes where it is in
            it, else a URI. Of a file on the Hub it is the host and the path, for code scanning refuses a document with a URI
            of another scheme than `file`. None where there is no file.
        page: Where a file on the Hub is to be seen.
        summary: The answer in a line.
        exit_code: What the command line ends with.
        findings: What was found.
        open_questions: What the tool could not find out, a sentence each.
        checks: Everything that was checked, one by one.
    """

    command: str
    location: str
    uri: str | None
    summary: str
    exit_code: int
    findings: Sequence[Finding]
    open_questions: Sequence[str]
    checks: Sequence[Check]
    page: str | None = None

    @property
    def title(self) -> str:
        """The command and what it was about."""
        return f"adaptertool {self.command} {self.location}".rstrip()


def pipeline_result(result: Inspection | MergeReport, exit_code: int) -> PipelineResult:
    """The result of a command that reports findings, whichever it is."""
    from adaptertool.operations.inspect import Inspection

    return inspection_result(result, exit_code) if isinstance(result, Inspection) else merge_result(result)


def merge_result(report: MergeReport) -> PipelineResult:
    """A dry run of a merge: one check for each layer."""
    counts: dict[str, int] = {}
    for layer in report.layers:
        if layer.status == "unknown":
            counts[layer.reason or ""] = counts.get(layer.reason or "", 0) + 1
    open_questions = [f"{count} of {len(report.layers)} layers: {reason}" for reason, count in counts.items()]
    remedies = {finding.code: finding.fix for finding in report.findings if finding.fix}
    if report.ways_out:
        remedies[NO_BIAS] = " ".join(way.text for way in report.ways_out)
    checks = [_layer_check(layer, remedies.get(layer.code or "")) for layer in report.layers]
    by_layer = {layer.code for layer in report.layers}
    checks += [
        Check(finding.name, "failed", finding.code, finding.message, finding.fix)
        for finding in report.findings
        if finding.severity == "error" and (finding.code not in by_layer)
    ]
    if not checks:
        checks = [Check("merge", "open", None, report.note or "")]
        open_questions = [report.note or "nothing could be checked"]
    target = report.target
    return PipelineResult(
        "check-merge",
        target.location,
        artifact_uri(target.location, target.kind, target.weights),
        f"{report.verdict}: {summary_of(report)}",
        report.exit_code,
        [
            replace(one, fix=remedies[NO_BIAS]) if one.code == NO_BIAS and not one.fix else one
            for one in report.findings
        ],
        open_questions,
        checks,
        page_of(target.location, target.kind, target.revision, target.weights),
    )


def inspection_result(result: Inspection, exit_code: int) -> PipelineResult:
    """An inspection: one check for each finding."""
    target = result.target
    checks = [Check(one.name, "failed", one.code, one.message, one.fix) for one in result.findings]
    count = len(result.findings)
    return PipelineResult(
        "inspect",
        target.location,
        artifact_uri(target.location, target.kind, target.weights),
        f"{count} {'finding' if count == 1 else 'findings'}" if count else "no findings",
        exit_code,
        result.findings,
        (),
        checks or [Check("checkpoint")],
        page_of(target.location, target.kind, target.revision, target.weights),
    )


def failed_result(command: str, target: str | None, error: AdapterToolError) -> PipelineResult:
    """A checkpoint that could not be looked at, or a command that could not be carried out: one question that stays open."""
    uri = page = None
    if target is None:
        target = ""
    elif target.startswith("hf://"):
        file = CONFIG_NAME if error.code == "ADP304" else SAFETENSORS_WEIGHTS
        location = target.removeprefix("hf://").partition("@")[0]
        uri, page = artifact_uri(location, "hub", file), page_of(location, "hub", None, file)
    else:
        target = str(Path(target))
        uri = artifact_uri(*_broken_file(Path(target), error))
    return PipelineResult(
        command,
        target,
        uri,
        f"failed: {error.message}",
        error.exit_code,
        (),
        (error.message,),
        (Check("checkpoint", "open", error.code, error.message, error.hint),),
        page,
    )


def _broken_file(target: Path, error: AdapterToolError) -> tuple[str, Literal["local"], str]:
    """The file of a checkpoint that an error is about, if it has one: its config where that is broken, else its weights."""
    folder = target if target.is_dir() else target.parent
    if error.code == "ADP304":
        return str(folder), "local", CONFIG_NAME
    if folder is not target:
        return str(target), "local", ""
    files = (SAFETENSORS_WEIGHTS, PICKLE_WEIGHTS, CONFIG_NAME)
    return str(folder), "local", next((file for file in files if (folder / file).exists()), "")


def summary_of(report: MergeReport) -> str:
    """How many layers are what, in a line."""
    total = len(report.layers)
    if not total:
        return report.findings[0].message if report.findings else report.note or "no layers"
    if report.verdict == "lossy" and all(layer.status == "ok" for layer in report.layers):
        return "the merge raises nothing, and what comes out is something else"
    words: dict[Status, str] = {
        "blocked": "can't be merged into",
        "lossy": "lose by merging",
        "unknown": "could not be decided",
        "ok": "can be merged into",
    }
    parts = []
    for status, word in words.items():
        count = sum(layer.status == status for layer in report.layers)
        if count == total:
            return f"{'the only layer' if total == 1 else f'all {total} layers'} {word}"
        if count and status != "ok":
            parts.append(f"{count} of {total} layers {word}")
    return ", ".join(parts)


def artifact_uri(location: str, kind: Literal["local", "hub"], file: str) -> str:
    """What a file is called where results are shown beside the files of a repository.

    Args:
        location: A path, or `org/name` with the subfolder where there is one.
        kind: On disk or on the Hub.
        file: The file's name.
    """
    if kind == "hub":
        return f"huggingface.co/{quote(location)}/{quote(file)}"
    path = Path(os.path.abspath(Path(location) / file))  # noqa: PTH100 - resolve() would follow a cache's symlinks
    here = Path.cwd()
    root = next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), here)
    # Bytes, for a name on disk need not be text.
    return quote(os.fsencode(path.relative_to(root).as_posix())) if path.is_relative_to(root) else path.as_uri()


def page_of(location: str, kind: Literal["local", "hub"], revision: str | None, file: str) -> str | None:
    """The address of a file on the Hub; None of one on disk.

    Args:
        location: See `artifact_uri`.
        kind: See `artifact_uri`.
        revision: The commit.
        file: See `artifact_uri`.
    """
    if kind == "local":
        return None
    parts = location.split("/")
    repo, path = "/".join(parts[:2]), "/".join((*parts[2:], file))
    return f"https://huggingface.co/{quote(repo)}/blob/{quote(revision or 'main', safe='')}/{quote(path)}"


def _layer_check(layer: LayerResult, remedy: str | None) -> Check:
    if layer.status == "ok":
        return Check(layer.module)
    outcome: Outcome = "open" if layer.status == "unknown" else "failed"
    return Check(layer.module, outcome, layer.code, layer.reason or "", remedy)
