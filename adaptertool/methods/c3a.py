"""C3A: each layer's update is made of blocks that are circulant matrices (`peft/tuners/c3a/`, read at PEFT 0.21.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptertool.methods.merging import LINEAR, MergeRule
from adaptertool.methods.plain import PlainMethod
from adaptertool.methods.shapes import by_named_pattern, integer, refuse

if TYPE_CHECKING:
    from adaptertool.methods.shapes import Place, Places, Settings, Shapes


def _tensors(settings: Settings, place: Place, _: Places) -> Shapes:
    given = by_named_pattern(settings, "block_size", "block_size_pattern", place.module)
    block = integer(settings, "block_size", 1, given)
    refuse(
        place.out % block or place.into % block,
        f"a block_size of {block} does not divide the layer's {place.out} outputs and {place.into} inputs, and PEFT raises "
        "ValueError",
    )
    return {"c3a_kernel": (place.out // block, place.into // block, block)}


C3A = PlainMethod("C3A", "c3a_", merge=MergeRule(tensors=_tensors, kinds=LINEAR))
