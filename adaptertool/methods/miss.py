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


def _misfit(config: Mapping[str, Any], _: str, tensors: Mapping[str, TensorInfo]) -> str | None:
    block, rank = tensors.get("miss_block"), config.get("r")
    if block is None or type(rank) is not int or block.shape[-1 if len(block.shape) == 3 else 0] == rank:
        return None
    return f"the adapter's miss_block is {list(block.shape)}, and its config says {rank} for r: PEFT raises a size mismatch"


MISS = PlainMethod(
    "MISS",
    "miss_",
    "r",
    merge=MergeRule(misfit=_misfit, kinds=LINEAR, quantised=BACKENDS, fits=_fits),
)
