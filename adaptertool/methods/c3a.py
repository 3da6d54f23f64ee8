"""C3A: each layer's update is made of blocks that are circulant matrices (`peft/tuners/c3a/`, read at PEFT 0.21.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptertool.methods.merging import LINEAR, MergeRule
from adaptertool.methods.plain import PlainMethod
from adaptertool.methods.shapes import by_named_pattern, integer, refuse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.methods.shapes import Place, Places, Settings, Shapes


def _refused(settings: Mapping[str, Any]) -> str | None:
    how = settings.get("init_weights")
    if isinstance(how, bool) or how in ("xavier_uniform", "kaiming_uniform", "gaussian"):
        return None
    return f"PEFT knows no init_weights {how!r} for C3A, and raises ValueError"


def _tensors(settings: Settings, place: Place, _: Places) -> Shapes:
    given = by_named_pattern(settings, "block_size", "block_size_pattern", place.module)
    block = integer(settings, "block_size", 1, given)
    refuse(
        place.out % block or place.into % block,
        f"a block_size of {block} does not divide the layer's {place.out} outputs and {place.into} inputs, and PEFT raises "
        "ValueError",
    )
    return {"c3a_kernel": (place.out // block, place.into // block, block)}


C3A = PlainMethod("C3A", "c3a_", merge=MergeRule(tensors=_tensors, refused=_refused, kinds=LINEAR))
