"""Are the stored projections what a known recipe draws? One drawn basis is in memory at a time."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from adaptertool.projection.comparison import StoredReference
from adaptertool.projection.drawn import Drawn, load_dtypes, stored_bits
from adaptertool.projection.dtypes import DTYPE_NAMES, FLOATS
from adaptertool.projection.generation import Generation
from adaptertool.projection.recipe import Recipe, conditions, draws, recipe_for, why_not

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from adaptertool.projection.basis import Basis
    from adaptertool.projection.comparison import Comparison, Difference, Level, Reference
    from adaptertool.projection.loader import Loader
    from adaptertool.projection.stored import Stored

Verdict = Literal["regenerable", "regenerable-elsewhere", "not-regenerable", "copies-differ", "unverified", "absent"]


@dataclass(frozen=True)
class Verification:
    """What was found out about stored projections.

    Attributes:
        level: How much was compared.
        verdict: The answer.
        recipe: What draws these bits, where something does.
        loads_with: The conditions under which PEFT draws them again, a sentence each.
        reason: Why the verdict is not `regenerable`, in a sentence.
        digests: SHA-256 of each kind's canonical tensor; only after a full comparison.
    """

    level: Level
    verdict: Verdict
    recipe: Recipe | None = None
    loads_with: tuple[str, ...] = ()
    reason: str | None = None
    digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DrawnReference:
    """Bits that were drawn."""

    drawn: Drawn
    casts: tuple[str, ...]

    def bits(self, start: int, stop: int) -> NDArray[Any]:
        """Drawn, and cast."""
        return stored_bits(self.drawn, self.casts, start, stop)


@dataclass(frozen=True)
class _Match:
    """A generation and a chain of casts that give the canonical tensors."""

    generation: Generation
    casts: tuple[str, ...]
    references: Mapping[str, DrawnReference]
    digests: Mapping[str, str]


def verify(comparison: Comparison, stored: Sequence[Stored], basis: Basis, loader: Loader) -> Verification:
    """Compare stored projections with what the known recipes draw.

    Args:
        comparison: The file, and how much of it to compare.
        stored: Its projections, by kind, in dtypes of `DTYPE_NAMES`.
        basis: What the config says to draw, in the shapes that the file has.
        loader: The torch that will load the adapter.
    """
    level = comparison.level
    comparison.prefetch(name for one in stored for name in (one.canonical, *comparison.chosen(one.copies)))
    match, nearest = _identify(comparison, stored, basis, loader)
    if match is None:
        difference = differing_copy(comparison, stored)
        if difference is not None:
            return Verification(level, "copies-differ", reason=difference)
        return Verification(level, "not-regenerable", reason=f"no known recipe draws them; {nearest}")
    recipe = recipe_for(basis, match.generation, match.casts)
    difference = differing_copy(comparison, stored, match.references)
    if difference is not None:
        return Verification(level, "copies-differ", recipe, reason=difference)
    drawn = [reference.drawn for reference in match.references.values()]
    cast = any(kind not in basis.fixed for kind in basis.shapes) and match.generation.dtype in FLOATS
    loads_with = (*conditions(recipe, load_dtypes(drawn, match.casts) if cast else None), *basis.requires)
    if draws(loader, recipe.generation):
        return Verification(level, "regenerable", recipe, loads_with, digests=match.digests)
    reason = why_not(loader, recipe.generation)
    return Verification(level, "regenerable-elsewhere", recipe, loads_with, reason, match.digests)


def differing_copy(
    comparison: Comparison, stored: Sequence[Stored], drawn: Mapping[str, Reference] | None = None
) -> str | None:
    """Compare every copy with its canonical tensor.

    Args:
        comparison: The file, and how much of it to compare.
        stored: Its projections, by kind.
        drawn: Bits that are known to be those of the canonical tensors, so that they are not read again.

    Returns:
        The first difference, in words; None where the copies are all the same.
    """
    weights = comparison.weights
    for one in stored:
        canonical = weights.tensors[one.canonical]
        for copy in one.copies:
            info = weights.tensors[copy]
            if (info.dtype, info.shape) != (canonical.dtype, canonical.shape):
                return f"{copy} is {info.dtype} {info.shape}, {one.canonical} {canonical.dtype} {canonical.shape}"
        reference = (drawn or {}).get(one.kind) or StoredReference(comparison, one.canonical)
        if comparison.whole is not None:
            due = comparison.whole[one.canonical]
            wrong = next((copy for copy in one.copies if comparison.whole[copy] != due), None)
            difference = comparison.known_difference(wrong, reference) if wrong is not None else None
        else:
            same = weights.stored_as(one.canonical)
            copies = [copy for copy in comparison.chosen(one.copies) if weights.stored_as(copy) != same]
            difference = comparison.first_difference(copies, reference)
        if difference is not None:
            return str(difference)
    return None


def _identify(
    comparison: Comparison, stored: Sequence[Stored], basis: Basis, loader: Loader
) -> tuple[_Match | None, Difference | None]:
    """Find the generation and the casts that give the canonical tensors; else the nearest miss."""
    canonical = {one.kind: one.canonical for one in stored}
    dtypes = {one.kind: DTYPE_NAMES[comparison.weights.tensors[one.canonical].dtype] for one in stored}
    cast = [dtype for kind, dtype in dtypes.items() if kind not in basis.fixed]
    nearest: tuple[int, int, Difference] | None = None
    for generation in in_order(basis, loader):
        drawn = drawing(comparison, stored, basis, generation, loader)
        chains = basis.chains(generation, cast[0] if cast else generation.dtype)
        references: dict[str, DrawnReference] = {}
        digests: dict[str, str] = {}
        for position, (kind, projection) in enumerate(drawn):
            fitting = []
            for casts in chains:
                reference = DrawnReference(projection, casts)
                miss, digest = _first_miss(comparison, canonical[kind], reference)
                if miss is not None:
                    # The farther a drawing gets before it differs, and the less it differs then, the nearer it is.
                    if nearest is None or (-position, miss.among) < nearest[:2]:
                        nearest = -position, miss.among, miss
                    continue
                fitting.append(casts)
                if kind not in references:
                    references[kind] = reference
                    digests.update({kind: digest} if digest else {})
                if position == len(basis.shapes) - 1:
                    break
            chains = fitting
            if not chains:
                break
        if chains:
            # Each kind's digest is of the first chain that fitted it, which gives the bits of the others that fit.
            final = {kind: DrawnReference(one.drawn, chains[0]) for kind, one in references.items()}
            return _Match(generation, chains[0], final, digests), None
    return None, nearest[2] if nearest else None


def drawing(
    comparison: Comparison, stored: Sequence[Stored], basis: Basis, generation: Generation, loader: Loader
) -> Iterator[tuple[str, Drawn]]:
    """Draw what is compared."""
    own = loader.installed and draws(loader, generation)
    # A sample is content with the rules of the known samplers.
    if own and (comparison.level == "full" or generation.sampler is None):
        return basis.draw_with_torch(generation.dtype)
    if comparison.level == "full":
        return basis.draw(generation)
    return basis.draw_ranges(generation, {one.kind: comparison.extents(one.canonical) for one in stored})


def _first_miss(comparison: Comparison, tensor: str, reference: DrawnReference) -> tuple[Difference | None, str | None]:
    """The first difference of a tensor from the bits due, or None; and their SHA-256, after a full comparison."""
    if comparison.level != "full":
        return comparison.first_difference([tensor], reference), None
    due = hashlib.sha256()
    if comparison.whole is None:
        return comparison.first_difference([tensor], reference, due), due.hexdigest()
    for start, stop in comparison.spans(tensor):
        due.update(reference.bits(start, stop).view(np.uint8).data)
    if due.hexdigest() == comparison.whole[tensor]:
        return None, due.hexdigest()
    return comparison.known_difference(tensor, reference), None


def in_order(basis: Basis, loader: Loader) -> list[Generation]:
    """Every way of drawing it, the loader's own first."""
    known = sorted(basis.generations, key=lambda generation: not draws(loader, generation))
    if loader.installed and not draws(loader, known[0]):
        return [Generation(loader.sampler, None, loader.dtype), *known]
    return known
