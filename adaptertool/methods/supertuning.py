"""SuperTuning: the largest weights of each layer are trained, at places that the base's weights decide."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from adaptertool.methods.merging import ANY_PLACE, LINEAR, MergeRule
from adaptertool.methods.plain import OfTheBase, PlainMethod
from adaptertool.methods.shapes import elements, refuse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.methods.shapes import Place, Places, Settings, Shape, Shapes


def _refused(settings: Mapping[str, Any]) -> str | None:
    sparsity, rank, dropout = settings.get("sparsity"), settings.get("r"), settings.get("lora_dropout")
    if not isinstance(sparsity, (int, float)) or not 0 <= sparsity < 1:
        return f"sparsity is {sparsity!r}, and PEFT raises where it is not from 0 to below 1"
    if rank is not None and (not isinstance(rank, int) or rank <= 0):
        return f"r is {rank!r}, and PEFT raises where it is neither null nor above 0"
    if rank is None and settings.get("lora_alpha") is not None:
        return "lora_alpha is set and r is null, with which PEFT raises ValueError"
    if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        return f"lora_dropout is {dropout!r}, and PEFT raises where it is not from 0 to below 1"
    return None


def _tensors(settings: Settings, place: Place, _: Places) -> Shapes:
    """The low-rank factors come with an `r` alone, which is null by default."""
    numbers = int(elements(place) * (1 - settings["sparsity"]))
    refuse(numbers < 1, "its sparsity leaves nothing of the layer to train, and PEFT raises ValueError")
    shapes: dict[str, Shape] = {"supertuning_values": (numbers,), "supertuning_indices": (numbers,)}
    rank = settings.get("r")
    if rank is not None:
        shapes |= {
            "supertuning_lora_A.weight": (rank, place.into),
            "supertuning_lora_B.weight": (place.out, rank),
        }
    return shapes


def _places(_: Settings, name: str, __: object, shape: tuple[int, ...] | None) -> tuple[range, ...] | None:
    """One for each number, counted row after row."""
    if name != "supertuning_indices":
        return None
    return ANY_PLACE if shape is None else (range(math.prod(shape)),)


SUPERTUNING = PlainMethod(
    "SUPERTUNING",
    "supertuning_",
    "r",
    merge=MergeRule(
        tensors=_tensors,
        refused=_refused,
        kinds=LINEAR,
        places=_places,
    ),
    of_the_base=(
        OfTheBase(
            r".*\.supertuning_indices",
            "The places of each layer's largest weights",
            "They stay, because a base that was loaded in another dtype, or changed, has its largest weights elsewhere.",
        ),
    ),
)
