"""RoAd: pairs of each layer's outputs are rotated and scaled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptertool.methods.merging import BITSANDBYTES, LINEAR, MergeRule
from adaptertool.methods.plain import PlainMethod
from adaptertool.methods.shapes import integer, refuse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.methods.shapes import Place, Places, Settings, Shapes


def _refused(settings: Mapping[str, Any]) -> str | None:
    variant, size = settings.get("variant"), settings.get("group_size")
    if variant not in (*_ANGLES,):
        return f"PEFT knows no variant {variant!r} of RoAd, and raises ValueError"
    if not isinstance(size, int) or size <= 0 or size % 2:
        return f"group_size is {size!r}, and PEFT raises where it is no even number"
    return None


def _tensors(settings: Settings, place: Place, _: Places) -> Shapes:
    size = integer(settings, "group_size", 2)
    refuse(
        place.out % size,
        f"a group_size of {size} does not divide the layer's {place.out} outputs, and PEFT raises ValueError",
    )
    angles = (_ANGLES[settings["variant"]] * place.out // 2,)
    return {"road_theta": angles, "road_alpha": angles}


_ANGLES = {"road_1": 1, "road_2": 2, "road_4": 4}
"""How many angles each variant has for a pair of outputs."""

ROAD = PlainMethod(
    "ROAD",
    "road_",
    merge=MergeRule(tensors=_tensors, refused=_refused, kinds=LINEAR, quantised=BITSANDBYTES),
)
