"""BEFT: a bias a target layer, added to the base layer's own (`peft/tuners/beft/layer.py`)."""

from __future__ import annotations

from adaptertool.methods.merge_rules import BiasUpdate, MergeRule

BEFT_MERGE = MergeRule(
    "BEFT",
    ("beft_",),
    bias=BiasUpdate("beft_bias", "ValueError: Base layer has no bias, cannot merge bias adapter default", leading=(1,)),
    linear_only=True,
)
"""`beft_bias` has shape (1, out_features). The base layer is an `nn.Linear`; anything else raises TypeError at attaching."""
