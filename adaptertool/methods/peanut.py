"""PEANuT: a small network computes each layer's update from its weight (`peft/tuners/peanut/`, read at PEFT 0.21.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptertool.methods.merging import LINEAR, MergeRule
from adaptertool.methods.plain import PlainMethod
from adaptertool.methods.shapes import integer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.methods.shapes import Place, Places, Settings, Shapes


def _refused(settings: Mapping[str, Any]) -> str | None:
    rank, depth = settings.get("r"), settings.get("depth")
    if isinstance(rank, int) and rank > 0 and isinstance(depth, int) and depth >= 0:
        return None
    return f"r is {rank!r} and depth {depth!r}, with which PEFT raises"


def _tensors(settings: Settings, place: Place, _: Places) -> Shapes:
    rank = integer(settings, "r", 1)
    names = (f"peanut_{part}.{index}.weight" for part in ("encoders", "decoders") for index in range(settings["depth"]))
    return {
        "peanut_A.weight": (rank, place.out),
        "peanut_B.weight": (place.out, rank),
        **dict.fromkeys(names, (rank, rank)),
    }


PEANUT = PlainMethod("PEANUT", "peanut_", "r", merge=MergeRule(tensors=_tensors, refused=_refused, kinds=LINEAR))
