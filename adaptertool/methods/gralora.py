"""GraLoRA: each layer's weight is cut into k x k blocks with a low-rank update each (`peft/tuners/gralora/`, PEFT 0.21.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptertool.methods.merging import MergeRule
from adaptertool.methods.plain import PlainMethod
from adaptertool.methods.shapes import integer, refuse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.methods.shapes import Place, Places, Settings, Shapes


def _refused(settings: Mapping[str, Any]) -> str | None:
    rank, blocks = settings.get("r"), settings.get("gralora_k")
    if not isinstance(rank, int) or not isinstance(blocks, int) or blocks <= 0 or rank % blocks:
        return (
            f"r is {rank!r} and gralora_k {blocks!r}: PEFT raises ValueError where the one is no multiple of the other"
        )
    return None


def _tensors(settings: Settings, place: Place, _: Places) -> Shapes:
    rank, blocks, hybrid = (
        integer(settings, "r", 1),
        integer(settings, "gralora_k", 1),
        integer(settings, "hybrid_r", 0),
    )
    refuse(
        place.out % blocks or place.into % blocks,
        f"a gralora_k of {blocks} does not divide the layer's {place.out} outputs and {place.into} inputs, and PEFT raises "
        "ValueError",
    )
    shapes = {
        "gralora_A": (blocks, place.into // blocks, rank),
        "gralora_B": (blocks, rank, place.out // blocks),
    }
    if not hybrid:
        return shapes
    return {
        **shapes,
        "gralora_A_general.weight": (hybrid, place.into),
        "gralora_B_general.weight": (place.out, hybrid),
    }


GRALORA = PlainMethod("GRALORA", "gralora_", "r", merge=MergeRule(tensors=_tensors, refused=_refused))
