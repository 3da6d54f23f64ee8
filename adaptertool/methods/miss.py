"""MiSS: a block that is spread over each layer's weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptertool.methods.merging import BACKENDS, LINEAR, MergeRule
from adaptertool.methods.plain import PlainMethod

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.checkpoint.header import TensorInfo


def _fits(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], out_features: int, _: int) -> bool:
    """Of shape (r, out_features); (out_features / r, r, r) with `init_weights="bat"`; with "mini" it does not tell."""
    block = tensors.get("miss_block")
    if block is None or config.get("init_weights") == "mini":
        return True
    return (block.shape[0] * block.shape[1] if len(block.shape) == 3 else block.shape[-1]) == out_features


MISS = PlainMethod(
    "MISS",
    "miss_",
    "r",
    merge=MergeRule(lengths=(("miss_block", 0, "r"),), kinds=LINEAR, quantised=BACKENDS, fits=_fits),
)
