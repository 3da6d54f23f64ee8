"""SuperTuning: the largest weights of each layer are trained, at places that the base's weights decide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptertool.methods.merging import LINEAR, MergeRule, low_rank
from adaptertool.methods.plain import OfTheBase, PlainMethod

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.checkpoint.header import TensorInfo


def _made(config: Mapping[str, Any], _: Mapping[str, TensorInfo]) -> tuple[str, ...]:
    """The low-rank factors come with an `r` alone, which is null by default (`update_layer` in PEFT 0.21.2)."""
    factors = () if config.get("r") is None else ("supertuning_lora_A.weight", "supertuning_lora_B.weight")
    return (*factors, "supertuning_values")


SUPERTUNING = PlainMethod(
    "SUPERTUNING",
    "supertuning_",
    "r",
    merge=MergeRule(
        made=_made,
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
