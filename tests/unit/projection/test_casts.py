"""Rounding is torch's, and every chain of casts that PEFT can make is tried."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptertool.projection.drawn import Plain, Tabulated, cast_chains, code_values, load_dtypes, stored_bits
from adaptertool.projection.dtypes import from_bits, rounded, to_bits

DTYPES = ("float32", "bfloat16", "float16", "float64")
FLOATS = st.floats(width=32, allow_nan=False) | st.sampled_from([0.0, -0.0, 65519.99, 65520.0, 6e-8, 2.0**-25, 1e38])


def cast_by_torch(values: torch.Tensor, casts: tuple[str, ...]) -> torch.Tensor:
    for dtype in casts:
        values = values.to(getattr(torch, dtype))
    return values


@given(st.lists(FLOATS, min_size=1, max_size=30), st.sampled_from(DTYPES))
def test_rounding_is_torchs(values: list[float], dtype: str) -> None:
    array = np.array(values, dtype=np.float32)
    due = torch.from_numpy(array.copy()).to(getattr(torch, dtype))
    assert to_bits(array, dtype).tobytes() == due.contiguous().view(torch.uint8).numpy().tobytes()
    assert np.array_equal(rounded(array, dtype), due.double().numpy())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_code_of_a_16_bit_dtype(dtype: str) -> None:
    codes = np.arange(1 << 16, dtype=np.uint16)
    due = torch.from_numpy(codes.view(np.int16).copy()).view(getattr(torch, dtype)).float().numpy()
    assert np.array_equal(from_bits(codes, dtype), due, equal_nan=True)
    assert np.array_equal(code_values(dtype), due, equal_nan=True)
    finite = np.isfinite(due)
    assert np.array_equal(to_bits(due, dtype)[finite], codes[finite])


@pytest.mark.parametrize(("generated", "base", "stored"), list(product(DTYPES[:3], DTYPES[:3], DTYPES[:3])))
def test_what_peft_can_have_done_is_among_the_chains(generated: str, base: str, stored: str) -> None:
    """Drawn in one dtype, cast to the base's, and to float32 if the adapter is kept there."""
    if stored not in (base, "float32"):
        return
    values = torch.randn(500, generator=torch.Generator().manual_seed(0)).to(getattr(torch, generated))
    due = cast_by_torch(values, (base, stored))
    found = [cast_by_torch(values, chain) for chain in cast_chains(generated, stored)]
    assert all(one.dtype == due.dtype for one in found)
    assert any(one.equal(due) for one in found)


@pytest.mark.parametrize(("generated", "stored"), list(product(DTYPES[:3], DTYPES)))
def test_chains_end_in_the_stored_dtype_and_are_named_once(generated: str, stored: str) -> None:
    chains = cast_chains(generated, stored)
    assert chains
    assert len(set(chains)) == len(chains)
    assert {chain[-1] for chain in chains} == {stored}
    assert all(first != second for chain in chains for first, second in pairwise(chain))


@given(
    st.lists(st.floats(-3, 3, width=32), min_size=3, max_size=3), st.lists(st.integers(-1, 1), min_size=1, max_size=40)
)
def test_tabulated_and_plain_give_the_same_bits(table: list[float], codes: list[int]) -> None:
    tabulated = Tabulated(np.array(codes, dtype=np.int8), np.array(table, dtype=np.float32))
    plain = Plain(tabulated.table[tabulated.codes])
    for casts in (("float32",), ("bfloat16", "float32"), ("float16",), ("bfloat16", "float16")):
        assert stored_bits(tabulated, casts).tobytes() == stored_bits(plain, casts).tobytes()
        parts = [piece for start in range(len(codes)) for piece in plain.chunks(casts, start, start + 1)]
        assert np.concatenate(parts).tobytes() == stored_bits(plain, casts).tobytes()
        assert tabulated.same_after(casts, ("float32",)) is plain.same_after(casts, ("float32",))


def test_the_bases_that_give_the_same_values() -> None:
    coarse = Plain(np.array([0.5, -1.25, 0.0], dtype=np.float32))
    fine = Plain(np.array([0.5, 1 / 3], dtype=np.float32))
    assert load_dtypes([coarse], ("bfloat16", "float32")) == ("float32", "bfloat16", "float16")
    assert load_dtypes([fine], ("bfloat16", "float32")) == ("bfloat16",)
    assert load_dtypes([coarse, fine], ("float32",)) == ("float32",)
    # Just above a tie in bfloat16, and the tie itself once rounded to float16.
    twice = Plain(np.array([1 + 2**-8 + 2**-12], dtype=np.float32))
    assert load_dtypes([twice], ("float16", "bfloat16", "float32")) == ()
