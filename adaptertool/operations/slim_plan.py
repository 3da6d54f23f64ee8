"""What slim takes out of a file, and what becomes of the rest: found out, and not written yet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adaptertool import __version__
from adaptertool.checkpoint.records import RemovedTensor
from adaptertool.checkpoint.weights import PICKLE_WEIGHTS, SAFETENSORS_WEIGHTS
from adaptertool.checkpoint.writing.serialize import NewTensor, NewWeights, in_order, kept
from adaptertool.checkpoint.writing.writer import Change
from adaptertool.operations.base_copies import METADATA_KEY as BASE_COPIES_KEY
from adaptertool.operations.base_copies import finding_about
from adaptertool.operations.projection_findings import findings_about, one_copy_slim, proving_slim
from adaptertool.operations.projections import INSTALL_TORCH, ProjectionReport, examine, sample_is_cheap
from adaptertool.operations.rewrite import Rewrite, read_whole, unchanged
from adaptertool.operations.shared_copies import METADATA_KEY as SHARED_COPIES_KEY
from adaptertool.operations.shared_copies import to_metadata
from adaptertool.progress import SILENT, Progress
from adaptertool.projection.fingerprint import METADATA_KEY, Fingerprint
from adaptertool.projection.loader import loader_for
from adaptertool.words import natural

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.findings import Finding
    from adaptertool.methods.base import Projections
    from adaptertool.operations.base_copies import BaseCopies
    from adaptertool.projection.comparison import Level
    from adaptertool.projection.loader import Loader

KEEP = "Keep the file as it is."


@dataclass(frozen=True)
class Request:
    """What is asked of slim.

    Attributes:
        keep_one_copy: Whether what PEFT loads is to stay, and its further copies alone go.
        for_torch: The torch version that will load the adapter; None for the installed one.
        force: Whether the canonical pair stays where copies differ.
    """

    keep_one_copy: bool
    for_torch: str | None
    force: bool

    def loader(self) -> Loader | None:
        """The torch that will load the adapter; None where it is not known."""
        return loader_for(self.for_torch)


@dataclass(frozen=True)
class Plan:
    """What goes of a file, and what becomes of the rest.

    Attributes:
        result: What will have been done.
        removed: The tensors that go.
        metadata: The new file's.
        config_text: The new config, where it changes.
        change: What is to be written; None where nothing is.
    """

    result: Rewrite
    removed: frozenset[str] = frozenset()
    metadata: Mapping[str, str] | None = None
    config_text: str | None = None
    change: Change | None = None


def plan_of(
    adapter: Adapter,
    rule: Projections | None,
    copies: BaseCopies | None,
    request: Request,
    *,
    shapes_proven: bool,
    progress: Progress,
) -> Plan:
    """Find out what can go.

    Args:
        adapter: The adapter.
        rule: Its method's rule about projections, where the file can hold some.
        copies: What a comparison with the base found, where there was one.
        request: What is asked for.
        shapes_proven: Whether the base is known to make PEFT draw the shapes that are stored.
        progress: Who is told how far it got.

    Raises:
        CorruptError: a config value that the answer depends on makes no sense (ADP304), or the file is damaged.
    """
    plan = _plan_projections(adapter, rule, request, shapes_proven=shapes_proven, progress=progress)
    findings = (*plan.result.findings, *finding_about(adapter, copies))
    plan = replace(plan, result=replace(plan.result, findings=findings, base_copies=copies))
    if plan.result.action == "refused":
        return plan
    if copies is not None and copies.same:
        plan = _without_copies(adapter, plan, copies)
    if not plan.removed:
        reason = "; ".join(copies.others.values()) if copies is not None else None
        return replace(plan, result=replace(plan.result, reason=reason)) if reason else plan
    if plan.removed >= set(adapter.weights.tensors):
        reason = "the file holds nothing else, and PEFT loads no file without tensors"
        return Plan(replace(plan.result, action="nothing-to-do", reason=reason))
    read_whole(adapter, progress)
    return _changed(adapter, plan)


def borrowed(adapter: Adapter, rule: Projections, disproof: str) -> Rewrite:
    """The refusal to strip projections that the base shows to be another adapter's.

    Args:
        adapter: The adapter.
        rule: Its method's rule about projections.
        disproof: Why they are, in a sentence.
    """
    hint = KEEP
    if any(one.copies for one in rule.stored(adapter.weights.tensors, adapter.config)):
        after = "what stays loads as now, after the adapter that they are from"
        hint = f"{one_copy_slim(adapter)} removes the copies; {after}."
    return replace(unchanged(adapter, "slim"), action="refused", reason=disproof, hint=hint)


def _without_copies(adapter: Adapter, plan: Plan, copies: BaseCopies) -> Plan:
    """The plan, with what the base has left out as well."""
    metadata = dict((plan.metadata if plan.removed else adapter.weights.metadata) or {"format": "pt"})
    metadata[BASE_COPIES_KEY] = copies.to_metadata(__version__)
    action = plan.result.action if plan.removed else "stripped"
    result = replace(plan.result, action=action, reason=None)
    return replace(plan, result=result, removed=plan.removed | set(copies.same), metadata=metadata)


def _plan_projections(
    adapter: Adapter,
    rule: Projections | None,
    request: Request,
    *,
    shapes_proven: bool,
    progress: Progress,
) -> Plan:
    result = unchanged(adapter, "slim")
    if rule is None:
        peft_type = adapter.config.peft_type
        reason = f"nothing in this {peft_type} adapter could be drawn again, and nothing is known to be there twice"
        return Plan(replace(result, reason=reason))
    if not rule.stored(adapter.weights.tensors, adapter.config):
        report = examine(adapter, rule, "none", lambda: None)
        reason = "the file holds no projections"
        return Plan(replace(result, reason=reason, projections=report, findings=_findings(adapter, report, rule)))

    def examined(level: Level, watched: Progress) -> ProjectionReport:
        settle = level == "sample"
        return examine(adapter, rule, level, request.loader, watched, shapes_proven=shapes_proven, settle=settle)

    def planned(report: ProjectionReport) -> Plan:
        found = replace(result, projections=report, findings=_findings(adapter, report, rule))
        if request.keep_one_copy or rule.trained:
            return _plan_one_copy(adapter, rule, report, found, force=request.force)
        if report.verdict != "regenerable" or report.recipe is None:
            return _refused(adapter, report, found)
        return _plan_strip(adapter, rule, report, found)

    if sample_is_cheap(adapter, rule):
        early = examined("sample", SILENT)
        if early.settled and (plan := planned(early)).result.action == "refused":
            return plan
    return planned(examined("full", progress))


def _plan_one_copy(
    adapter: Adapter, rule: Projections, report: ProjectionReport, result: Rewrite, *, force: bool
) -> Plan:
    copies = {name for one in report.tensors for name in one.copies}
    if not copies:
        reason = "the file holds one copy of what layers share"
        if not (rule.shared or rule.trained):
            reason = "each layer has its own, and the file holds them once"
        return Plan(replace(result, reason=reason))
    if report.verdict == "copies-differ" and (report.trained or not force):
        hint = "--force keeps the canonical pair, which is the one that PEFT loads."
        hint = "They were trained, and nothing brings them back: keep the file as it is." if report.trained else hint
        return Plan(replace(result, action="refused", reason=f"the copies differ: {report.reason}", hint=hint))
    metadata = adapter.weights.metadata
    if report.trained:
        metadata = {**(metadata or {"format": "pt"}), SHARED_COPIES_KEY: to_metadata(report.tensors, __version__)}
    pair = all(one.canonical == rule.canonical_name(one.kind) for one in report.tensors)
    result = replace(result, action="kept-one-copy", hint=rule.pair_alone if pair else None)
    return Plan(result, frozenset(copies), metadata)


def _plan_strip(adapter: Adapter, rule: Projections, report: ProjectionReport, result: Rewrite) -> Plan:
    assert report.recipe is not None  # noqa: S101 - a verified report has one
    tensors = adapter.weights.tensors
    removed = {name for one in report.tensors for name in one.tensors}
    digests = report.fingerprint or {}
    fingerprint = Fingerprint(
        report.recipe,
        {
            one.kind: RemovedTensor(tensors[one.canonical].shape, tensors[one.canonical].dtype, digests[one.kind])
            for one in sorted(report.tensors, key=lambda one: natural(one.kind))
        },
        report.loads_with,
    )
    # transformers asks for the format in the metadata of every file that it loads.
    metadata = dict(adapter.weights.metadata or {"format": "pt"})
    metadata[METADATA_KEY] = fingerprint.to_metadata(__version__)
    config_text = None
    if rule.flag is not None and rule.stripped_flag is not None and report.flag != rule.stripped_flag:
        config_text = adapter.config.with_value(rule.flag, rule.stripped_flag)
    hint = None
    if report.borrowed_perhaps:
        hint = (
            "whether these projections are this adapter's own, or another one's that was on the model before it, only the "
            f"base shows, which was not at hand. {proving_slim(adapter)} holds them against it."
        )
    return Plan(replace(result, action="stripped", hint=hint), frozenset(removed), metadata, config_text)


def _changed(adapter: Adapter, plan: Plan) -> Plan:
    source = adapter.weights
    removed = plan.removed
    weights = NewWeights(_without(adapter, removed), plan.metadata)
    pickled = source.format == "pickle"
    change = Change(
        weights=weights,
        weights_name=SAFETENSORS_WEIGHTS if adapter.weights_name == PICKLE_WEIGHTS else adapter.weights_name,
        config_text=plan.config_text,
        # With the flag false PEFT ignores what is still stored, and draws what was verified to be the same.
        config_first=True,
        obsolete=(adapter.weights_name,) if pickled else (),
    )
    shared = {source.stored_as(name) for name in source.tensors if name not in removed}
    gone = {source.stored_as(name) for name in removed} - shared
    return replace(
        plan,
        result=replace(
            plan.result,
            bytes_after=weights.file_bytes,
            tensors_changed=len(removed),
            bytes_changed=sum(source.tensors[name].nbytes for name in gone),
        ),
        change=change,
    )


def _refused(adapter: Adapter, report: ProjectionReport, result: Rewrite) -> Plan:
    if report.verdict == "unverified":
        reason = f"torch is not installed, so nothing was verified: {INSTALL_TORCH}"
        hint = "Or name the torch that will load the adapter with --for-torch VERSION."
    else:
        reason = report.reason or "the projections do not verify"
        hint = f"{one_copy_slim(adapter)} keeps what PEFT loads and removes the copies."
        if report.verdict == "copies-differ" or report.copies < 2:
            hint = KEEP
    return Plan(replace(result, action="refused", reason=reason, hint=hint))


def _without(adapter: Adapter, removed: Collection[str]) -> tuple[NewTensor, ...]:
    return in_order(kept(adapter.weights, (name for name in adapter.weights.tensors if name not in removed)))


def _findings(adapter: Adapter, report: ProjectionReport, rule: Projections) -> tuple[Finding, ...]:
    return tuple(findings_about(report, adapter, rule))
