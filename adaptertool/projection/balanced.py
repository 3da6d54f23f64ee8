"""UniLoRA's balanced assignment of shared numbers to the places of all layers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptertool.projection.basis import FloatBasis
from adaptertool.projection.drawn import Drawn, Plain, Whole
from adaptertool.projection.generation import Generation

if TYPE_CHECKING:
    from numpy.typing import NDArray

INDICES = ("unilora_indices_A", "unilora_indices_B")
SCALES = ("unilora_scales_A", "unilora_scales_B")


@lru_cache(maxsize=2)
def balanced_indices(key: int, count: int, length: int) -> NDArray[np.int64]:
    """Which of `length` shared numbers each of `count` places gets, each number as often as any other, give or take one.

    Source: `peft/tuners/unilora/model.py`, `generate_index`, read at PEFT 0.21.2; by numpy's Generator, not torch's.
    """
    generator = np.random.default_rng(key)
    indices = np.repeat(np.arange(length), count // length)
    if count % length:
        indices = np.concatenate([indices, generator.choice(length, size=count % length, replace=False)])
    generator.shuffle(indices)
    return indices.astype(np.int64, copy=False)


@dataclass(frozen=True)
class BalancedIndices(FloatBasis):
    """Indices and scales of each layer, in the order of the layers: A (r, in), then B (out, r).

    Attributes:
        key: `proj_seed`.
        length: `theta_d_length`.
        layers: Module -> the shapes of its A and its B, in the order of the modules.
        requires: Further conditions.
    """

    key: int
    length: int
    layers: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    conditions: tuple[str, ...]
    name: str = "balanced"

    @property
    def requires(self) -> tuple[str, ...]:
        """Those that the method gives, and numpy's."""
        return (
            *self.conditions,
            f"A numpy whose Generator draws as that of numpy {np.__version__} does; its streams may change between releases.",
        )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Layer by layer, indices before scales."""
        return {
            f"{module}.{kind}": shape
            for module, pair in self.layers.items()
            for kinds in (INDICES, SCALES)
            for kind, shape in zip(kinds, pair, strict=True)
        }

    @property
    def fixed(self) -> Mapping[str, str]:  # type: ignore[override]
        """Indices are int64; scales follow the base."""
        return {f"{module}.{kind}": "int64" for module in self.layers for kind in INDICES}

    @property
    def layout(self) -> Mapping[str, Any]:
        """The order of the modules and the length of the shared vector."""
        return {"order": list(self.layers), "length": self.length}

    @property
    def generations(self) -> list[Generation]:
        """Nothing of it is torch's."""
        return [Generation("any", None, "float32")]

    def draw(self, generation: Generation) -> Iterator[tuple[str, Drawn]]:
        """See `Basis.draw`."""
        count = sum(math.prod(shape) for pair in self.layers.values() for shape in pair)
        indices = balanced_indices(self.key, count, self.length)
        often = np.bincount(indices, minlength=self.length).astype(np.float32)
        with np.errstate(divide="ignore"):
            # torch's rsqrt is a rounded root and a rounded quotient with every instruction set.
            scales = np.where(often > 0, np.float32(1) / np.sqrt(often), np.float32(0)).astype(np.float32)
        at = 0
        for module, pair in self.layers.items():
            own = []
            for shape in pair:
                own.append(indices[at : at + math.prod(shape)])
                at += math.prod(shape)
            for kind, part in zip(INDICES, own, strict=True):
                yield f"{module}.{kind}", Whole(part, "int64")
            for kind, part in zip(SCALES, own, strict=True):
                yield f"{module}.{kind}", Plain(scales[part])

    def draw_with_torch(self, dtype: str) -> Iterator[tuple[str, Drawn]]:
        """The same: torch has no part in it."""
        return self.draw(self.generations[0])

    def fusing_matters(self, generation: Generation) -> bool:
        """Nothing is multiplied and added."""
        return False
