"""VB-LoRA: each layer's low-rank factors are put together from a bank of vectors that all layers share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptertool.methods.merging import MergeRule
from adaptertool.methods.plain import PlainMethod

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.checkpoint.header import TensorInfo


def _fits(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], out_features: int, in_features: int) -> bool:
    """Of shape (r, in_features / length, vectors) and (out_features / length, r, vectors), or their largest entries alone."""
    length = config.get("vector_length", 256)
    for name, tensor in tensors.items():
        inputs = name.startswith("vblora_logits_A")
        if len(tensor.shape) == 3 and tensor.shape[inputs] * length != (in_features if inputs else out_features):
            return False
    return True


VBLORA = PlainMethod("VBLORA", "vblora_", "r", merge=MergeRule(fits=_fits))
