"""NaN and infinity are found in every dtype, at the first place where torch sees one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptertool.checkpoint.finite import first_not_finite, may_reach
from adaptertool.checkpoint.header import TensorInfo

TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}


class OneTensor:
    """Weights with one tensor, streamed in pieces that split elements."""

    def __init__(self, dtype: str, data: bytes, piece: int) -> None:
        count = len(data) // (torch.empty(0, dtype=TORCH[dtype]).element_size() if dtype in TORCH else 1)
        self.tensors = {"a": TensorInfo("a", dtype, (count,), 0, len(data))}
        self._data, self._piece = data, piece

    def stream(self, name: str) -> Iterator[memoryview]:
        for at in range(0, len(self._data), self._piece):
            yield memoryview(self._data)[at : at + self._piece]


def found(dtype: str, data: bytes, piece: int = 1 << 20) -> int | None:
    return first_not_finite(OneTensor(dtype, data, piece), "a")  # type: ignore[arg-type]


def due(dtype: str, data: bytes) -> int | None:
    values = torch.frombuffer(bytearray(data), dtype=TORCH[dtype]).to(torch.float64)
    wrong = (~values.isfinite()).nonzero()
    return int(wrong[0]) if len(wrong) else None


@pytest.mark.parametrize("dtype", sorted(set(TORCH) - {"F64", "F32"}))
def test_every_exponent_of_a_narrow_dtype(dtype: str) -> None:
    width = torch.empty(0, dtype=TORCH[dtype]).element_size()
    lows = (0, 1, 0x7F, 0x80, 0xFF) if width == 2 else (0,)
    shift = 8 * (width - 1)
    codes = np.array([(high << shift) + low for high in range(256) for low in lows], dtype=f"<u{width}")
    assert [found(dtype, code.tobytes()) for code in codes] == [due(dtype, code.tobytes()) for code in codes]


@given(
    st.sampled_from(["F32", "F64"]),
    st.lists(st.sampled_from([0, 0x7F, 0x80, 0xEF, 0xF0, 0xFF]), min_size=8, max_size=64),
)
def test_wide_dtypes(dtype: str, values: list[int]) -> None:
    data = bytes(values[: len(values) // 8 * 8])
    for piece in (1, 3, 1000):
        assert found(dtype, data, piece) == due(dtype, data)


@given(
    st.sampled_from(["F64", "F32", "BF16", "F16"]),
    st.lists(st.floats(-6e4, 6e4), min_size=1, max_size=9),
    st.sampled_from([1.0, 16.0, 256.0, 1e4]),
)
def test_large_values(dtype: str, values: list[float], bound: float) -> None:
    """All that reach a bound are found, and none that is far from it."""
    tensor = torch.tensor(values, dtype=torch.float64).to(TORCH[dtype])
    data = tensor.view(torch.uint8).numpy().tobytes()
    reached = may_reach(OneTensor(dtype, data, 3), "a", bound)  # type: ignore[arg-type]
    most = float(tensor.double().abs().max())
    assert reached if most >= bound else not reached or most >= bound / (2**16 if dtype == "F64" else 4)


@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16", "F16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_reaches_every_bound(dtype: str, value: float) -> None:
    data = torch.tensor([0.0, value], dtype=TORCH[dtype]).view(torch.uint8).numpy().tobytes()
    for bound in (1.0, 1e300, float("inf")):
        assert may_reach(OneTensor(dtype, data, 5), "a", bound)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["I64", "U8", "BOOL"])
def test_integers_are_always_finite(dtype: str) -> None:
    assert found(dtype, b"\xff" * 16) is None


def test_the_names_are_those_of_safetensors() -> None:
    content = safetensors.torch.save({name: torch.zeros(8, dtype=dtype) for name, dtype in TORCH.items()})
    for name, entry in safetensors.deserialize(content):  # type: ignore[no-untyped-call]
        assert entry["dtype"] == name
