"""BEFT: a bias a target layer, added to the base layer's own.

Source: `peft/tuners/beft/layer.py`, read at 0.21.2. `beft_bias` has shape (1, out_features). The base layer is an `nn.Linear`;
anything else raises TypeError when the adapter is attached.
"""

from __future__ import annotations

from adaptertool.methods.merging import BACKENDS, LINEAR, BiasUpdate, MergeRule
from adaptertool.methods.plain import PlainMethod

BEFT = PlainMethod(
    "BEFT",
    "beft_",
    merge=MergeRule(
        bias=BiasUpdate(
            "beft_bias",
            "ValueError: Base layer has no bias, cannot merge bias adapter default",
            "with a method that changes weights, such as LoRA",
            quantised=BACKENDS,
            alone=True,
            squeezed=True,
        ),
        kinds=LINEAR,
        tensors=lambda _, place, __: {"beft_bias": (1, place.out)},
        zeros=frozenset(("beft_bias",)),
        starts_at_zero=lambda config: config.get("init_weights", True) is True,
    ),
)
