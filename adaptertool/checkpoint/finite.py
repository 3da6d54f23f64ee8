"""NaN, infinity and large values in tensors, found by looking at the bytes that hold the exponents.

Plain byte operations keep numpy out of commands that need nothing else of it.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from adaptertool.checkpoint.weights import Weights

# dtype -> (bytes an element, values of the high byte that can belong to NaN or infinity, least value of the byte below it
# that makes it so; None where the high byte decides alone).
_EXPONENTS: dict[str, tuple[int, bytes, int | None]] = {
    "F64": (8, b"\x7f\xff", 0xF0),
    "F32": (4, b"\x7f\xff", 0x80),
    "C64": (4, b"\x7f\xff", 0x80),  # two float32 an element
    "BF16": (2, b"\x7f\xff", 0x80),
    "F16": (2, bytes((*range(0x7C, 0x80), *range(0xFC, 0x100))), None),
    "F8_E5M2": (1, bytes((*range(0x7C, 0x80), *range(0xFC, 0x100))), None),
    "F8_E4M3": (1, b"\x7f\xff", None),
    "F8_E4M3FNUZ": (1, b"\x80", None),
    "F8_E5M2FNUZ": (1, b"\x80", None),
    "F8_E8M0": (1, b"\xff", None),
}


def first_not_finite(weights: Weights, name: str) -> int | None:
    """The index of the first element that is NaN or infinite, in row-major order; None where all are finite.

    Integer dtypes are always finite.
    """
    return _first(weights.stream(name), weights.tensors[name].dtype)


def still_not_finite(weights: Weights, name: str, index: int) -> bool:
    """Whether that element is NaN or infinite when it is read a second time."""
    info = weights.tensors[name]
    size = info.nbytes // info.numel
    return _first((memoryview(weights.read_again(name, index * size, size)),), info.dtype) is not None


def may_reach(weights: Weights, name: str, bound: float) -> bool:
    """Whether an element may be NaN, infinite, or as large as a bound.

    Told by the highest byte of each element: a value within a factor of 4 of the bound, of 65536 for float64, counts as well.
    Of dtypes that are no plain float of 16 bits or more it is told only whether an element is NaN or infinite.
    """
    dtype = weights.tensors[name].dtype
    if dtype not in _HIGHEST:
        return first_not_finite(weights, name) is not None
    size, below = _EXPONENTS[dtype][0], _high_bytes_below(dtype, bound)
    rest = b""
    for piece in weights.stream(name):
        data = rest + bytes(piece)
        whole = len(data) - len(data) % size
        rest = data[whole:]
        if data[size - 1 : whole : size].translate(None, below):
            return True
    return False


# dtype -> how struct reads the largest element with a given high byte, and what follows that byte.
_HIGHEST = {"F64": (">d", b"\xff" * 7), "F32": (">f", b"\xff" * 3), "BF16": (">f", b"\xff\0\0"), "F16": (">e", b"\xff")}


@cache
def _high_bytes_below(dtype: str, bound: float) -> bytes:
    code, rest = _HIGHEST[dtype]
    return bytes(high for high in range(256) if abs(struct.unpack(code, bytes((high,)) + rest)[0]) < bound)


def _first(pieces: Iterable[memoryview], dtype: str) -> int | None:
    rule = _EXPONENTS.get(dtype)
    if rule is None:
        return None
    size, high_bytes, least_below = rule
    suspects = bytes(set(range(256)) - set(high_bytes))
    seen, rest = 0, b""
    for piece in pieces:
        data = rest + bytes(piece)
        whole = len(data) - len(data) % size
        rest = data[whole:]
        high = data[size - 1 : whole : size]
        if len(high.translate(None, suspects)):
            below = data[size - 2 : whole : size] if least_below is not None else high
            for index, byte in enumerate(high):
                if byte in high_bytes and (least_below is None or below[index] >= least_below):
                    return (seen + index) // (2 if dtype == "C64" else 1)
        seen += whole // size
    return None
