"""Values with which a merge can overflow although every one of them is finite.

Most methods multiply what they trained, with each other and with the base's weights, some divide by lengths. Without doing
all that nothing is certain; but values of the size that training gives can't overflow, and others say that something is
wrong. The limits are below: `tests/merge/test_extremes.py` holds them against what PEFT does.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from adaptertool.checkpoint.finite import first_not_finite, may_reach

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from adaptertool.checkpoint.weights import Weights

LARGEST = {
    "float16": 65504.0,
    "bfloat16": 3.3895313892515355e38,
    "float32": 3.4028234663852886e38,
    "float64": 1.7976931348623157e308,
}
"""The largest number of each dtype."""

INFINITE_FROM = {"float16": 65520.0, "bfloat16": 3.396177531532664e38, "float32": 3.4028235677973366e38}
"""Where rounding to a dtype gives infinity: half a step above its largest number."""

_TRAINED = {"float16": 16.0}
_OTHER = {"float16": 256.0}
_FACTORS = {"float16": 4096.0}
_USUAL_TRAINED = 1e4
_USUAL = 1e6

USUAL_WEIGHT = 1e6
"""More than any number in a model's weights. What is computed with larger ones overflows after a few layers, merged or not, or
loses all that is not as large to rounding."""

USUAL_TENSOR = 1e8
"""The same of tensors that take the base's place as they are, such as the running variances of a norm."""

WITH_WHICH = "as no training makes them: what the model computes with them may overflow"
"""What is said of larger ones."""


def usual_size(dtype: str | None, *, trained: bool = True) -> float:
    """How large the values of a tensor can be without putting a merge in that dtype in danger.

    Four numbers of up to 16 multiplied are below the largest float16, six of up to a million below the largest bfloat16 and
    float32. Of what is trained none is above ten thousand.

    Args:
        dtype: That of the base; None where it is not known, and float16 is possible.
        trained: Whether they were trained. Others were computed from the base, such as its singular values, of which a merge
            multiplies no more than two.
    """
    if trained:
        return _TRAINED.get(dtype or "float16", _USUAL_TRAINED)
    return _OTHER.get(dtype or "float16", _USUAL)


def usual_size_of_whole(dtype: str | None) -> float:
    """How large the values of a tensor that takes the base's place can be: usual ones, and finite in the dtype.

    Args:
        dtype: That of the base; None where it is not known.
    """
    return min(USUAL_TENSOR, INFINITE_FROM.get(dtype or "", math.inf))


def largest(weights: Weights, name: str, bound: float) -> float:
    """The largest absolute value of a tensor, if it reaches the bound; else the bound itself; NaN where one is not finite."""
    from adaptertool.projection.dtypes import DTYPE_NAMES, FLOATS, READABLE, values_of

    info = weights.tensors[name]
    if DTYPE_NAMES.get(info.dtype) in FLOATS and not may_reach(weights, name, bound):
        return bound
    if first_not_finite(weights, name) is not None:
        return math.nan
    if info.dtype not in READABLE:
        return bound
    most = bound
    size = info.nbytes // max(info.numel, 1)
    rest = b""
    for piece in weights.stream(name):
        data = rest + bytes(piece)
        whole = len(data) - len(data) % size
        rest = data[whole:]
        if whole:
            values = values_of(data[:whole], info.dtype)
            most = max(most, float(values.max()), -float(values.min()))
    return most


def odd_factor(fields: Mapping[str, Any], dtype: str | None) -> str | None:
    """A factor in the config that is no finite number, or so large that a merge can overflow by it; its name and value."""
    most = _FACTORS.get(dtype or "float16", _USUAL)
    return next((f"{name} of {value}" for name, value in _factors(fields) if not abs(value) <= most), None)


def _factors(fields: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in fields.items():
        if "alpha" not in name and "scal" not in name:
            continue
        for one in value.values() if isinstance(value, dict) else (value,):
            if isinstance(one, (int, float)) and not isinstance(one, bool):
                yield name, one
