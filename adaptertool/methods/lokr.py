"""LoKr: an update that is a Kronecker product, of which each factor can be a product of low rank itself."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from adaptertool.methods.merging import CONV, LINEAR, MergeRule
from adaptertool.methods.plain import PlainMethod
from adaptertool.methods.shapes import integer, rank_of

if TYPE_CHECKING:
    from adaptertool.methods.shapes import Place, Places, Settings, Shape, Shapes


def _tensors(settings: Settings, place: Place, _: Places) -> Shapes:
    """Each factor is whole where the rank is at least half of its longer side, and else a product of low rank."""
    rank = rank_of(settings, place.module)
    factor = integer(settings, "decompose_factor")
    (out_1, out_2), (in_1, in_2) = _factors(place.out, factor), _factors(place.into, factor)
    shapes: dict[str, Shape] = {}
    if settings.get("decompose_both") and rank < max(out_1, in_1) / 2:
        shapes |= {"lokr_w1_a": (out_1, rank), "lokr_w1_b": (rank, in_1)}
    else:
        shapes["lokr_w1"] = (out_1, in_1)
    if rank >= max(out_2, in_2) / 2:
        shapes["lokr_w2"] = (out_2, in_2, *place.kernel)
    elif settings.get("use_effective_conv2d") and place.kernel and place.kernel[0] != 1:
        shapes["lokr_t2"] = (rank, rank, *(*place.kernel, 1)[:2])
        shapes |= {"lokr_w2_a": (rank, out_2), "lokr_w2_b": (rank, in_2)}
    else:
        shapes |= {"lokr_w2_a": (out_2, rank), "lokr_w2_b": (rank, in_2 * math.prod(place.kernel))}
    return shapes


def _factors(dimension: int, factor: int) -> tuple[int, int]:
    """Two numbers whose product is the dimension, as `factorization` in `peft/tuners/lokr/layer.py` finds them."""
    if factor > 0 and dimension % factor == 0:
        return factor, dimension // factor
    if factor == -1:
        factor = dimension
    small, large = 1, dimension
    length = small + large
    while small < large:
        next_small = small + 1
        while dimension % next_small:
            next_small += 1
        next_large = dimension // next_small
        if next_small + next_large > length or next_small > factor:
            break
        small, large = next_small, next_large
    return (large, small) if small > large else (small, large)


LOKR = PlainMethod("LOKR", "lokr_", "r", merge=MergeRule(tensors=_tensors, kinds=LINEAR | CONV))
