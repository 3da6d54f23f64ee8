"""LoHa: an update that is the product, number by number, of two low-rank matrices (`peft/tuners/loha/`, PEFT 0.21.2)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from adaptertool.methods.merging import CONV, LINEAR, MergeRule
from adaptertool.methods.plain import PlainMethod
from adaptertool.methods.shapes import rank_of

if TYPE_CHECKING:
    from adaptertool.methods.shapes import Place, Places, Settings, Shape, Shapes


def _tensors(settings: Settings, place: Place, _: Places) -> Shapes:
    rank = rank_of(settings, place.module)
    shapes: dict[str, Shape] = {}
    for half in ("1", "2"):
        if settings.get("use_effective_conv2d") and math.prod(place.kernel) > 1:
            shapes[f"hada_t{half}"] = (rank, rank, *(*place.kernel, 1)[:2])
            shapes[f"hada_w{half}_a"] = (rank, place.out)
            shapes[f"hada_w{half}_b"] = (rank, place.into)
        else:
            shapes[f"hada_w{half}_a"] = (place.out, rank)
            shapes[f"hada_w{half}_b"] = (rank, place.into * math.prod(place.kernel))
    return shapes


LOHA = PlainMethod("LOHA", "hada_", "r", merge=MergeRule(tensors=_tensors, kinds=LINEAR | CONV))
