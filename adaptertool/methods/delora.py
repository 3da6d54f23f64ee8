"""DeLoRA: a normalised low-rank update, scaled by the norms of the base's weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptertool.methods.merging import LINEAR, MergeRule
from adaptertool.methods.plain import OfTheBase, PlainMethod
from adaptertool.methods.shapes import by_pattern, integer, rank_of

if TYPE_CHECKING:
    from adaptertool.methods.shapes import Place, Places, Settings, Shapes


def _tensors(settings: Settings, place: Place, _: Places) -> Shapes:
    integer(settings, "r", 1)
    rank = rank_of(settings, place.module)
    by_pattern(settings, "delora_lambda", "lambda_pattern", place.module)
    return {
        "delora_A": (rank, place.into),
        "delora_B": (place.out, rank),
        "delora_lambda": (1,),
        "delora_w_norm": (place.into,),
    }


DELORA = PlainMethod(
    "DELORA",
    "delora_",
    "r",
    merge=MergeRule(
        tensors=_tensors,
        kinds=LINEAR,
    ),
    of_the_base=(
        OfTheBase(
            r".*\.delora_w_norm",
            "The column norms of each layer's weight",
            "They stay, because the base may be loaded in another dtype, or changed, and then give others.",
        ),
    ),
)
