"""X-LoRA: a classifier that weighs several LoRA adapters by the input."""

from __future__ import annotations

from adaptertool.methods.merging import MergeRule
from adaptertool.methods.plain import PlainMethod

XLORA = PlainMethod(
    "XLORA",
    "internal_xlora_classifier",
    merge=MergeRule(hazard=lambda _: "X-LoRA weighs its experts by the input, and merge_and_unload leaves that out"),
)
