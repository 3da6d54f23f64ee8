"""What is in a checkpoint, and what is in it needlessly."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adaptertool.checkpoint.adapter import check_unchanged, open_adapter
from adaptertool.checkpoint.bytes import two_readings
from adaptertool.checkpoint.finite import first_not_finite, still_not_finite
from adaptertool.checkpoint.target import open_target
from adaptertool.errors import UsageError
from adaptertool.findings import Finding, gravest_first
from adaptertool.merge.adapter.adapted import adapted_layers
from adaptertool.methods import method_of
from adaptertool.methods.base import ROLES, TRAINED_ROLES, Role
from adaptertool.methods.beside import copies_of_the_base
from adaptertool.methods.biases import lost_biases, words_about
from adaptertool.operations.projection_findings import findings_about
from adaptertool.operations.projections import ProjectionReport, examine, rule_for
from adaptertool.operations.result import Result
from adaptertool.progress import SILENT, Progress
from adaptertool.projection.loader import loader_for, parse_version, torch_is_installed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Literal

    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.methods.base import Note
    from adaptertool.projection.comparison import Level

HELD_BYTES = 64 << 20
"""Up to which size weights on the Hub are held in memory where all of them are looked at, instead of being read twice."""

FINITE_SAMPLE_BYTES = 64 << 20
"""How much of the tensors that are no projections a sample looks at for NaN and infinity, on disk."""


@dataclass(frozen=True)
class TargetReport:
    """Where a checkpoint was read from, and at what cost.

    Attributes:
        location: A path, or a repo.
        kind: On disk or on the Hub.
        revision: The commit that was read, for a repo.
        weights: The weights file.
        requests: HTTP requests that it took, for a repo.
        bytes_read: Bytes of files that were read.
    """

    location: str
    kind: Literal["local", "hub"]
    revision: str | None
    weights: str
    requests: int | None
    bytes_read: int


@dataclass(frozen=True)
class AdapterReport:
    """What the adapter is.

    Attributes:
        peft_type: The method.
        peft_version: The PEFT that wrote it, where it says so.
        base_model: What its config names as its base.
        base_revision: The revision of that.
        rank: The rank, for methods that have one.
        parameters: How many numbers were trained, each counted once; None for a method that this version does not know.
        targets: How many layers hold tensors of the method, by the last part of their names; empty where they name no layers.
    """

    peft_type: str
    peft_version: str | None
    base_model: str | None
    base_revision: str | None
    rank: int | None
    parameters: int | None
    targets: Mapping[str, int]


@dataclass(frozen=True)
class RoleSize:
    """How much of the file plays one role."""

    role: Role
    tensors: int
    bytes: int


@dataclass(frozen=True)
class Inspection(Result):
    """The result of `inspect`.

    Attributes:
        target: Where it was read from.
        adapter: What it is.
        file_bytes: The length of the weights file.
        tensors: How many tensors it holds.
        roles: What they are, and their size.
        projections: What was found out about tensors that need not be stored; None for a method that has none.
        findings: What is wrong or needless.
        notes: What is neither, and should be known: tensors that were not trained and have to stay.
    """

    target: TargetReport
    adapter: AdapterReport
    file_bytes: int
    tensors: int
    roles: tuple[RoleSize, ...]
    projections: ProjectionReport | None
    findings: tuple[Finding, ...]
    notes: tuple[Note, ...] = ()


def inspect(
    target: str | Path,
    *,
    verify: Level | None = None,
    for_torch: str | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | None = None,
    progress: Progress = SILENT,
) -> Inspection:
    """Inspect a checkpoint.

    Args:
        target: A folder, a weights file, or a Hub repo; see `open_target`.
        verify: How much of stored projections to compare with what torch draws: `none`, `sample` or `full`. By default
            `sample` where torch is installed or `for_torch` is given, else `none`.
        for_torch: The torch version that will load the adapter; by default the installed one.
        revision: For a repo, the branch, tag or commit.
        subfolder: The folder within the target.
        token: Access token for the Hub.
        progress: Who is told how far it got.

    Raises:
        AdapterToolError: the checkpoint can't be found, read or understood.
    """
    if verify not in (None, "none", "sample", "full"):
        raise UsageError(f"verify is {verify!r}", hint="One of none, sample and full.")
    if for_torch is not None:
        parse_version(for_torch)  # a version that makes no sense is refused whatever the checkpoint holds
    adapter = open_adapter(open_target(target, revision=revision, subfolder=subfolder, token=token))
    level: Level = verify or ("sample" if for_torch or torch_is_installed() else "none")
    projections, findings = examine_adapter(adapter, level, for_torch, progress)
    check_unchanged(adapter)
    return Inspection(
        target=describe_target(adapter),
        adapter=describe_adapter(adapter),
        file_bytes=adapter.weights.file_bytes,
        tensors=len(adapter.weights.tensors),
        roles=role_sizes(adapter),
        projections=projections,
        findings=gravest_first(findings),
        notes=method_of(adapter.config).notes(adapter.weights.tensors, adapter.config),
    )


def examine_adapter(
    adapter: Adapter, level: Level, for_torch: str | None, progress: Progress
) -> tuple[ProjectionReport | None, list[Finding]]:
    """The projections of an adapter, and all findings about it."""
    rule = rule_for(adapter, method_of(adapter.config))
    report, findings = None, []
    if rule is not None:
        proven, disproof = False, None
        if rule.shared and level != "none":
            from adaptertool.operations.base_layers import shapes_by_the_base

            proven, disproof = shapes_by_the_base(adapter, rule, ask_hub=level == "full")
        loader = lambda: loader_for(for_torch, ask=level == "full")  # noqa: E731
        report = examine(adapter, rule, level, loader, progress, shapes_proven=proven)
        if disproof is not None and not report.stored:
            report = replace(report, verification=level, reason=disproof)
        if disproof is not None and report.verdict in ("regenerable", "regenerable-elsewhere"):
            size = report.bytes - report.one_copy_bytes
            report = replace(report, verdict="not-regenerable", recipe=None, loads_with=(), removable_bytes=size)
            report = replace(report, fingerprint=None, reason=disproof)
        findings += findings_about(report, adapter, rule)
    if copies_of_the_base(adapter.weights.tensors, adapter.config):
        from adaptertool.operations.base_copies import finding_about

        findings += finding_about(adapter)
    if (why := method_of(adapter.config).loads_otherwise(adapter.config, adapter.weights.tensors)) is not None:
        findings.append(Finding("ADP305", f"{why}.", fix=_COMPARE))
    if (lost := lost_biases(adapter.config, method_of(adapter.config), adapter.weights.tensors)) is not None:
        words = words_about(adapter.config, lost)
        message = f"If the base has biases there: {words}. PEFT loads the base's own in their place."
        findings.append(Finding("ADP305", message, fix=_COMPARE))
    findings += _findings_about_values(adapter, level, _originals(report))
    if adapter.weights.format == "pickle":
        message = f"{adapter.weights_name} is a pickle; loading one can run code. It was opened without running any."
        findings.append(Finding("ADP302", message, fix="save the adapter again as safetensors"))
    return report, findings


_COMPARE = "compare outputs with ones from the training run"


def _originals(report: ProjectionReport | None) -> dict[str, str]:
    """The canonical tensor of each copy that was found to be the same bytes."""
    if report is None or report.verification != "full" or report.verdict in ("copies-differ", "unverified"):
        return {}
    return {copy: one.canonical for one in report.tensors for copy in one.copies}


def _findings_about_values(adapter: Adapter, level: Level, originals: Mapping[str, str]) -> list[Finding]:
    if level == "none":
        return []
    weights = adapter.weights
    if level == "full" and adapter.folder.kind == "hub":
        # Damage that is the same at every reading is none of the file's.
        if weights.file_bytes <= HELD_BYTES:
            weights.hold()
        else:
            weights.digests()
    roles = roles_of(adapter)
    names = [name for name, role in roles.items() if level == "full" or not role.startswith("projection")]
    budget = FINITE_SAMPLE_BYTES if adapter.folder.kind == "local" else 0
    looked_at = [name for name in names if weights.stored_as(name) == name and name not in originals]
    broken: dict[str, int] = {}
    parts = [(name, 0, weights.tensors[name].nbytes) for name in looked_at]
    with weights.ahead(parts) if level == "full" else nullcontext():
        for name in looked_at:
            size = weights.tensors[name].nbytes
            budget -= size
            if level != "full" and budget < 0:
                break
            index = first_not_finite(weights, name)
            if index is None:
                continue
            if not still_not_finite(weights, name, index):
                raise two_readings(name)
            broken[name] = index
    broken.update({copy: broken[name] for copy, name in originals.items() if name in broken})
    if not broken:
        return []
    name, index = next(iter(broken.items()))
    count = "1 tensor holds" if len(broken) == 1 else f"{len(broken)} tensors hold"
    message = f"{count} NaN or infinity, first {name} at element {index}."
    size = sum(weights.tensors[one].nbytes for one in broken)
    return [Finding("ADP301", message, tuple(broken), len(broken), size, "go back to an earlier checkpoint")]


def roles_of(adapter: Adapter) -> dict[str, Role]:
    """The role of each tensor, in the order of the file."""
    method = method_of(adapter.config)
    roles = {name: method.role(name, adapter.config) for name in adapter.weights.tensors}
    if method.projections is not None:
        for one in method.projections.stored(adapter.weights.tensors, adapter.config):
            if not method.projections.trained:
                roles[one.canonical] = "projection"
            roles.update(dict.fromkeys(one.copies, "projection-copy"))
    return roles


def role_sizes(adapter: Adapter) -> tuple[RoleSize, ...]:
    """Tensors and bytes by role; bytes that two names of a pickle share count once."""
    weights = adapter.weights
    count: dict[Role, int] = {}
    size: dict[Role, int] = {}
    counted: set[str] = set()
    for name, role in sorted(roles_of(adapter).items(), key=lambda item: ROLES.index(item[1])):
        count[role] = count.get(role, 0) + 1
        own = weights.tensors[name].nbytes if weights.stored_as(name) not in counted else 0
        counted.add(weights.stored_as(name))
        size[role] = size.get(role, 0) + own
    return tuple(RoleSize(role, count[role], size[role]) for role in ROLES if role in count)


def describe_target(adapter: Adapter) -> TargetReport:
    """Where it was read from, and what that cost so far."""
    folder = adapter.folder
    return TargetReport(
        folder.location, folder.kind, folder.revision, adapter.weights_name, folder.requests, folder.bytes_read
    )


def describe_adapter(adapter: Adapter) -> AdapterReport:
    """What its config and its tensors say it is."""
    config = adapter.config
    return AdapterReport(
        peft_type=config.peft_type,
        peft_version=config.text_or_none("peft_version"),
        base_model=config.text_or_none("base_model_name_or_path"),
        base_revision=config.text_or_none("revision"),
        rank=method_of(config).rank(config),
        parameters=_parameters(adapter),
        targets=_targets(adapter),
    )


def _targets(adapter: Adapter) -> dict[str, int]:
    layers = adapted_layers(adapter.weights.tensors.values(), method_of(adapter.config).prefixes)
    return dict(Counter(layer.module.rpartition(".")[2] for layer in layers))


def _parameters(adapter: Adapter) -> int | None:
    method, tensors = method_of(adapter.config), adapter.weights.tensors
    if not method.known:
        return None
    roles = roles_of(adapter).items()
    return sum(method.trained(tensors[name], adapter.config) for name, role in roles if role in TRAINED_ROLES)
