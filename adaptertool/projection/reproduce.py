"""Drawing stripped projections again, held against the fingerprint that they left."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from adaptertool.projection.drawn import stored_bits
from adaptertool.projection.recipe import drawable, draws, why_not

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from adaptertool.projection.basis import Basis
    from adaptertool.projection.fingerprint import Fingerprint
    from adaptertool.projection.loader import Loader
    from adaptertool.projection.recipe import Recipe

SAMPLE_ELEMENTS = 4 << 20
"""Projections up to this many elements are drawn and hashed even where only a sample is asked for."""

SAMPLE_FIRST_ELEMENTS = 64 << 20
"""The largest projection that is drawn for a sample at all."""


MAX_ELEMENTS = 1 << 31
"""The largest projection that is drawn on the word of a fingerprint: 8.6 GB in float32, more than any model asks for."""


def too_large(basis: Basis, most: int = MAX_ELEMENTS) -> str | None:
    """Which projection of a basis has more elements than are drawn, in words; None where all can be."""
    for kind, count in _sizes(basis):
        if count > most:
            return f"{kind} would have {count:,} elements, more than any model asks for"
    return None


def can_be_sampled(basis: Basis) -> bool:
    """Whether the projection that is drawn first is small enough to draw it for a sample."""
    return _sizes(basis)[0][1] <= SAMPLE_FIRST_ELEMENTS


def sha256(bits: NDArray[Any]) -> str:
    """Of an array's bytes, in hexadecimal."""
    return hashlib.sha256(bits.view("uint8").data).hexdigest()


def redrawn(basis: Basis, recipe: Recipe) -> Iterator[tuple[str, NDArray[Any], str]]:
    """Draw projections by a recipe: kind, bits as they were stored, and their SHA-256."""
    for kind, projection in basis.draw(recipe.generation):
        bits = stored_bits(projection, recipe.casts)
        yield kind, bits, sha256(bits)


def why_not_reproduced(fingerprint: Fingerprint, basis: Basis, loader: Loader, *, whole: bool) -> str | None:
    """Why PEFT with this torch does not draw the projections that were stripped.

    Args:
        fingerprint: What they left.
        basis: What the config says to draw now, in the fingerprint's shapes.
        loader: The torch that will load the adapter.
        whole: Whether large projections are drawn too.

    Returns:
        The reason in a sentence; None where it draws them, as far as was asked.
    """
    recipe = fingerprint.recipe
    if (basis.key, basis.name) != (recipe.key, recipe.basis):
        return (
            f"the config draws another basis ({basis.name}, from seed {basis.key}) than the one that was stripped "
            f"({recipe.basis}, from seed {recipe.key})"
        )
    if recipe.sampler is not None and not drawable(basis, recipe.generation):
        return f"no torch draws a {basis.name} basis in {recipe.generated_dtype} with the sampler {recipe.sampler}"
    if (large := too_large(basis)) is not None:
        return large
    if not draws(loader, recipe.generation):
        return why_not(loader, recipe.generation)
    own = loader.installed and (whole or recipe.sampler is None)
    drawing = basis.draw_with_torch(recipe.generated_dtype) if own else basis.draw(recipe.generation)
    for kind, projection in drawing:
        digest = sha256(stored_bits(projection, recipe.casts))
        due = fingerprint.tensors[kind].sha256
        if digest != due:
            return f"{kind} as {loader.name} draws it has SHA-256 {digest}, and the fingerprint says {due}"
        following = [size for other, size in _sizes(basis) if other != kind]
        if not whole and following and max(following) > SAMPLE_ELEMENTS:
            break
    return None


def _sizes(basis: Basis) -> list[tuple[str, int]]:
    from math import prod

    return [(kind, prod(shape)) for kind, shape in basis.shapes.items()]
