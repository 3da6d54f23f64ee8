"""Is a "no" that a sample gives settled, or may one damaged answer of a server have led to it?

A sample reads ranges of a file that no digest proves. Two of them that lie farther apart than one answer reaches are not
damaged by one fault: where both contradict what is due, the rest of the file can't change the answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from adaptertool.checkpoint.hub.ahead import SEGMENT
from adaptertool.projection.comparison import StoredReference
from adaptertool.projection.dtypes import DTYPE_NAMES
from adaptertool.projection.verify import DrawnReference, drawing, in_order

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from adaptertool.projection.basis import Basis
    from adaptertool.projection.comparison import Comparison, Reference
    from adaptertool.projection.loader import Loader
    from adaptertool.projection.stored import Stored


def refuted(comparison: Comparison, stored: Sequence[Stored], basis: Basis, loader: Loader) -> bool:
    """Whether every known way of drawing is contradicted in places that no single answer reaches.

    Args:
        comparison: A sample.
        stored: The projections, by kind.
        basis: What the config says to draw.
        loader: The torch that will load the adapter.
    """
    dtypes = (
        DTYPE_NAMES[comparison.weights.tensors[one.canonical].dtype] for one in stored if one.kind not in basis.fixed
    )
    cast = next(dtypes, None)
    for generation in in_order(basis, loader):
        drawn = dict(drawing(comparison, stored, basis, generation, loader))
        for casts in basis.chains(generation, cast or generation.dtype):
            references = {kind: DrawnReference(one, casts) for kind, one in drawn.items()}
            if not _apart(list(_contradictions(comparison, stored, references))):
                return False
    return True


def copies_refuted(comparison: Comparison, stored: Sequence[Stored]) -> bool:
    """Whether copies differ from what they are copies of in places that no single answer reaches.

    Args:
        comparison: A sample.
        stored: What should be shared, by kind.
    """
    return _apart(list(_contradictions(comparison, stored, {})))


def _contradictions(
    comparison: Comparison, stored: Sequence[Stored], references: Mapping[str, Reference]
) -> Iterator[tuple[int, ...]]:
    """For each range that is not as it is due, where in the file the damage would have to be that explains it."""
    tensors = comparison.weights.tensors
    for one in stored:
        canonical = tensors[one.canonical]
        reference = references.get(one.kind) or StoredReference(comparison, one.canonical)
        itself = () if isinstance(reference, StoredReference) else (one.canonical,)
        same = (canonical.dtype, canonical.shape)
        names = [name for name in comparison.chosen(one.copies) if (tensors[name].dtype, tensors[name].shape) == same]
        for start, stop in comparison.extents(one.canonical):
            due = reference.bits(start, stop)
            for name in (*itself, *names):
                if not np.array_equal(comparison.bits(name, start, stop), due):
                    culprits = (name,) if itself else (name, one.canonical)
                    yield tuple(tensors[culprit].start + start * due.itemsize for culprit in culprits)


def _apart(contradictions: Sequence[tuple[int, ...]]) -> bool:
    """Whether there are some, and no single damaged range explains all of them."""
    return bool(contradictions) and not any(
        all(any(abs(place - other) <= SEGMENT for other in places) for places in contradictions)
        for place in contradictions[0]
    )
