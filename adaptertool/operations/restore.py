"""The inverse of slim: what was stripped comes back, drawn by its recipe, copied from what stayed, or read from the base."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptertool.checkpoint.target import open_target
from adaptertool.checkpoint.weights import PICKLE_WEIGHTS, SAFETENSORS_WEIGHTS
from adaptertool.checkpoint.writing.serialize import NewTensor, NewWeights, joined, kept
from adaptertool.checkpoint.writing.writer import Change
from adaptertool.errors import CorruptError, UnsupportedError, UsageError
from adaptertool.methods import known_method_of
from adaptertool.methods.base import CannotDrawError
from adaptertool.operations.base_copies import METADATA_KEY as BASE_COPIES_KEY
from adaptertool.operations.base_copies import brought_back, recorded
from adaptertool.operations.projection_findings import findings_about
from adaptertool.operations.projections import examine
from adaptertool.operations.pull_request import pull_request_words
from adaptertool.operations.rewrite import Destination, Rewrite, read_whole, unchanged
from adaptertool.operations.shared_copies import METADATA_KEY as SHARED_COPIES_KEY
from adaptertool.operations.shared_copies import missing_copies
from adaptertool.progress import SILENT, Progress
from adaptertool.projection.fingerprint import METADATA_KEY, Fingerprint
from adaptertool.projection.loader import loader_for, parse_version

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.methods.base import Projections
    from adaptertool.operations.base_copies import BaseCopy
    from adaptertool.operations.projections import ProjectionReport
    from adaptertool.projection.recipe import Recipe


def restore(
    target: str | Path,
    *,
    output: str | Path | None = None,
    in_place: bool = False,
    push: bool = False,
    for_torch: str | None = None,
    base: str | None = None,
    dtype: str | None = None,
    dry_run: bool = False,
    force: bool = False,
    in_tree: bool = False,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | None = None,
    progress: Progress = SILENT,
) -> Rewrite:
    """Put the projections of a stripped checkpoint back: one canonical pair, which PEFT loads under any torch.

    They are drawn by the recipe in the fingerprint that slim left, and must have the SHA-256 that it names. A file without a
    fingerprint needs to be told what the fingerprint would say: which torch drew them, and the base model, whose layer
    shapes decide theirs.

    Args:
        target: A folder, a weights file, or a Hub repo; see `open_target`.
        output: The folder to write.
        in_place: Replace the files of the source.
        push: Open a pull request on the Hub repo.
        for_torch: Without a fingerprint: the torch version that drew the projections that the adapter was trained with. With
            one it decides nothing, and the result's hint says so where it contradicts.
        base: Without a fingerprint: the base model, of which headers are read.
        dtype: Without a fingerprint, where the bits depend on it: the dtype in which the base is loaded.
        dry_run: Draw and check, and write nothing.
        force: Overwrite an existing output.
        in_tree: The checkpoint is one of several in a tree, and `output` its place in another tree: checkpoints below it are
            not copied along.
        revision: For a repo, the branch, tag or commit.
        subfolder: The folder within the target.
        token: Access token for the Hub.
        progress: Who is told how far it got.

    Raises:
        AdapterToolError: the checkpoint can't be read, or the output not be written; nothing was changed.
    """
    if for_torch is not None:
        parse_version(for_torch)
    if dtype is not None:
        from adaptertool.projection.drawn import LOAD_DTYPES

        if dtype not in LOAD_DTYPES:
            raise UsageError(f"dtype is {dtype!r}", hint=f"One of {', '.join(LOAD_DTYPES)}.")
    place = open_target(target, revision=revision, subfolder=subfolder, token=token)
    destination = Destination(Path(output) if output else None, in_place, push, dry_run, force, in_tree)
    adapter = destination.open(place)
    destination.check(adapter)
    result = replace(unchanged(adapter, "restore"), dry_run=dry_run)
    rule = known_method_of(adapter.config).projections
    missing = _missing_of_the_base(adapter)
    tensors = missing_copies(adapter)
    if rule is None and not missing and not tensors:
        return replace(result, reason=f"{adapter.config.peft_type} has no projections that are drawn from a seed")
    drawing = None
    if rule is not None:
        report = examine(adapter, rule, "none", lambda: None)
        result = replace(result, projections=report, findings=tuple(findings_about(report, adapter, rule)))
        if report.stored and not missing and not tensors:
            return _set_flag(adapter, rule, report, result, destination, progress)
        drawing = rule if not report.stored and _was_stripped(adapter, missing) else None
    try:
        if drawing is not None:
            recipe, shapes, due = _what_to_draw(adapter, drawing, for_torch, base, dtype, token)
            drawing.basis(adapter.config, shapes, recipe.layout)  # PEFT must be able to load what is restored
            drawn, digests = _drawn(drawing, recipe, shapes, due)
            tensors += drawn
            hints = [*filter(None, (drawing.pair_alone, _not_as_named(recipe, for_torch)))]
            projections = replace(report, recipe=recipe, fingerprint=digests)
            result = replace(result, projections=projections, hint=" ".join(hints) or None)
        tensors += brought_back(adapter, missing, base, token) if missing else []
    except CannotDrawError as error:
        read_whole(adapter, progress)  # what is refused must be what the file says
        return replace(result, action="refused", reason=str(error), hint=error.hint)
    read_whole(adapter, progress)
    gone = (METADATA_KEY, BASE_COPIES_KEY, SHARED_COPIES_KEY)
    metadata = {key: value for key, value in (adapter.weights.metadata or {"format": "pt"}).items() if key not in gone}
    weights = NewWeights(joined(kept(adapter.weights, adapter.weights.tensors), tensors), metadata)
    pickled = adapter.weights.format == "pickle"
    change = Change(
        weights=weights,
        weights_name=SAFETENSORS_WEIGHTS if adapter.weights_name == PICKLE_WEIGHTS else adapter.weights_name,
        config_text=_flag_set(adapter, drawing, result),
        # With the flag still false PEFT ignores what is stored, and does what it did before.
        config_first=False,
        obsolete=(adapter.weights_name,) if pickled else (),
    )
    result = replace(
        result,
        action="restored",
        bytes_after=weights.file_bytes,
        tensors_changed=len(tensors),
        bytes_changed=sum(tensor.nbytes for tensor in tensors),
    )
    return destination.carry_out(adapter, change, result, pull_request_words, progress)


def _missing_of_the_base(adapter: Adapter) -> dict[str, BaseCopy]:
    """What the file was stripped of because its base has it, and that is not in it."""
    try:
        record = recorded(adapter.weights.metadata)
    except ValueError as error:
        raise CorruptError(
            f"the record of the base's tensors in {adapter.folder.location} can't be read: {error}",
            hint="Restore the file from a backup.",
        ) from error
    return {name: one for name, one in record.items() if name not in adapter.weights.tensors}


def _was_stripped(adapter: Adapter, missing: Mapping[str, BaseCopy]) -> bool:
    """Whether projections are to be drawn: not where only the base's tensors were stripped, and nothing tells how to draw."""
    return not missing or METADATA_KEY in (adapter.weights.metadata or {})


def _flag_set(adapter: Adapter, rule: Projections | None, result: Rewrite) -> str | None:
    """The config that makes PEFT load the projections; None where it needs no change."""
    if rule is None or rule.flag is None or result.projections is None or result.projections.flag:
        return None
    return adapter.config.with_value(rule.flag, True)


def _set_flag(
    adapter: Adapter,
    rule: Projections,
    report: ProjectionReport,
    result: Rewrite,
    destination: Destination,
    progress: Progress,
) -> Rewrite:
    """The projections are there; what may be missing is the flag that makes PEFT load them."""
    if report.flag or rule.flag is None:
        reason = "the file holds every copy that can be told of" if rule.trained else "the projections are in the file"
        return replace(result, reason=reason)
    change = Change(None, adapter.weights_name, adapter.config.with_value(rule.flag, True), config_first=True)
    reason = f"{rule.flag} becomes true: PEFT ignores the stored projections while it is false, and loads them then"
    hint = "Where PEFT drew others than those, with another torch or on a base in another dtype, the adapter's outputs change."
    result = replace(result, action="restored", reason=reason, hint=hint)
    return destination.carry_out(adapter, change, result, pull_request_words, progress)


def _what_to_draw(
    adapter: Adapter, rule: Projections, for_torch: str | None, base: str | None, dtype: str | None, token: str | None
) -> tuple[Recipe, dict[str, tuple[int, ...]], dict[str, str]]:
    """The recipe, the shapes, and the digests that the outcome must have.

    Raises:
        CannotDrawError: something is missing that would have to be guessed, with a hint.
    """
    try:
        fingerprint = Fingerprint.from_metadata(adapter.weights.metadata)
    except ValueError as error:
        raise CorruptError(
            f"the fingerprint in {adapter.folder.location} can't be read: {error}",
            hint="Restore the file from a backup, or name --for-torch and --base.",
        ) from error
    if fingerprint is None:
        from adaptertool.operations.unrecorded import recipe_without_fingerprint

        return recipe_without_fingerprint(adapter, rule, for_torch, base, dtype, token)
    if fingerprint.recipe.sampler is None:
        raise CannotDrawError("the projections were drawn by a torch whose sampler is none of the known ones")
    return fingerprint.recipe, fingerprint.shapes, fingerprint.digests


def _not_as_named(recipe: Recipe, for_torch: str | None) -> str | None:
    """What to know where the torch that the user names would have drawn others than the fingerprint says."""
    from adaptertool.projection.recipe import draws, why_not

    loader = loader_for(for_torch) if for_torch is not None else None
    if loader is None or draws(loader, recipe.generation):
        return None
    why = why_not(loader, recipe.generation)
    return f"--for-torch {for_torch} decides nothing where there is a fingerprint: {why}. Stored, they load alike everywhere."


def _drawn(
    rule: Projections, recipe: Recipe, shapes: Mapping[str, tuple[int, ...]], due: Mapping[str, str]
) -> tuple[list[NewTensor], dict[str, str]]:
    """Draw the projections, and hold them against the digests that are due, where there are any.

    Returns:
        The tensors, and the SHA-256 of each by kind.

    Raises:
        CannotDrawError: they have other digests, or nothing draws them.
        UnsupportedError: they would be larger than any model asks for.
    """
    from adaptertool.projection.dtypes import STORED_NAMES
    from adaptertool.projection.recipe import drawable
    from adaptertool.projection.reproduce import redrawn, too_large

    basis = rule.basis_of(recipe, shapes)
    if (large := too_large(basis)) is not None:
        raise UnsupportedError(large)
    if not drawable(basis, recipe.generation):
        raise CannotDrawError(f"no torch draws a {basis.name} basis in {recipe.generated_dtype} like this")
    tensors, digests = [], {}
    for kind, bits, digest in redrawn(basis, recipe):
        digests[kind] = digest
        if due.get(kind, digest) != digest:
            raise CannotDrawError(
                f"{kind} as the fingerprint's recipe draws it has SHA-256 {digest}, and the fingerprint says {due[kind]}",
                "The fingerprint was changed, or written by something else. Restore the file from a backup.",
            )
        name, dtype = rule.canonical_name(kind), STORED_NAMES[basis.fixed.get(kind, recipe.stored_dtype)]
        tensors.append(NewTensor(name, dtype, basis.shapes[kind], bits.nbytes, _stream_of(bits)))
    return tensors, digests


def _stream_of(bits: NDArray[Any]) -> Callable[[], Iterator[memoryview]]:
    def stream() -> Iterator[memoryview]:
        view = bits.view("uint8").data
        for begin in range(0, len(view), 1 << 20):
            yield view[begin : begin + (1 << 20)]

    return stream
