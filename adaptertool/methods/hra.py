"""HRA: a chain of Householder reflections before each layer (`peft/tuners/hra/`, read at PEFT 0.21.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptertool.methods.merging import CONV, LINEAR, MergeRule
from adaptertool.methods.plain import PlainMethod
from adaptertool.methods.shapes import flattened, integer

if TYPE_CHECKING:
    from adaptertool.methods.shapes import Place, Places, Settings, Shapes


def _tensors(settings: Settings, place: Place, _: Places) -> Shapes:
    return {"hra_u": (flattened(place), integer(settings, "r", 1))}


HRA = PlainMethod(
    "HRA",
    "hra_",
    "r",
    merge=MergeRule(
        tensors=_tensors,
        kinds=LINEAR | CONV,
        normalised=("hra_u",),
        orthogonal=lambda settings: bool(settings.get("apply_GS")),
    ),
)
