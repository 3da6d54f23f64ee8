"""Adding updates as PEFT adds them: of a bias bit for bit, and how much of it arrives; of a weight, whether it overflows.

PEFT computes `base.bias + update` where the update is float32 (`autocast_adapter_dtype`, the default, makes 16-bit adapter
weights float32) and the bias has the base's dtype; the sum is float32 and is rounded once, to the base's dtype
(`peft/tuners/beft/layer.py`, `peft/tuners/lora/layer.py`). For a float64 base everything is float64. An update that PEFT
squeezes to a scalar is rounded to the base's dtype first, and added in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptertool.merge.trial.extremes import LARGEST, USUAL_WEIGHT
from adaptertool.projection.dtypes import from_bits, rounded, to_bits

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class BiasMerge:
    """The outcome for one layer.

    Attributes:
        merged: The bits of the merged bias in the dtype of the merge, as unsigned integers.
        update_norm: Euclidean length of the update.
        bias_norm: Euclidean length of the base bias in the dtype of the merge.
        rounding_loss: Length of what rounding took from the update over the length of the update; None where that is 0.
        finite: Whether every merged value is finite.
        noticed: Whether `safe_merge=True` raises where they are not. It looks at the sum before it is rounded, so that an
            overflow of the base's dtype passes.
    """

    merged: NDArray[Any]
    update_norm: float
    bias_norm: float
    rounding_loss: float | None
    finite: bool
    noticed: bool


def merge_bias(
    bias: NDArray[Any] | None, update: NDArray[Any], scale: float, dtype: str, *, squeezed: bool = False
) -> BiasMerge:
    """Merge an update into a bias.

    Args:
        bias: The base bias as stored, of shape (out_features,); None for zeros, which is what a bias is created as.
        update: The adapter's tensor as stored, of shape (out_features,).
        scale: What the method multiplies it by.
        dtype: The dtype in which the base is loaded, a key of `BIT_TYPES`.
        squeezed: Whether a single value is added as a scalar.
    """
    work: type[np.floating[Any]] = np.float64 if dtype == "float64" else np.float32
    with np.errstate(over="ignore", invalid="ignore"):
        base = np.zeros(update.shape, work) if bias is None else rounded(bias, dtype).astype(work)
        scaled = update.astype(work) if scale == 1 else update.astype(work) * work(scale)
        as_scalar = squeezed and update.size == 1
        total = base + (rounded(scaled, dtype).astype(work) if as_scalar else scaled)
        merged = to_bits(total, dtype)
        arrived = from_bits(merged, dtype).astype(np.float64)
        wide = scaled.astype(np.float64)
        lost = arrived - base.astype(np.float64) - wide
    update_norm = _norm(wide)
    loss = _norm(lost) / update_norm if update_norm and np.isfinite(update_norm) else None
    # Rounding to bfloat16 carries some NaN over into other values, where torch keeps all of them.
    whole = bool(np.isfinite(wide).all()) and (bias is None or bool(np.isfinite(bias).all()))
    finite = whole and bool(np.isfinite(arrived).all())
    return BiasMerge(
        merged,
        update_norm,
        _norm(base.astype(np.float64)),
        loss if loss is None or np.isfinite(loss) else None,
        finite,
        not (whole and bool(np.isfinite(arrived if as_scalar else total).all())),
    )


@dataclass(frozen=True)
class ProductMerge:
    """What the update of a weight does.

    Attributes:
        finite: Whether every value of it, and of its sum with the weight where that is given, is finite in the dtype.
        room: Whether the sum can't overflow: it was computed, or the update stays below half of the dtype's largest number,
            so that adding it to a weight of like size can't.
        zero: Whether all of it is zero.
        usual: Whether it is of a size that weights have (`USUAL_WEIGHT`).
    """

    finite: bool
    room: bool
    zero: bool
    usual: bool = True


def merge_product(
    up: NDArray[Any], down: NDArray[Any], scale: float, dtype: str, weight: NDArray[Any] | None = None
) -> ProductMerge:
    """Look at `up · down · scale` in a dtype, computed in full only where its size can't be bounded.

    PEFT multiplies in float32 and rounds the scaled product to the weight's dtype (`get_delta_weight` and `merge` in
    `peft/tuners/lora/layer.py`).

    Args:
        up: Of shape (outputs, rank, …); every value finite, as of `down`.
        down: Of shape (rank, …).
        scale: The factor.
        dtype: The dtype in which the base is loaded, a key of `BIT_TYPES`.
        weight: What it is added to, of shape (outputs, …) and rounded to that dtype; None where it is not known.
    """
    if not _is_finite_factor(scale, dtype):
        return ProductMerge(finite=False, room=False, zero=False)
    if not up.any() or not down.any() or scale == 0:
        return ProductMerge(finite=True, room=True, zero=True)
    left, right = up.reshape(up.shape[0], -1), down.reshape(down.shape[0], -1)
    limit = LARGEST[dtype]
    if weight is not None and weight.size != left.shape[0] * right.shape[1]:
        weight = None
    with np.errstate(over="ignore", invalid="ignore"):
        # Cauchy and Schwarz: no element of the product is larger than the lengths of its row and its column.
        rows = float(np.sqrt(np.einsum("ij,ij->i", left, left).max()))
        columns = float(np.sqrt(np.einsum("ij,ij->j", right, right).max()))
        largest = rows * columns * abs(scale)
        if largest < min(limit / 2, USUAL_WEIGHT) and (
            weight is None or largest + float(np.abs(weight).max(initial=0)) < limit
        ):
            return ProductMerge(finite=True, room=True, zero=False)
        finite, largest = True, 0.0
        work = np.float64 if dtype == "float64" else np.float32
        for start in range(0, len(left), _ROWS):
            part = (left[start : start + _ROWS].astype(work) @ right.astype(work)) * work(scale)
            part = rounded(part, dtype)
            largest = max(largest, float(np.abs(part).max()))
            if weight is not None:
                part = rounded(part + weight[start : start + _ROWS].reshape(part.shape), dtype)
            finite = finite and bool(np.isfinite(part).all())
    room = finite and (weight is not None or largest < limit / 2)
    return ProductMerge(finite, room, zero=False, usual=largest <= USUAL_WEIGHT)


def merge_rescaled(
    up: NDArray[Any],
    down: NDArray[Any],
    scale: float,
    lengths: NDArray[Any],
    dtype: str,
    weight: NDArray[Any] | None = None,
) -> ProductMerge:
    """Look at a weight with `up · down · scale` added and every row rescaled to a trained length, as DoRA does.

    PEFT divides by the length that the row has (`merge_safe` of `DoraLinearVariant` in `peft/tuners/lora/variants.py`), all
    in float32: a row of zeros becomes NaN, and a large length overflows before the division takes effect.

    Args:
        up: As in `merge_product`.
        down: As in `merge_product`.
        scale: As in `merge_product`.
        lengths: The trained length of each row; every value finite.
        dtype: As in `merge_product`.
        weight: As in `merge_product`.
    """
    update = merge_product(up, down, scale, dtype)
    left, right = up.reshape(up.shape[0], -1), down.reshape(down.shape[0], -1)
    due = lengths.reshape(-1)
    factor_is_finite = _is_finite_factor(scale, dtype)
    if not factor_is_finite or weight is None or weight.shape != (len(left), right.shape[1]) or len(due) != len(left):
        # No element is longer than its row. A row that is zero was of length zero when training began.
        zeros = bool((~due.astype(bool) & ~left.any(axis=1)).any())
        usual = float(np.abs(due).max(initial=0)) < min(_USUAL_LENGTH, LARGEST[dtype])
        return ProductMerge(factor_is_finite, update.finite and usual and not zeros, zero=False, usual=update.usual)
    work = np.float64 if dtype == "float64" else np.float32
    finite = True
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for start in range(0, len(left), _ROWS):
            rows = slice(start, start + _ROWS)
            total = weight[rows].astype(work) + (left[rows].astype(work) @ right.astype(work)) * work(scale)
            factor = due[rows].astype(work) / np.sqrt(np.sum(total * total, axis=1))
            finite = finite and bool(np.isfinite(rounded(factor[:, None] * total, dtype)).all())
    usual = update.usual and float(np.abs(due).max(initial=0)) < _USUAL_LENGTH
    return ProductMerge(finite, room=finite, zero=False, usual=usual)


def _is_finite_factor(factor: float, dtype: str) -> bool:
    """Whether it is finite in the dtype that PEFT multiplies in."""
    with np.errstate(over="ignore"):
        return bool(np.isfinite(factor if dtype == "float64" else np.float32(factor)))


_USUAL_LENGTH = 1e6
"""A length of a row that no factor made of it overflows with, unless all of the row is next to nothing."""

_ROWS = 256
"""Rows of a product that are computed at a time."""


def _norm(values: NDArray[Any]) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sqrt(np.sum(values * values)))
