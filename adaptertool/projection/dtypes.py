"""Rounding to the floating point dtypes of a checkpoint, with numpy alone, as torch rounds.

All of them round to nearest, ties to even. Values are carried as float32 (float64 for float64 tensors), which holds every
bfloat16 and float16 value exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from adaptertool.checkpoint.header import TORCH_DTYPES

if TYPE_CHECKING:
    from numpy.typing import NDArray

FLOATS = ("bfloat16", "float16", "float32", "float64")
"""The floating point dtypes that a projection can have."""

DTYPE_NAMES = TORCH_DTYPES
"""safetensors' names -> torch's, for the dtypes that a projection can have."""

STORED_NAMES = {name: stored for stored, name in DTYPE_NAMES.items()}
"""torch's names -> safetensors'."""

BIT_TYPES: dict[str, type[np.unsignedinteger[Any]]] = {
    "bfloat16": np.uint16,
    "float16": np.uint16,
    "float32": np.uint32,
    "float64": np.uint64,
    "int32": np.uint32,
    "int64": np.uint64,
}
"""The unsigned integer that holds one element's bits, for each dtype."""


def to_bits(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """The bits of `values` rounded to `dtype`, as unsigned integers of its width.

    Args:
        values: float32, float64 or whole numbers, of any shape.
        dtype: A key of `BIT_TYPES`.
    """
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        # Adding half of the dropped part, or a hair less where the kept part is even, carries where rounding is due.
        half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        result: NDArray[Any] = ((bits + half) >> np.uint32(16)).astype(np.uint16)
        return result
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values.astype(dtype)).view(BIT_TYPES[dtype])


def from_bits(bits: NDArray[Any], dtype: str) -> NDArray[Any]:
    """The values that `bits` stand for: float64 for float64, float32 for narrower floats, else whole numbers."""
    if dtype == "bfloat16":
        values: NDArray[Any] = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return values
    values = np.ascontiguousarray(bits).view(dtype)
    return values.astype(np.float32) if dtype == "float16" else values


def rounded(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """`values` rounded to `dtype`."""
    return from_bits(to_bits(values, dtype), dtype)


def values_of(content: bytes, dtype: str) -> NDArray[Any]:
    """A tensor's values, flat: float64 for F64, else float32.

    Args:
        content: Its bytes as a safetensors file stores them.
        dtype: A key of `DTYPE_NAMES`.
    """
    name = DTYPE_NAMES[dtype]
    return from_bits(np.frombuffer(content, dtype=BIT_TYPES[name]), name)
