"""LoKr: an update that is a Kronecker product, of which each factor can be a product of low rank itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptertool.methods.merging import CONV, LINEAR, MergeRule
from adaptertool.methods.plain import PlainMethod

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.checkpoint.header import TensorInfo


def _fits(_: Mapping[str, Any], tensors: Mapping[str, TensorInfo], out_features: int, in_features: int) -> bool:
    """Outputs and inputs are the products of the two factors' sides; convolutions have more sides than are looked at."""
    sides = [_sides(tensors, factor) for factor in ("lokr_w1", "lokr_w2")]
    if "lokr_t2" in tensors or None in sides:
        return True
    (out_1, in_1), (out_2, in_2) = (side for side in sides if side is not None)
    return (out_1 * out_2, in_1 * in_2) == (out_features, in_features)


def _sides(tensors: Mapping[str, TensorInfo], factor: str) -> tuple[int, int] | None:
    left = tensors.get(factor, tensors.get(f"{factor}_a"))
    right = tensors.get(factor, tensors.get(f"{factor}_b"))
    if left is None or right is None or len(left.shape) != 2 or len(right.shape) != 2:
        return None
    return left.shape[0], right.shape[1]


def _made(_: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> tuple[str, ...]:
    """Each factor whole, or as the two factors of a product."""
    names: list[str] = []
    for factor in ("lokr_w1", "lokr_w2"):
        halves = f"{factor}_a", f"{factor}_b"
        names += halves if any(half in tensors for half in halves) else (factor,)
    return tuple(names)


LOKR = PlainMethod(
    "LOKR",
    "lokr_",
    "r",
    merge=MergeRule(
        made=_made, lengths=(("lokr_w1_a", 1, "r"), ("lokr_w2_a", 1, "r")), kinds=LINEAR | CONV, fits=_fits
    ),
)
