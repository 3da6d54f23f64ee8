"""X-LoRA: a classifier that weighs several LoRA adapters by the input.

Source: `peft/tuners/xlora/model.py`, read at 0.21.2. The merge adds the experts without their weights. It does not raise where
the config calls the experts other than `0`, `1`, …, the numbers under which PEFT loads them: then it adds nothing at all, and
the model that is not merged raises KeyError when it is run.

From the file PEFT leaves out what has the name of another adapter in its own (`_filter_state_dict_for_adapter_name` in
`peft/utils/save_and_load.py`): the classifier is a sequence of layers whose numbers can be those of experts, as 0 always is.
All of the trained model's tensors, saved under the names in its `state_dict()`, load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptertool.methods.merging import MergeRule
from adaptertool.methods.plain import PlainMethod

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

CLASSIFIER = "base_model.internal_xlora_classifier.layers"


def _lost(config: Mapping[str, Any], names: Collection[str]) -> str | None:
    """Which layers of the classifier the file lacks; between two are an activation and, with `xlora_dropout_p`, a dropout."""
    depth, dropout = config.get("xlora_depth", 1), config.get("xlora_dropout_p", 0.2)
    if type(depth) is not int or not 0 < depth <= _DEEPEST or not isinstance(dropout, (int, float)):
        return None
    layers = range(0, depth * (step := 3 if dropout > 0 else 2), step)
    missing = [str(number) for number in layers if f"{CLASSIFIER}.{number}.weight" not in names]
    if not missing:
        return None
    them = ("Layer", "is", "it") if len(missing) == 1 else ("Layers", "are", "them")
    return (
        f"{them[0]} {' and '.join(missing)} of the classifier {them[1]} not in the file: PEFT makes {them[2]} anew, "
        "untrained, when it loads the adapter. It leaves out the layers that have the number of an expert; they are in the "
        "trained model's state_dict(), and saved under the names that they have there they load"
    )


_DEEPEST = 1000
"""Layers of a classifier; a config that names more is damaged."""

XLORA = PlainMethod(
    "XLORA",
    "internal_xlora_classifier",
    lost=_lost,
    merge=MergeRule(
        kinds=None, hazard=lambda _: "X-LoRA weighs its experts by the input, and merge_and_unload leaves that out"
    ),
)
