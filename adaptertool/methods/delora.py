"""DeLoRA: a normalised low-rank update, scaled by the norms of the base's weight."""

from __future__ import annotations

from adaptertool.methods.merging import LINEAR, MergeRule, low_rank, made_of
from adaptertool.methods.plain import OfTheBase, PlainMethod

DELORA = PlainMethod(
    "DELORA",
    "delora_",
    "r",
    merge=MergeRule(
        made=made_of("delora_A", "delora_B", "delora_lambda"),
        lengths=(("delora_A", 0, "r"), ("delora_B", 1, "r")),
        kinds=LINEAR,
        fits=low_rank("delora_B", "delora_A"),
    ),
    of_the_base=(
        OfTheBase(
            r".*\.delora_w_norm",
            "The column norms of each layer's weight",
            "They stay, because the base may be loaded in another dtype, or changed, and then give others.",
        ),
    ),
)
