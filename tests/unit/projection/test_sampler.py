"""Words and uniform numbers are those of the installed torch, and of the rules of the one before 2.12."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptertool.projection.dtypes import from_bits, rounded
from adaptertool.projection.generation import Sampler
from adaptertool.projection.loader import loader_for
from adaptertool.projection.sampler import (
    CHUNK_WORDS,
    PRECISION_BITS,
    Uniform16Bit,
    WordStream,
    ahead,
    ternary,
    uniform_16_bit,
    uniform_float32,
)

SEEDS = st.integers(-(2**63), 2**64 - 1)
COUNTS = st.integers(1, 300)
BOUNDS = st.integers(1, 4000).map(lambda number: number / 1000)


def generator(seed: int) -> torch.Generator:
    return torch.Generator(device="cpu").manual_seed(seed)


def fuses() -> bool:
    loader = loader_for(None)
    assert loader is not None
    return loader.fused_multiply_add


@given(SEEDS, COUNTS)
def test_words_are_those_of_torchs_generator(seed: int, count: int) -> None:
    low_bits = torch.empty(count, dtype=torch.int32).random_(generator=generator(seed)).numpy().view(np.uint32)
    assert np.array_equal(WordStream(seed).words(count) & np.uint32(0x7FFFFFFF), low_bits)


@given(SEEDS, st.lists(st.integers(0, 700), max_size=6))
def test_words_come_in_one_stream_however_they_are_asked_for(seed: int, counts: list[int]) -> None:
    stream = WordStream(seed)
    pieces = [stream.words(count) for count in counts]
    assert np.array_equal(np.concatenate([*pieces, []]), WordStream(seed).words(sum(counts)))


@given(SEEDS, st.lists(st.integers(0, 700), min_size=2, max_size=6))
def test_words_that_are_left_out_are_those_that_would_have_come(seed: int, counts: list[int]) -> None:
    stream, whole = WordStream(seed), WordStream(seed).words(sum(counts))
    at = 0
    for index, count in enumerate(counts):
        if index % 2:
            stream.skip(count)
        else:
            assert np.array_equal(stream.words(count), whole[at : at + count])
        at += count


def test_pieces_made_ahead_are_those_of_the_stream() -> None:
    count = 3 * CHUNK_WORDS + 5
    pieces = list(ahead(WordStream(4).pieces(count)))
    assert [piece.size for piece in pieces] == [CHUNK_WORDS] * 3 + [5]
    assert np.array_equal(np.concatenate(pieces), WordStream(4).words(count))


def test_what_fails_ahead_fails_where_it_is_used() -> None:
    items = ahead(10 // number for number in (5, 0, 1))
    assert next(items) == 2
    with pytest.raises(ZeroDivisionError):
        next(items)


@pytest.mark.parametrize("dtype", sorted(PRECISION_BITS))
@pytest.mark.parametrize(("sampler", "fused"), [("torch>=2.12", True), ("torch>=2.12", False), ("torch<2.12", False)])
@given(bound=BOUNDS)
@settings(max_examples=5, deadline=None)
def test_every_word_looked_up_is_the_word_computed(dtype: str, sampler: Sampler, fused: bool, bound: float) -> None:
    table = Uniform16Bit(-bound, bound, dtype, sampler=sampler, fused_multiply_add=fused)
    seen = np.zeros(1 << 16, dtype=np.bool_)
    found = np.empty(CHUNK_WORDS, dtype=np.uint16)
    for begin in range(0, 1 << 24, CHUNK_WORDS):
        words = np.arange(begin, begin + CHUNK_WORDS, dtype=np.uint32) | np.uint32(0xA5000000)
        table.draw(words, found)
        due = uniform_16_bit(words, -bound, bound, dtype, sampler=sampler, fused_multiply_add=fused)
        assert np.array_equal(found, due)
        seen[due] = True
    assert np.array_equal(table.codes, np.flatnonzero(seen))


@given(SEEDS, COUNTS, BOUNDS)
def test_float32_is_what_torch_draws(seed: int, count: int, bound: float) -> None:
    due = torch.empty(count).uniform_(-bound, bound, generator=generator(seed)).numpy()
    found = uniform_float32(WordStream(seed).words(count), -bound, bound, fused_multiply_add=fuses())
    # A kernel works on whole vectors; what is left over at the end is not fused everywhere.
    whole = count - count % 32
    assert np.array_equal(found[:whole], due[:whole])


@given(st.sampled_from(sorted(PRECISION_BITS)), SEEDS, COUNTS, BOUNDS)
def test_16_bit_is_what_torch_draws(dtype: str, seed: int, count: int, bound: float) -> None:
    drawn = torch.empty(count, dtype=getattr(torch, dtype)).uniform_(-bound, bound, generator=generator(seed))
    found = uniform_16_bit(
        WordStream(seed).words(count), -bound, bound, dtype, sampler="torch>=2.12", fused_multiply_add=fuses()
    )
    assert np.array_equal(found, drawn.view(torch.int16).numpy().view(np.uint16))


@given(st.sampled_from(sorted(PRECISION_BITS)), SEEDS, BOUNDS, st.booleans())
def test_the_old_sampler_uses_the_low_bits_alone(dtype: str, seed: int, bound: float, fused: bool) -> None:
    words = WordStream(seed).words(100)
    grid = 1 << PRECISION_BITS[dtype]

    def drawn(words: np.ndarray[tuple[int, ...], np.dtype[np.uint32]]) -> bytes:
        return uniform_16_bit(words, -bound, bound, dtype, sampler="torch<2.12", fused_multiply_add=fused).tobytes()

    assert drawn(words) == drawn(words % np.uint32(grid)) == drawn(words | np.uint32(1 << 31))
    low, high = (float(one) for one in rounded(np.array([-bound, bound], dtype=np.float32), dtype))
    due = torch.tensor(words % np.uint32(grid), dtype=torch.float32) / grid * (high - low) + low
    assert drawn(words) == due.to(getattr(torch, dtype)).view(torch.int16).numpy().tobytes()


@pytest.mark.parametrize("dtype", sorted(PRECISION_BITS))
@pytest.mark.parametrize("fused", [True, False])
def test_the_upper_bound_is_never_drawn_since_2_12(dtype: str, fused: bool) -> None:
    words = np.arange(2**24 - 5000, 2**24, dtype=np.uint32)
    found = from_bits(uniform_16_bit(words, -0.25, 0.25, dtype, sampler="torch>=2.12", fused_multiply_add=fused), dtype)
    assert found.max() < 0.25
    assert found.min() == -0.25


@given(SEEDS, st.sampled_from([3.0, 2.0, 8.0, 7.5, 48**0.5]))
def test_ternary_is_torch_rand_with_pefts_thresholds(seed: int, sparsity: float) -> None:
    uniform = torch.rand(500, generator=generator(seed))
    due = torch.zeros(500)
    due[uniform < 1 / (2 * sparsity)] = -1
    due[uniform > 1 - 1 / (2 * sparsity)] = 1
    assert np.array_equal(ternary(WordStream(seed).words(500), sparsity), due.numpy())
