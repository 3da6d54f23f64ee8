"""torch's CPU samplers, bit for bit, without torch.

Every CPU generator since torch 1.5 is a 32-bit Mersenne Twister seeded with the low 32 bits of the seed, and a 16- or 32-bit
uniform number takes one word of it (`aten/src/ATen/core/MT19937RNGEngine.h`, `DistributionsHelper.h`). What is made of the
word differs:

* float32, all versions: the low 24 bits times 2^-24, then `x * (high - low) + low` in float32.
* bfloat16 and float16 up to torch 2.11: only as many low bits as the dtype has of precision (8 or 11), times 2^-8 or 2^-11;
  low and high are rounded to the dtype first; computed in float32 and rounded once.
* bfloat16 and float16 since torch 2.12 (pytorch/pytorch#175988): as float32, then one rounding to the dtype, and a result
  that rounds to high becomes low.

The multiplication and addition in float32 are one fused operation where the CPU kernel was compiled for AVX2 or AVX-512, and
two with `ATEN_CPU_CAPABILITY=default`; about one bfloat16 element in 13,000 differs between the two.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from adaptertool.projection.dtypes import rounded, to_bits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adaptertool.projection.generation import Sampler

PRECISION_BITS = {"bfloat16": 8, "float16": 11}
"""Bits of a significand, the implicit one included."""

CHUNK_WORDS = 1 << 17
"""Words drawn at a time: half a megabyte, so that the arithmetic on them stays in the processor's cache."""

Item = TypeVar("Item")


class WordStream:
    """The 32-bit words that `torch.Generator(device="cpu").manual_seed(seed)` deals out, in order."""

    def __init__(self, seed: int) -> None:
        """Seed it. torch keeps the low 32 bits of the seed; negative seeds count from 2^64."""
        # RandomState is numpy's frozen legacy interface: its stream is promised never to change.
        seeded: Any = np.random.RandomState(seed & 0xFFFFFFFF).get_state(legacy=False)
        self._twister = np.random.MT19937()
        self._twister.state = seeded
        self._state = np.random.RandomState(self._twister)

    def words(self, count: int) -> NDArray[np.uint32]:
        """The next `count` words."""
        return self._state.randint(0, 1 << 32, size=count, dtype=np.uint32)

    def skip(self, count: int) -> None:
        """Leave out `count` words."""
        self._twister.random_raw(count, output=False)

    def pieces(self, count: int) -> Iterator[NDArray[np.uint32]]:
        """The next `count` words, `CHUNK_WORDS` at a time."""
        for begin in range(0, count, CHUNK_WORDS):
            yield self.words(min(CHUNK_WORDS, count - begin))


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, each made by another thread while the ones before it are used."""
    nothing: Any = object()
    with ThreadPoolExecutor(1) as pool:
        coming = deque(pool.submit(next, items, nothing) for _ in range(2))
        while (item := coming.popleft().result()) is not nothing:
            coming.append(pool.submit(next, items, nothing))
            yield item


def permutation_head(stream: WordStream, numel: int, count: int) -> NDArray[np.int64]:
    """The first `count` numbers of `torch.randperm(numel)`, the same in all versions.

    Source: `aten/src/ATen/native/TensorFactories.cpp`, `randperm_cpu`: a Fisher-Yates shuffle that takes one word a step and
    never touches again what it has passed. `numel` beyond `SMALL_PERMUTATION` is shuffled another way.

    Args:
        stream: Advanced past the whole permutation.
        numel: How many numbers are permuted; at most `SMALL_PERMUTATION`.
        count: How many of them are asked for.
    """
    steps = max(0, min(count, numel - 1))
    offsets = (stream.words(steps) % (np.uint64(numel) - np.arange(steps, dtype=np.uint64))).tolist()
    stream.skip(max(0, numel - 1 - steps))
    moved: dict[int, int] = {}
    head = np.empty(count, dtype=np.int64)
    for step, offset in enumerate(offsets):
        head[step] = moved.get(step + offset, step + offset)
        moved[step + offset] = moved.get(step, step)
    head[steps:] = [moved.get(step, step) for step in range(steps, count)]
    return head


SMALL_PERMUTATION = (2**32 - 1) // 20 - 1
"""How many numbers `torch.randperm` permutes in the way of `permutation_head`."""


def ternary(words: NDArray[np.uint32], sparsity: float) -> NDArray[np.int8]:
    """What `torch.rand` in float32 gives, thresholded to -1, 0 and +1.

    Args:
        words: One a number.
        sparsity: `s`: below 1/(2s) becomes -1, above 1 - 1/(2s) becomes +1. torch compares in float32.
    """
    uniform = words & np.uint32(0xFFFFFF)
    # Whole numbers are below a bound if they are below the next whole number, and above it if above the one before.
    low = np.uint32(math.ceil(float(np.float32(1 / (2 * sparsity))) * 2**24))
    high = np.uint32(math.floor(float(np.float32(1 - 1 / (2 * sparsity))) * 2**24))
    signs: NDArray[np.int8] = (uniform > high).view(np.int8) - (uniform < low).view(np.int8)
    return signs


def uniform_float32(
    words: NDArray[np.uint32], low: float, high: float, *, fused_multiply_add: bool
) -> NDArray[np.float32]:
    """What `tensor.uniform_(low, high)` gives in float32."""
    low32, high32 = np.float32(low), np.float32(high)
    span = high32 - low32
    uniform = words & np.uint32(0xFFFFFF)
    if fused_multiply_add:
        # Exact before the one rounding: the product has 48 bits, and with low = -high or low = 0 its sum with low fits
        # the 53 of a float64.
        exact = uniform.astype(np.float64)
        exact *= np.float64(span) * 2.0**-24
        exact += np.float64(low32)
        value: NDArray[np.float32] = exact.astype(np.float32)
        return value
    value = uniform.astype(np.float32)
    value *= np.float32(2.0**-24)
    value *= span
    value += low32
    return value


def uniform_16_bit(
    words: NDArray[np.uint32],
    low: float,
    high: float,
    dtype: str,
    *,
    sampler: Sampler,
    fused_multiply_add: bool,
) -> NDArray[np.uint16]:
    """The bits that `tensor.uniform_(low, high)` gives in bfloat16 or float16.

    Args:
        words: One a number.
        low: Lower bound, as PEFT passes it.
        high: Upper bound.
        dtype: `bfloat16` or `float16`.
        sampler: `torch<2.12` or `torch>=2.12`.
        fused_multiply_add: Whether the kernel fuses; of no effect before 2.12, where products are exact in float32.
    """
    bounds = rounded(np.array([low, high], dtype=np.float32), dtype)
    if sampler == "torch<2.12":
        bits = PRECISION_BITS[dtype]
        grid = np.arange(1 << bits, dtype=np.float32) * np.float32(2.0**-bits)
        table = to_bits(grid * (bounds[1] - bounds[0]) + bounds[0], dtype)
        chosen: NDArray[np.uint16] = table[words & np.uint32((1 << bits) - 1)]
        return chosen
    drawn = to_bits(uniform_float32(words, low, high, fused_multiply_add=fused_multiply_add), dtype)
    low_bits, high_bits = to_bits(bounds, dtype)
    drawn[drawn == high_bits] = low_bits
    return drawn


class Uniform16Bit:
    """`uniform_16_bit` for many words: most of them are looked up.

    A draw grows with the low 24 bits of its word. Where the first and the last of the 256 words that share the upper 16 of
    these bits give the same, so do all of them; only the others, some words in a hundred, are computed.
    """

    def __init__(self, low: float, high: float, dtype: str, *, sampler: Sampler, fused_multiply_add: bool) -> None:
        """Make the table; the arguments are those of `uniform_16_bit`."""
        self._arguments = low, high, dtype, sampler, fused_multiply_add
        self._low_bits = np.empty(CHUNK_WORDS, dtype=np.uint32)
        self._index = np.empty(CHUNK_WORDS, dtype=np.uint16)
        self._open = np.empty(CHUNK_WORDS, dtype=np.bool_)
        self._old_bits = PRECISION_BITS[dtype] if sampler == "torch<2.12" else None
        if self._old_bits is not None:
            self._table = self.compute(np.arange(1 << self._old_bits, dtype=np.uint32))
            return
        first = np.arange(0, 1 << 24, 256, dtype=np.uint32)
        self._table = self.compute(first)
        self._table[self._table != self.compute(first + np.uint32(255))] = _NOT_A_NUMBER

    def compute(self, words: NDArray[np.uint32]) -> NDArray[np.uint16]:
        """The bits drawn, one for each word, without a look at the table."""
        low, high, dtype, sampler, fused = self._arguments
        return uniform_16_bit(words, low, high, dtype, sampler=sampler, fused_multiply_add=fused)

    def draw(self, words: NDArray[np.uint32], out: NDArray[np.uint16]) -> None:
        """Draw, one for each of at most `CHUNK_WORDS` words.

        Args:
            words: Of which the low 24 bits count.
            out: Gets the bits.
        """
        # Memory that is used again needs no new pages, which cost as much as all the rest.
        low_bits, index = self._low_bits[: words.size], self._index[: words.size]
        if self._old_bits is not None:
            np.bitwise_and(words, np.uint32((1 << self._old_bits) - 1), out=low_bits)
        else:
            np.right_shift(words, np.uint32(8), out=low_bits)
        np.copyto(index, low_bits, casting="unsafe")
        # No index is beyond the table; counting round it is only faster than to have that checked.
        np.take(self._table, index, out=out, mode="wrap")
        if self._old_bits is None:
            between = np.flatnonzero(np.equal(out, _NOT_A_NUMBER, out=self._open[: words.size]))
            out[between] = self.compute(words[between])

    @property
    def codes(self) -> NDArray[np.uint16]:
        """Every value that can be drawn, in ascending order of its bits."""
        words = np.arange(self._table.size, dtype=np.uint32)
        if self._old_bits is None:
            between = np.flatnonzero(self._table == _NOT_A_NUMBER).astype(np.uint32)
            words = ((between[:, None] << np.uint32(8)) + np.arange(256, dtype=np.uint32)).reshape(-1)
        drawable = np.zeros(1 << 16, dtype=np.bool_)
        drawable[self._table] = True
        drawable[_NOT_A_NUMBER] = False
        drawable[self.compute(words)] = True
        return np.flatnonzero(drawable).astype(np.uint16)


_NOT_A_NUMBER = np.uint16(0x7FFF)
"""NaN in both 16-bit dtypes, which is never drawn."""
