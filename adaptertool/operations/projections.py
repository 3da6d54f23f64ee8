"""The projections of one adapter: how many, and whether they can be drawn again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from adaptertool.methods.base import CannotDrawError
from adaptertool.progress import SILENT, Progress
from adaptertool.projection.fingerprint import Fingerprint
from adaptertool.projection.loader import asked, torch_is_installed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.methods.base import Method, Projections
    from adaptertool.projection.basis import Basis
    from adaptertool.projection.comparison import Comparison, Level
    from adaptertool.projection.loader import Loader
    from adaptertool.projection.recipe import Recipe
    from adaptertool.projection.stored import Stored
    from adaptertool.projection.verify import Verdict

WORTH_A_RANGE = 4 << 20
"""Bytes of a file on the Hub that take about as long to read as one more range."""

INSTALL_TORCH = "pip install 'adaptertool[torch]'"


@dataclass(frozen=True)
class ProjectionReport:
    """What was found out about an adapter's projections.

    Attributes:
        stored: Whether they are in the file.
        copies: How many times; the shared pair counts as one.
        bytes: What all of them take up in the file.
        one_copy_bytes: What one pair takes up.
        removable_bytes: What could go: everything where PEFT draws the same bits again, else all copies but one.
        verification: How much of the file was compared.
        verdict: Whether the torch that will load the adapter draws these very bits.
        recipe: What draws them, where something is known that does.
        loads_with: The conditions under which PEFT draws them again, a sentence each.
        reason: Why the verdict is not `regenerable`.
        fingerprint: SHA-256 by kind: of what was stripped, or of what is stored after a full comparison.
        tensors: The stored projections.
        flag: Whether the config says that PEFT loads them from the file; true where it always does.
        trained: Whether they were trained: then they are no projections, and only copies of them can go.
        borrowed_perhaps: Whether nothing at hand shows that they are this adapter's own in shape, and not those of another one
            that was on the model before it.
        settled: Of a sample, whether the rest of the file can't change its "no": see `adaptertool.projection.settled`. False
            where that was not asked.
    """

    stored: bool
    copies: int = 0
    bytes: int = 0
    one_copy_bytes: int = 0
    removable_bytes: int = 0
    verification: Level = "none"
    verdict: Verdict = "unverified"
    recipe: Recipe | None = None
    loads_with: tuple[str, ...] = ()
    reason: str | None = None
    fingerprint: Mapping[str, str] | None = None
    tensors: tuple[Stored, ...] = ()
    flag: bool = True
    trained: bool = False
    borrowed_perhaps: bool = False
    settled: bool = False

    @property
    def reproduced(self) -> bool | None:
        """Whether PEFT draws the projections that were stripped again; None where they are stored or nothing was drawn."""
        if self.stored or self.fingerprint is None or self.verification == "none":
            return None
        return self.reason is None


def examine(
    adapter: Adapter,
    rule: Projections,
    level: Level,
    loader: Callable[[], Loader | None],
    progress: Progress = SILENT,
    *,
    shapes_proven: bool = False,
    settle: bool = False,
) -> ProjectionReport:
    """Find out about the projections of an adapter.

    Args:
        adapter: The adapter.
        rule: Its method's rule about them.
        level: How much to compare.
        loader: Gives the torch that will load the adapter, or None; asked only where there is something to compare.
        progress: Who is told how far it got.
        shapes_proven: Whether the base model is known to make PEFT draw these very shapes.
        settle: Whether to find out if a "no" of a sample is settled.

    Raises:
        CorruptError: a config value that the answer depends on makes no sense (ADP304); or the file has another digest than
            the one that is known for it.
    """
    tensors = adapter.weights.tensors
    stored = rule.stored(tensors, adapter.config)
    flag = rule.flag is None or adapter.config.flag(rule.flag, rule.flag_default)
    if not stored:
        return _examine_absent(adapter, rule, level, loader, flag)
    report = _unverified(adapter, rule, stored)
    if level == "none":
        return report
    from adaptertool.projection.settled import refuted
    from adaptertool.projection.verify import verify

    shapes = {one.kind: tensors[one.canonical].shape for one in stored}
    known = cannot = None
    # Before anything is compared: a config that makes no sense is no reason to read gigabytes.
    try:
        basis = _basis(adapter, rule, shapes)
        if basis is not None:
            if not shapes_proven:
                rule.check_layers(adapter.config, tensors)
            _check_dtypes(basis, {one.kind: tensors[one.canonical].dtype for one in stored})
            known = loader()
    except CannotDrawError as error:
        basis, cannot = None, str(error)
    comparison = _comparison(adapter, stored, level, progress)
    if basis is None or known is None:
        found = _compared(report, comparison, settle=settle)
        if found.verdict != "copies-differ":
            no_torch = "torch is not installed, so nothing says what will be drawn"
            found = replace(found, verdict="not-regenerable" if cannot else "unverified", settled=settle)
            found = replace(found, reason=cannot or no_torch)
        return replace(found, verification=level) if cannot else found
    outcome = verify(comparison, stored, basis, known)
    if known.concluded and outcome.verdict in ("regenerable-elsewhere", "not-regenerable"):
        # A "no" is not concluded from a version: torch itself is asked.
        itself = asked()
        outcome = outcome if itself.draws_like(known) else verify(comparison, stored, basis, itself)
    unproven = None if shapes_proven else rule.widest(shapes, copied=report.copies > 1)
    beyond = (*rule.conditions, *([f"{unproven}: slim --base BASE holds it against that."] if unproven else ()))
    removable = {"regenerable": report.bytes, "copies-differ": 0}.get(outcome.verdict, report.removable_bytes)
    # What another sampler draws, no damage gives.
    elsewhere = outcome.verdict == "regenerable-elsewhere"
    no = settle and outcome.verdict != "regenerable"
    return replace(
        report,
        verification=level,
        verdict=outcome.verdict,
        removable_bytes=removable,
        recipe=outcome.recipe,
        loads_with=(*outcome.loads_with, *beyond) if outcome.loads_with else (),
        reason=outcome.reason,
        fingerprint=outcome.digests or None,
        borrowed_perhaps=unproven is not None and report.copies < 2,
        settled=no and (elsewhere or refuted(comparison, stored, basis, known)),
    )


def _basis(adapter: Adapter, rule: Projections, shapes: Mapping[str, tuple[int, ...]]) -> Basis | None:
    """What the config says to draw in these shapes; None where it takes a torch to know, and there is none.

    Raises:
        CannotDrawError: nothing that is known.
        CorruptError: a config value makes no sense (ADP304).
    """
    if rule.needs_torch and not torch_is_installed():
        return None
    layout = rule.layout(adapter.config, shapes, lambda *extent: _values(adapter, *extent))
    return rule.basis(adapter.config, shapes, layout)


def _unverified(adapter: Adapter, rule: Projections, stored: tuple[Stored, ...]) -> ProjectionReport:
    """What is known of stored projections without a look at them."""
    tensors, weights = adapter.weights.tensors, adapter.weights
    one_copy = sum(tensors[one.canonical].nbytes for one in stored)
    everything = {weights.stored_as(name): tensors[name].nbytes for one in stored for name in one.tensors}
    return ProjectionReport(
        stored=True,
        copies=max(len(one.tensors) for one in stored),
        bytes=sum(everything.values()),
        one_copy_bytes=one_copy,
        removable_bytes=sum(everything.values()) - one_copy,
        tensors=stored,
        flag=rule.flag is None or adapter.config.flag(rule.flag, rule.flag_default),
        trained=rule.trained,
        loads_with=rule.conditions if rule.trained and one_copy < sum(everything.values()) else (),
    )


def _comparison(adapter: Adapter, stored: tuple[Stored, ...], level: Level, progress: Progress) -> Comparison:
    """What compares them; a file of which a digest is known has been read as a whole then, at level `full`."""
    from adaptertool.projection.comparison import Comparison

    weights, remote = adapter.weights, adapter.folder.kind == "hub"
    whole = None
    if level == "full" and remote:
        progress.phase("comparing projections", weights.file_bytes)
        whole = weights.digests(progress.advance, alike=[one.tensors for one in stored])
    comparison = Comparison(weights, level, progress.advance, remote, whole)
    if whole is None:
        names = dict.fromkeys(weights.stored_as(name) for one in stored for name in one.tensors)
        progress.phase("comparing projections", sum(comparison.bytes_of(name) for name in names))
    return comparison


def _compared(report: ProjectionReport, comparison: Comparison, *, settle: bool) -> ProjectionReport:
    """The report, with what comparing the copies with each other tells."""
    from adaptertool.projection.settled import copies_refuted
    from adaptertool.projection.verify import differing_copy

    difference = differing_copy(comparison, report.tensors)
    if difference is None:
        return report
    return replace(
        report,
        verification=comparison.level,
        verdict="copies-differ",
        reason=difference,
        removable_bytes=0,
        settled=settle and copies_refuted(comparison, report.tensors),
    )


def sample_is_cheap(adapter: Adapter, rule: Projections) -> bool:
    """Whether a sample of stored projections costs little beside reading all of the file: on the Hub, where it is large."""
    from adaptertool.projection.comparison import Comparison

    if adapter.folder.kind != "hub":
        return False
    comparison = Comparison(adapter.weights, "sample", remote=True)
    stored = rule.stored(adapter.weights.tensors, adapter.config)
    ranges = sum(len(comparison.extents(one.canonical)) * (1 + len(comparison.chosen(one.copies))) for one in stored)
    return ranges * WORTH_A_RANGE < adapter.weights.file_bytes


def rule_for(adapter: Adapter, method: Method) -> Projections | None:
    """A method's rule about tensors that need not be stored, where this file can hold some."""
    rule = method.projections
    if rule is not None and rule.trained:
        shared = any(one.copies for one in rule.stored(adapter.weights.tensors, adapter.config))
        return rule if shared else None
    return rule


def _check_dtypes(basis: Basis, stored: Mapping[str, str]) -> None:
    """Refuse dtypes that PEFT does not write these projections in.

    Args:
        basis: What the config draws.
        stored: safetensors' name of the dtype by kind.

    Raises:
        CannotDrawError: there is one.
    """
    from adaptertool.projection.dtypes import DTYPE_NAMES, STORED_NAMES

    wrong = {dtype for kind, dtype in stored.items() if dtype != STORED_NAMES.get(basis.fixed.get(kind, ""), dtype)}
    cast = {dtype for kind, dtype in stored.items() if kind not in basis.fixed}
    if not all(basis.chains(basis.generations[0], DTYPE_NAMES.get(dtype, "")) for dtype in cast):
        wrong |= cast
    if len(cast) > 1 and not wrong:
        # Single layers that transformers keeps in float32, as T5 does in float16, are drawn through a cast of their own.
        raise CannotDrawError(
            f"projections of dtypes {' and '.join(sorted(cast))} are stored, which one recipe can't tell of"
        )
    if wrong:
        raise CannotDrawError(f"projections of dtype {' and '.join(sorted(wrong))} are not what PEFT writes")


def _values(adapter: Adapter, name: str, start: int, stop: int) -> NDArray[Any]:
    """See `adaptertool.methods.base.Values`.

    Raises:
        CannotDrawError: the tensor is of a dtype that no projection has, or ends before that.
    """
    import numpy as np

    from adaptertool.projection.dtypes import BIT_TYPES, DTYPE_NAMES, from_bits

    tensor = adapter.weights.tensors[name]
    dtype = DTYPE_NAMES.get(tensor.dtype)
    if dtype is None or stop > tensor.numel:
        raise CannotDrawError(f"{name} ({tensor.dtype}, {tensor.numel} elements) is not what PEFT writes")
    width = np.dtype(BIT_TYPES[dtype]).itemsize
    pieces = adapter.weights.stream(name, start * width, (stop - start) * width)
    return from_bits(np.frombuffer(b"".join(bytes(piece) for piece in pieces), dtype=BIT_TYPES[dtype]), dtype)


def _examine_absent(
    adapter: Adapter, rule: Projections, level: Level, loader: Callable[[], Loader | None], flag: bool
) -> ProjectionReport:
    report = ProjectionReport(stored=False, verdict="absent", flag=flag)
    try:
        fingerprint = Fingerprint.from_metadata(adapter.weights.metadata)
    except ValueError as error:
        return replace(report, reason=f"the fingerprint in the file can't be read: {error}")
    if fingerprint is None:
        return report
    report = replace(
        report, recipe=fingerprint.recipe, fingerprint=fingerprint.digests, loads_with=fingerprint.loads_with
    )
    if level == "none":
        return report
    known = loader()
    if known is None:
        return replace(report, reason="torch is not installed, so nothing says what will be drawn")
    from adaptertool.projection.reproduce import can_be_sampled, too_large, why_not_reproduced

    try:
        if rule.needs_torch and not torch_is_installed():
            return report
        basis = rule.basis(adapter.config, fingerprint.shapes, fingerprint.recipe.layout)
    except CannotDrawError as error:
        reason = f"the config draws another basis than the one that was stripped: {error}"
        return replace(report, verification=level, reason=reason)
    if level == "sample" and too_large(basis) is None and not can_be_sampled(basis):
        return report
    why_not = why_not_reproduced(fingerprint, basis, known, whole=level == "full")
    if why_not is not None and known.concluded:
        why_not = why_not_reproduced(fingerprint, basis, asked(), whole=False)
    return replace(report, verification=level, reason=why_not)
