"""BOFT: each layer's inputs are rotated block by block, and its outputs scaled.

Source: `peft/tuners/boft/`, read at 0.21.2. The butterfly factors need an extension that is compiled for CUDA; without it
there is one, whatever the config says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptertool.methods.merging import BACKENDS, CONV, LINEAR, MergeRule
from adaptertool.methods.plain import PlainMethod
from adaptertool.methods.shapes import flattened, integer, refuse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.methods.shapes import Place, Places, Settings, Shapes


def _refused(settings: Mapping[str, Any]) -> str | None:
    given = [field for field in ("boft_block_size", "boft_block_num") if settings.get(field) != 0]
    if len(given) == 1:
        return None
    return "one of boft_block_size and boft_block_num has to be 0 and the other not, or PEFT raises ValueError"


def _tensors(settings: Settings, place: Place, _: Places) -> Shapes:
    inputs = flattened(place)
    size, number = integer(settings, "boft_block_size"), integer(settings, "boft_block_num")
    given = size or number
    refuse(inputs % given, f"its blocks do not divide the layer's {inputs} inputs, and PEFT raises ValueError")
    size, number = size or inputs // number, number or inputs // size
    refuse(size < 0, f"a block size of {size} makes PEFT raise")
    factors = settings.get("boft_n_butterfly_factor")
    several = isinstance(factors, int) and factors > 1
    return {
        "boft_R": (None if several else 1, number, size, size),
        "boft_s": (1, place.out) if place.kernel else (place.out, 1),
    }


BOFT = PlainMethod(
    "BOFT",
    "boft_",
    merge=MergeRule(tensors=_tensors, refused=_refused, kinds=LINEAR | CONV, quantised=BACKENDS),
)
