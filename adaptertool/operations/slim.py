"""Strip projections that verify as regenerable, or keep one copy of them."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adaptertool import __version__
from adaptertool.checkpoint.adapter import check_unchanged
from adaptertool.checkpoint.discover import is_checkpoint
from adaptertool.checkpoint.folder import LocalFolder
from adaptertool.checkpoint.records import RemovedTensor
from adaptertool.checkpoint.target import open_target
from adaptertool.checkpoint.weights import PICKLE_WEIGHTS, SAFETENSORS_WEIGHTS
from adaptertool.checkpoint.writing.serialize import NewTensor, NewWeights, in_order, kept
from adaptertool.checkpoint.writing.writer import Change
from adaptertool.methods import known_method_of
from adaptertool.operations.base_copies import METADATA_KEY as BASE_COPIES_KEY
from adaptertool.operations.base_copies import compare, finding_about
from adaptertool.operations.finished import Earlier, finished
from adaptertool.operations.inspect import describe_target
from adaptertool.operations.projection_findings import findings_about, proving_slim
from adaptertool.operations.projections import INSTALL_TORCH, ProjectionReport, examine, rule_for, sample_is_cheap
from adaptertool.operations.pull_request import TITLES as PULL_REQUEST_TITLES
from adaptertool.operations.pull_request import pull_request_words
from adaptertool.operations.rewrite import Destination, Rewrite, read_whole, unchanged
from adaptertool.operations.shared_copies import METADATA_KEY as SHARED_COPIES_KEY
from adaptertool.operations.shared_copies import to_metadata
from adaptertool.progress import SILENT, Progress
from adaptertool.projection.fingerprint import METADATA_KEY, Fingerprint
from adaptertool.projection.loader import loader_for, parse_version
from adaptertool.words import natural

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.findings import Finding
    from adaptertool.methods.base import Projections
    from adaptertool.operations.base_copies import BaseCopies
    from adaptertool.projection.comparison import Level

KEEP = "Keep the file as it is."


def slim(
    target: str | Path,
    *,
    output: str | Path | None = None,
    in_place: bool = False,
    push: bool = False,
    keep_one_copy: bool = False,
    for_torch: str | None = None,
    base: str | None = None,
    dry_run: bool = False,
    force: bool = False,
    in_tree: bool = False,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | None = None,
    progress: Progress = SILENT,
) -> Rewrite:
    """Strip the projections of a checkpoint if they verify as regenerable, or keep one copy.

    Args:
        target: A folder, a weights file, or a Hub repo; see `open_target`.
        output: The folder to write.
        in_place: Replace the files of the source.
        push: Open a pull request on the Hub repo.
        keep_one_copy: Keep the pair that PEFT loads, and remove the further copies.
        for_torch: The torch version that will load the adapter; by default the installed one.
        base: The base model, whose headers prove that PEFT draws projections of these shapes for this adapter; by default the
            one in the adapter's config, where it is at hand: a folder, or in huggingface_hub's cache, or for an adapter on the
            Hub there. Without any, a second adapter's borrowed projections can go unnoticed in a file that holds one pair,
            which the result's hint says. Where it is named, copies of its embeddings that were not trained and are the same
            bytes are stripped as well.
        dry_run: Verify and plan, and write nothing.
        force: Overwrite an existing output; with `keep_one_copy`, keep the canonical pair even where copies differ.
        in_tree: The checkpoint is one of several in a tree, and `output` its place in another tree. Checkpoints below it are
            not copied along, and an output that holds what would be written is nothing to do.
        revision: For a repo, the branch, tag or commit.
        subfolder: The folder within the target.
        token: Access token for the Hub.
        progress: Who is told how far it got.

    Raises:
        AdapterToolError: the checkpoint can't be read, or the output not be written; nothing was changed.
    """
    if for_torch is not None:
        parse_version(for_torch)
    place = open_target(target, revision=revision, subfolder=subfolder, token=token)
    destination = Destination(Path(output) if output else None, in_place, push, dry_run, force, in_tree)
    adapter = destination.open(place)
    rule = rule_for(adapter, known_method_of(adapter.config))
    earlier = list(_earlier(adapter, destination)) if not force else []
    copies = compare(adapter, base, token, progress) if earlier and base is not None else None
    for one in earlier:
        loader = lambda: loader_for(for_torch)  # noqa: E731
        done = finished(adapter, rule, one, loader, keep_one_copy=keep_one_copy, base_copies=copies)
        if done is not None:
            return replace(done, dry_run=dry_run)
    destination.check(adapter)
    proven, disproof = False, None
    if rule is not None and rule.shared and rule.stored(adapter.weights.tensors, adapter.config):
        from adaptertool.operations.base_layers import shapes_by_the_base

        proven, disproof = shapes_by_the_base(adapter, rule, base, token)
    if disproof is not None and not keep_one_copy:
        result = replace(unchanged(adapter, "slim"), action="refused", dry_run=dry_run, reason=disproof)
        copied = rule is not None and any(one.copies for one in rule.stored(adapter.weights.tensors, adapter.config))
        hint = (
            f"{_one_copy(adapter)} removes the copies; what stays loads as now, after the adapter that they are from."
        )
        return replace(result, hint=hint if copied else KEEP)
    if base is not None and copies is None:
        copies = compare(adapter, base, token, progress)
    plan = _plan(
        adapter,
        rule,
        copies,
        keep_one_copy=keep_one_copy,
        for_torch=for_torch,
        force=force,
        shapes_proven=proven,
        progress=progress,
    )
    if plan.change is None:
        check_unchanged(adapter)
        return replace(plan.result, target=describe_target(adapter), dry_run=dry_run)
    return destination.carry_out(adapter, plan.change, plan.result, pull_request_words, progress)


def _earlier(adapter: Adapter, destination: Destination) -> Iterator[Earlier]:
    """What earlier runs may have written or offered."""
    if destination.in_tree and destination.output is not None and is_checkpoint(destination.output):
        yield Earlier(LocalFolder(destination.output), output=str(destination.output))
    if destination.push and adapter.folder.kind == "hub":
        from adaptertool.checkpoint.hub.folder import HubFolder
        from adaptertool.checkpoint.hub.offered import offered

        assert isinstance(adapter.folder, HubFolder)  # noqa: S101 - that is what this kind is
        for folder, address in offered(adapter.folder, PULL_REQUEST_TITLES):
            yield Earlier(folder, pull_request=address)


@dataclass(frozen=True)
class _Plan:
    """What goes.

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


def _plan(
    adapter: Adapter,
    rule: Projections | None,
    copies: BaseCopies | None,
    *,
    keep_one_copy: bool,
    for_torch: str | None,
    force: bool,
    shapes_proven: bool,
    progress: Progress,
) -> _Plan:
    plan = _plan_projections(
        adapter,
        rule,
        keep_one_copy=keep_one_copy,
        for_torch=for_torch,
        force=force,
        shapes_proven=shapes_proven,
        progress=progress,
    )
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
        return _Plan(replace(plan.result, action="nothing-to-do", reason=reason))
    read_whole(adapter, progress)
    return _changed(adapter, plan)


def _without_copies(adapter: Adapter, plan: _Plan, copies: BaseCopies) -> _Plan:
    """The plan, with what the base has left out as well."""
    metadata = dict((plan.metadata if plan.removed else adapter.weights.metadata) or {"format": "pt"})
    metadata[BASE_COPIES_KEY] = copies.to_metadata(__version__)
    action = plan.result.action if plan.removed else "stripped"
    result = replace(plan.result, action=action, reason=None)
    return replace(plan, result=result, removed=plan.removed | set(copies.same), metadata=metadata)


def _plan_projections(
    adapter: Adapter,
    rule: Projections | None,
    *,
    keep_one_copy: bool,
    for_torch: str | None,
    force: bool,
    shapes_proven: bool,
    progress: Progress,
) -> _Plan:
    result = unchanged(adapter, "slim")
    if rule is None:
        peft_type = adapter.config.peft_type
        reason = f"nothing in this {peft_type} adapter could be drawn again, and nothing is known to be there twice"
        return _Plan(replace(result, reason=reason))
    if not rule.stored(adapter.weights.tensors, adapter.config):
        report = examine(adapter, rule, "none", lambda: None)
        reason = "the file holds no projections"
        return _Plan(replace(result, reason=reason, projections=report, findings=_findings(adapter, report, rule)))

    def examined(level: Level, watched: Progress) -> ProjectionReport:
        proven, loader, settle = shapes_proven, lambda: loader_for(for_torch), level == "sample"
        return examine(adapter, rule, level, loader, watched, shapes_proven=proven, settle=settle)

    def planned(report: ProjectionReport) -> _Plan:
        found = replace(result, projections=report, findings=_findings(adapter, report, rule))
        if keep_one_copy or rule.trained:
            return _plan_one_copy(adapter, rule, report, found, force=force)
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
) -> _Plan:
    copies = {name for one in report.tensors for name in one.copies}
    if not copies:
        reason = "the file holds one copy of what layers share"
        if not (rule.shared or rule.trained):
            reason = "each layer has its own, and the file holds them once"
        return _Plan(replace(result, reason=reason))
    if report.verdict == "copies-differ" and (report.trained or not force):
        hint = "--force keeps the canonical pair, which is the one that PEFT loads."
        hint = "They were trained, and nothing brings them back: keep the file as it is." if report.trained else hint
        return _Plan(replace(result, action="refused", reason=f"the copies differ: {report.reason}", hint=hint))
    metadata = adapter.weights.metadata
    if report.trained:
        metadata = {**(metadata or {"format": "pt"}), SHARED_COPIES_KEY: to_metadata(report.tensors, __version__)}
    pair = all(one.canonical == rule.canonical_name(one.kind) for one in report.tensors)
    result = replace(result, action="kept-one-copy", hint=rule.pair_alone if pair else None)
    return _Plan(result, frozenset(copies), metadata)


def _plan_strip(adapter: Adapter, rule: Projections, report: ProjectionReport, result: Rewrite) -> _Plan:
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
    return _Plan(replace(result, action="stripped", hint=hint), frozenset(removed), metadata, config_text)


def _changed(adapter: Adapter, plan: _Plan) -> _Plan:
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


def _refused(adapter: Adapter, report: ProjectionReport, result: Rewrite) -> _Plan:
    if report.verdict == "unverified":
        reason = f"torch is not installed, so nothing was verified: {INSTALL_TORCH}"
        hint = "Or name the torch that will load the adapter with --for-torch VERSION."
    else:
        reason = report.reason or "the projections do not verify"
        hint = _one_copy_hint(adapter)
        if report.verdict == "copies-differ" or report.copies < 2:
            hint = KEEP
    return _Plan(replace(result, action="refused", reason=reason, hint=hint))


def _one_copy_hint(adapter: Adapter) -> str:
    return f"{_one_copy(adapter)} keeps what PEFT loads and removes the copies."


def _one_copy(adapter: Adapter) -> str:
    return f"adaptertool slim {shlex.quote(adapter.folder.address)} --keep-one-copy -o DIR"


def _without(adapter: Adapter, removed: Collection[str]) -> tuple[NewTensor, ...]:
    return in_order(kept(adapter.weights, (name for name in adapter.weights.tensors if name not in removed)))


def _findings(adapter: Adapter, report: ProjectionReport, rule: Projections) -> tuple[Finding, ...]:
    return tuple(findings_about(report, adapter, rule))
