"""SuperTuning: the largest weights of each layer are trained, at places that the base's weights decide."""

from __future__ import annotations

from adaptertool.methods.merging import LINEAR, MergeRule, low_rank, made_of
from adaptertool.methods.plain import OfTheBase, PlainMethod

SUPERTUNING = PlainMethod(
    "SUPERTUNING",
    "supertuning_",
    "r",
    merge=MergeRule(
        made=made_of("supertuning_lora_A.weight", "supertuning_lora_B.weight", "supertuning_values"),
        lengths=(("supertuning_lora_A.weight", 0, "r"),),
        kinds=LINEAR,
        fits=low_rank("supertuning_lora_B.weight", "supertuning_lora_A.weight"),
    ),
    of_the_base=(
        OfTheBase(
            r".*\.supertuning_indices",
            "The places of each layer's largest weights",
            "They stay, because a base that was loaded in another dtype, or changed, has its largest weights elsewhere.",
        ),
    ),
)
