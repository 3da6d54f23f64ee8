"""VB-LoRA: each layer's low-rank factors are put together from a bank of vectors that all layers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptertool.methods.merging import MergeRule
from adaptertool.methods.plain import PlainMethod

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.checkpoint.config import AdapterConfig
    from adaptertool.checkpoint.header import TensorInfo


def _fits(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], out_features: int, in_features: int) -> bool:
    """Of shape (r, in_features / length, vectors) and (out_features / length, r, vectors), or their largest entries alone."""
    length = config.get("vector_length", 256)
    for name, tensor in tensors.items():
        inputs = name.startswith("vblora_logits_A")
        if len(tensor.shape) == 3 and tensor.shape[inputs] * length != (in_features if inputs else out_features):
            return False
    return True


@dataclass(frozen=True)
class VbLora(PlainMethod):
    """See `adaptertool.methods.base.Method`."""

    def trained(self, tensor: TensorInfo, config: AdapterConfig) -> int:
        """All numbers; of logits of which only the largest are saved (`save_only_topk_weights`), those that were there."""
        if tensor.name.endswith("_topk_indices"):
            return 0
        if tensor.name.endswith("_topk_weights") and len(tensor.shape) == 3:
            return tensor.shape[0] * tensor.shape[1] * config.integer("num_vectors", 256, least=1)
        return super().trained(tensor, config)


def _made(_: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> tuple[str, ...]:
    """With `save_only_topk_weights` others stand in their place."""
    return () if any("_topk_" in name for name in tensors) else ("vblora_logits_A", "vblora_logits_B")


VBLORA = VbLora(
    "VBLORA",
    "vblora_",
    "r",
    merge=MergeRule(
        made=_made,
        shared=lambda _: ("vblora_vector_bank",),
        lengths=(("vblora_logits_A", 0, "r"), ("vblora_logits_A", 2, "num_vectors")),
        fits=_fits,
    ),
)
