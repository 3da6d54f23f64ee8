"""Rounding to the floating point dtypes of a checkpoint, with numpy alone, as torch rounds.

All of them round to nearest, ties to even. Values are carried as float32 (float64 for float64 tensors), which holds every
bfloat16 and float16 value exactly.
"""

from __future__ import annotations

from functools import cache
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
    """A tensor's values, flat: float64 for F64, whole numbers as they are, else float32.

    Args:
        content: Its bytes as a safetensors file stores them.
        dtype: One of `READABLE`.
    """
    if dtype in _WHOLE:
        return np.frombuffer(content, dtype=_WHOLE[dtype])
    if dtype == "F8_E5M2":
        # It is the upper half of a float16.
        return from_bits(np.frombuffer(content, dtype=np.uint8).astype(np.uint16) << np.uint16(8), "float16")
    if dtype == "F8_E4M3":
        return _eight_bits()[np.frombuffer(content, dtype=np.uint8)]
    name = DTYPE_NAMES[dtype]
    return from_bits(np.frombuffer(content, dtype=BIT_TYPES[name]), name)


_WHOLE = {"BOOL": "|u1", "U8": "|u1", "I8": "|i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "U64": "<u8"}
"""safetensors' names -> numpy's, of the other whole numbers."""

READABLE = frozenset((*DTYPE_NAMES, *_WHOLE, "F8_E5M2", "F8_E4M3"))
"""The dtypes whose values `values_of` knows; a file can have others, of which torch copies some into float32 as well."""


@cache
def _eight_bits() -> NDArray[Any]:
    """What the bytes of a float8_e4m3fn stand for: 4 bits of exponent, 3 of fraction, NaN and no infinity."""
    bits = np.arange(128)
    exponent, fraction = bits >> 3, (bits & 7) / 8
    values = np.where(exponent > 0, 1 + fraction, 2 * fraction) * 2.0 ** (exponent - 7)
    values[127] = np.nan
    return np.concatenate((values, -values)).astype(np.float32)
