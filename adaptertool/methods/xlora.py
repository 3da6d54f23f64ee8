"""X-LoRA: a classifier that weighs several LoRA adapters by the input.

Source: `peft/tuners/xlora/model.py`, read at 0.21.2. The merge adds the experts without their weights. It does not raise where
the config calls the experts other than `0`, `1`, …, the numbers under which PEFT loads them: then it adds nothing at all, and
the model that is not merged raises KeyError when it is run.
"""

from __future__ import annotations

from adaptertool.methods.merging import MergeRule
from adaptertool.methods.plain import PlainMethod

XLORA = PlainMethod(
    "XLORA",
    "internal_xlora_classifier",
    merge=MergeRule(
        kinds=None, hazard=lambda _: "X-LoRA weighs its experts by the input, and merge_and_unload leaves that out"
    ),
)
