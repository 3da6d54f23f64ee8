"""OFT: each layer's inputs are rotated, block by block.

Source: `peft/tuners/oft/layer.py`, read at 0.21.2. Before a convolution it rotates all patches of the input and adds up those
that overlap; what is merged rotates the weight, which is another thing wherever the kernel is larger than 1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from adaptertool.methods.merging import BACKENDS, CONV, EMBEDDING, LINEAR, MergeRule
from adaptertool.methods.plain import PlainMethod

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.checkpoint.header import TensorInfo


def _fits(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], _: int, in_features: int) -> bool:
    """Of shape (blocks, b * (b - 1) / 2) for blocks of b inputs; with `block_share` one stands for all of them."""
    rotation = tensors.get("oft_R.weight")
    if rotation is None or len(rotation.shape) != 2:
        return True
    block = (1 + math.isqrt(1 + 8 * rotation.shape[1])) // 2
    if config.get("block_share"):
        rank = config.get("r")
        return not rank or in_features // rank == block
    return rotation.shape[0] * block == in_features


OFT = PlainMethod(
    "OFT", "oft_", "r", merge=MergeRule(kinds=LINEAR | EMBEDDING | CONV, quantised=BACKENDS, kernels=False, fits=_fits)
)
