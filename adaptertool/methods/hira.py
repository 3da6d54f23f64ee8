"""HiRA: a low-rank matrix that each layer's weight is multiplied with, number by number (`peft/tuners/hira/`, PEFT 0.21.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptertool.methods.merging import BITSANDBYTES, CONV, CONV1D, EMBEDDING, LINEAR, MergeRule
from adaptertool.methods.plain import PlainMethod
from adaptertool.methods.shapes import integer

if TYPE_CHECKING:
    from adaptertool.methods.shapes import Place, Places, Settings, Shapes


def _tensors(settings: Settings, place: Place, _: Places) -> Shapes:
    # Its layers take the config's r, whatever the rank_pattern (`dispatch_default`).
    rank = integer(settings, "r", 1)
    name = "hira_embedding" if place.kind == "embedding" else "hira"
    return {
        f"{name}_A": (rank, place.into, *place.kernel),
        f"{name}_B": (place.out, rank, *(1 for _ in place.kernel)),
    }


HIRA = PlainMethod(
    "HIRA",
    "hira_",
    "r",
    merge=MergeRule(
        tensors=_tensors,
        kinds=LINEAR | CONV1D | EMBEDDING | CONV,
        quantised=BITSANDBYTES,
        any_saved_module=True,
        scaled=False,
    ),
)
