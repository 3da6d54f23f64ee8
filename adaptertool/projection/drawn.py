"""One projection as it was drawn, and the bits that a checkpoint stores of it after casts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from adaptertool.projection.dtypes import BIT_TYPES, FLOATS, from_bits, rounded, to_bits

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

CHUNK_ELEMENTS = 1 << 17
"""Elements cast at a time, so that intermediate values stay in the processor's cache."""

LOAD_DTYPES = ("float32", "bfloat16", "float16")
"""The dtypes in which people load base models."""


class Drawn(Protocol):
    """A projection's elements in row-major order, before any cast."""

    @property
    def numel(self) -> int:
        """Number of elements."""

    def stored_dtype(self, casts: tuple[str, ...]) -> str:
        """The dtype in which it is stored after the casts."""

    def chunks(self, casts: tuple[str, ...], start: int = 0, stop: int | None = None) -> Iterator[NDArray[Any]]:
        """The elements after the casts, as the bits of the last dtype, in pieces.

        Args:
            casts: Dtypes to round to, one after the other; the last one is the one that is stored.
            start: First element.
            stop: Element to stop before; by default all.
        """

    def same_after(self, casts: tuple[str, ...], other: tuple[str, ...]) -> bool:
        """Whether two chains of casts give equal values for every element of this projection."""


@dataclass(frozen=True)
class Tabulated:
    """Elements that take few values: a 16-bit draw has at most 65,536, a sparse one three.

    Normalising and casting change the table, not the elements.

    Attributes:
        codes: For each element, an index into the table.
        table: float32 values, exact in the dtype that they were drawn in.
    """

    codes: NDArray[Any]
    table: NDArray[np.float32]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.codes.size

    def stored_dtype(self, casts: tuple[str, ...]) -> str:
        """The last cast's."""
        return casts[-1]

    def chunks(self, casts: tuple[str, ...], start: int = 0, stop: int | None = None) -> Iterator[NDArray[Any]]:
        """See `Drawn.chunks`."""
        bits = to_bits(_cast(self.table, casts), casts[-1])
        stop = self.numel if stop is None else stop
        for begin in range(start, stop, CHUNK_ELEMENTS):
            # Counting round the table is faster than checking the indices, and gives -1 its place at the end.
            yield np.take(bits, self.codes[begin : min(begin + CHUNK_ELEMENTS, stop)], mode="wrap")

    def same_after(self, casts: tuple[str, ...], other: tuple[str, ...]) -> bool:
        """See `Drawn.same_after`."""
        differs = _cast(self.table, casts) != _cast(self.table, other)
        # Both NaN is no difference; no element has such a code unless the standard deviation is 0 or NaN.
        differs &= ~np.isnan(self.table)
        if not differs.any():
            return True
        pieces = (self.codes[begin : begin + CHUNK_ELEMENTS] for begin in range(0, self.numel, CHUNK_ELEMENTS))
        return not any(np.take(differs, piece, mode="wrap").any() for piece in pieces)


@dataclass(frozen=True)
class Ranged:
    """Some elements of a projection that is too large to draw for a sample, which take few values.

    Attributes:
        numel: Number of elements that the projection has.
        codes: Half-open range -> for each element in it, an index into the table.
        table: float32 values, exact in the dtype that they were drawn in.
        drawable: The codes that elements can have.
    """

    numel: int
    codes: Mapping[tuple[int, int], NDArray[np.uint16]]
    table: NDArray[np.float32]
    drawable: NDArray[np.uint16]

    def stored_dtype(self, casts: tuple[str, ...]) -> str:
        """The last cast's."""
        return casts[-1]

    def chunks(self, casts: tuple[str, ...], start: int = 0, stop: int | None = None) -> Iterator[NDArray[Any]]:
        """See `Drawn.chunks`; only for what was drawn."""
        stop = self.numel if stop is None else stop
        begin, end = next((begin, end) for begin, end in self.codes if begin <= start and stop <= end)
        yield from Tabulated(self.codes[begin, end], self.table).chunks(casts, start - begin, stop - begin)

    def same_after(self, casts: tuple[str, ...], other: tuple[str, ...]) -> bool:
        """Whether they do for everything that can be drawn: of so many elements, each that matters is drawn."""
        return Tabulated(self.drawable, self.table).same_after(casts, other)


@dataclass(frozen=True)
class Plain:
    """Elements drawn in float32, each for itself.

    Attributes:
        values: float32, flat.
    """

    values: NDArray[np.float32]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.values.size

    def stored_dtype(self, casts: tuple[str, ...]) -> str:
        """The last cast's."""
        return casts[-1]

    def chunks(self, casts: tuple[str, ...], start: int = 0, stop: int | None = None) -> Iterator[NDArray[Any]]:
        """See `Drawn.chunks`."""
        stop = self.numel if stop is None else stop
        for begin in range(start, stop, CHUNK_ELEMENTS):
            yield to_bits(_cast(self.values[begin : min(begin + CHUNK_ELEMENTS, stop)], casts), casts[-1])

    def same_after(self, casts: tuple[str, ...], other: tuple[str, ...]) -> bool:
        """See `Drawn.same_after`."""
        for begin in range(0, self.numel, CHUNK_ELEMENTS):
            piece = self.values[begin : begin + CHUNK_ELEMENTS]
            if not np.array_equal(_cast(piece, casts), _cast(piece, other), equal_nan=True):
                return False
        return True


@dataclass(frozen=True)
class Whole:
    """Whole numbers, which are not rounded on their way into a file.

    Attributes:
        values: int64, flat.
        dtype: The dtype in which PEFT stores them; None where the last cast decides.
    """

    values: NDArray[np.int64]
    dtype: str | None = None

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.values.size

    def stored_dtype(self, casts: tuple[str, ...]) -> str:
        """Its own dtype, or the last cast's."""
        return self.dtype or casts[-1]

    def chunks(self, casts: tuple[str, ...], start: int = 0, stop: int | None = None) -> Iterator[NDArray[Any]]:
        """See `Drawn.chunks`."""
        stop = self.numel if stop is None else stop
        for begin in range(start, stop, CHUNK_ELEMENTS):
            yield to_bits(self.values[begin : min(begin + CHUNK_ELEMENTS, stop)], self.stored_dtype(casts))

    def same_after(self, casts: tuple[str, ...], other: tuple[str, ...]) -> bool:
        """See `Drawn.same_after`; always."""
        return True


def _cast(values: NDArray[Any], casts: tuple[str, ...]) -> NDArray[Any]:
    for dtype in casts:
        values = rounded(values, dtype)
    return values


def stored_bits(drawn: Drawn, casts: tuple[str, ...], start: int = 0, stop: int | None = None) -> NDArray[Any]:
    """Elements after the casts, by default all, as one flat array of the stored dtype's bits."""
    stop = drawn.numel if stop is None else stop
    result = np.empty(stop - start, dtype=BIT_TYPES[drawn.stored_dtype(casts)])
    at = 0
    for piece in drawn.chunks(casts, start, stop):
        result[at : at + piece.size] = piece
        at += piece.size
    return result


def cast_chains(generated: str, stored: str) -> list[tuple[str, ...]]:
    """Every chain of casts that takes a projection from the dtype it is drawn in to the one it is stored in.

    PEFT casts a projection to the dtype of each target layer in turn (`_move_adapter_to_device_of_base_layer`), so mixed
    bases can round twice, and then, by default, to float32 (`autocast_adapter_dtype`). The chain of a base in the dtype that
    the projection is drawn in comes first, since most chains give the same bits and the first that fits is the one named.
    """
    bases = [(), *((dtype,) for dtype in (generated, *FLOATS)), ("bfloat16", "float16"), ("float16", "bfloat16")]
    if generated == "float32":
        bases.remove((generated,))
    else:
        bases.remove(())
    chains = [base if base and base[-1] == stored else (*base, stored) for base in bases]
    return list(dict.fromkeys(chains))


def load_dtypes(drawn: list[Drawn], casts: tuple[str, ...]) -> tuple[str, ...]:
    """The base dtypes under which PEFT's own drawing gives the values that this chain of casts gave.

    A loaded projection is float32 by default whatever its base is, so values are compared, not bits.
    """
    return tuple(dtype for dtype in LOAD_DTYPES if all(one.same_after(casts, (dtype, "float32")) for one in drawn))


def code_values(dtype: str) -> NDArray[np.float32]:
    """The values of all 65,536 codes of a 16-bit dtype."""
    return from_bits(np.arange(1 << 16, dtype=np.uint32).astype(np.uint16), dtype)
