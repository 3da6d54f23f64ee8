"""IA3: a vector that scales each layer's outputs, or, for the config's `feedforward_modules`, its inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptertool.methods.merging import CONV, CONV1D, LINEAR, MergeRule
from adaptertool.methods.plain import PlainMethod

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.checkpoint.header import TensorInfo


def _fits(_: Mapping[str, Any], tensors: Mapping[str, TensorInfo], out_features: int, in_features: int) -> bool:
    """Of shape (out_features, 1) or (1, in_features)."""
    vector = tensors.get("ia3_l")
    return vector is None or vector.shape in ((out_features, 1), (1, in_features))


IA3 = PlainMethod("IA3", "ia3_", merge=MergeRule(kinds=LINEAR | CONV1D | CONV, fits=_fits))
