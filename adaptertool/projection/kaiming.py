"""Pairs of Kaiming-uniform float32 matrices, as VeRA and PVeRA draw them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adaptertool.projection.basis import DEFAULT_DTYPE, FloatBasis
from adaptertool.projection.drawn import Drawn, Plain
from adaptertool.projection.generation import Generation
from adaptertool.projection.sampler import WordStream, ahead, uniform_float32

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class KaimingPair(FloatBasis):
    """A (rows, in_features), then B (out_features, columns), in float32 from one generator.

    Source: `peft/tuners/vera/model.py`, `_init_vera_A_vera_B`, and `peft/tuners/pvera/model.py`, read at PEFT 0.21.2; both
    come to torch's `kaiming_uniform_(a=0)`.

    Attributes:
        key: `projection_prng_key`.
        kinds: The names of A and B.
        rows: Rows of A.
        in_features: Columns of A: the greatest among the targeted layers.
        out_features: Rows of B: the greatest among the targeted layers.
        columns: Columns of B, the rank.
    """

    key: int
    kinds: tuple[str, ...]
    rows: int
    in_features: int
    out_features: int
    columns: int
    name: str = "kaiming-uniform"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """A is drawn first, then B."""
        return dict(zip(self.kinds, ((self.rows, self.in_features), (self.out_features, self.columns)), strict=True))

    @property
    def requires(self) -> tuple[str, ...]:
        """PEFT names no dtype."""
        return (DEFAULT_DTYPE,)

    @property
    def generations(self) -> list[Generation]:
        """All versions of torch draw float32 alike, with fused multiply-add or without."""
        return [Generation("any", fused, "float32") for fused in (True, False)]

    def draw(self, generation: Generation) -> Iterator[tuple[str, Drawn]]:
        """See `Basis.draw`."""
        stream = WordStream(self.key)
        for kind, (rows, columns) in self.shapes.items():
            yield kind, Plain(_uniform(stream, rows * columns, columns, fused=bool(generation.fused_multiply_add)))

    def draw_with_torch(self, dtype: str) -> Iterator[tuple[str, Drawn]]:
        """See `Basis.draw_with_torch`."""
        import torch

        generator = torch.Generator(device="cpu").manual_seed(self.key)
        for kind, shape in self.shapes.items():
            tensor = torch.empty(shape, dtype=getattr(torch, dtype))
            tensor.uniform_(-_bound(shape[1]), _bound(shape[1]), generator=generator)
            yield kind, Plain(tensor.reshape(-1).numpy())

    def fusing_matters(self, generation: Generation) -> bool:
        """See `Basis.fusing_matters`."""
        streams = WordStream(self.key), WordStream(self.key)
        for rows, columns in self.shapes.values():
            fused, apart = (
                _uniform(stream, rows * columns, columns, fused=fusing)
                for stream, fusing in zip(streams, (True, False), strict=True)
            )
            if not np.array_equal(fused, apart):
                return True
        return False


def _bound(fan_in: int) -> float:
    """In the order of operations of `_kaiming_init`: sqrt(3) * (sqrt(2) / sqrt(fan_in))."""
    return math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(fan_in))


def _uniform(stream: WordStream, count: int, fan_in: int, *, fused: bool) -> NDArray[np.float32]:
    result = np.empty(count, dtype=np.float32)
    bound = _bound(fan_in)
    at = 0
    for words in ahead(stream.pieces(count)):
        result[at : at + words.size] = uniform_float32(words, -bound, bound, fused_multiply_add=fused)
        at += words.size
    return result
