"""Tensors of zeros that hold the place of what is not trained."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from adaptertool.projection.basis import FloatBasis
from adaptertool.projection.drawn import Drawn, Tabulated
from adaptertool.projection.generation import Generation


@dataclass(frozen=True)
class Zeros(FloatBasis):
    """Zeros in given shapes, in whichever dtype.

    Attributes:
        tensors: Name -> shape.
    """

    tensors: Mapping[str, tuple[int, ...]]
    key: int = 0
    name: str = "zeros"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """As given."""
        return dict(self.tensors)

    @property
    def generations(self) -> list[Generation]:
        """One way."""
        return [Generation("any", None, "float32")]

    def draw(self, generation: Generation) -> Iterator[tuple[str, Drawn]]:
        """See `Basis.draw`."""
        for name, shape in self.tensors.items():
            codes = np.broadcast_to(np.zeros(1, dtype=np.uint8), math.prod(shape))
            yield name, Tabulated(codes, np.zeros(1, dtype=np.float32))

    def draw_with_torch(self, dtype: str) -> Iterator[tuple[str, Drawn]]:
        """The same."""
        return self.draw(self.generations[0])

    def fusing_matters(self, generation: Generation) -> bool:
        """Nothing is multiplied and added."""
        return False
