"""TinyLoRA's random matrices, which only torch itself draws: its normal numbers depend on the processor's instruction set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from adaptertool.projection.basis import DEFAULT_DTYPE, FloatBasis
from adaptertool.projection.drawn import Drawn, Plain
from adaptertool.projection.generation import Generation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@lru_cache(maxsize=256)
def gaussian(key: int, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Normal numbers of deviation 1/sqrt(r) in the shape (u, r, r), flat.

    Source: `peft/tuners/tinylora/layer.py`, `_init_projection`, read at PEFT 0.21.2.
    """
    import torch

    generator = torch.Generator(device="cpu").manual_seed(key)
    drawn = torch.normal(mean=0.0, std=1.0 / (shape[1] ** 0.5), size=shape, generator=generator)
    return drawn.reshape(-1).numpy()


@dataclass(frozen=True)
class GaussianMatrices(FloatBasis):
    """`tinylora_P` (u, r, r) of each layer, by a seed that counts up from layer to layer.

    Attributes:
        key: `projection_seed`.
        layers: Tensor -> shape, in the order of the layers.
        conditions: Those that the method gives.
    """

    key: int
    layers: Mapping[str, tuple[int, int, int]]
    conditions: tuple[str, ...]
    name: str = "gaussian"

    @property
    def requires(self) -> tuple[str, ...]:
        """The method's, and the instruction set of the processor: torch's kernels approximate logarithm and cosine in it."""
        import torch

        capability = torch.backends.cpu.get_cpu_capability()
        return (
            *self.conditions,
            DEFAULT_DTYPE,
            f"A processor on which torch draws normal numbers with the kernels that it has here ({capability}).",
        )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """In the order of the layers."""
        return dict(self.layers)

    @property
    def layout(self) -> Mapping[str, Any]:
        """The order of the layers."""
        return {"order": list(self.layers)}

    @property
    def generations(self) -> list[Generation]:
        """The installed torch's; all versions draw the same on one processor."""
        return [Generation("any", None, "float32")]

    def draw(self, generation: Generation) -> Iterator[tuple[str, Drawn]]:
        """See `Basis.draw`."""
        for index, (name, shape) in enumerate(self.layers.items()):
            yield name, Plain(gaussian(self.key + index, shape))

    def draw_with_torch(self, dtype: str) -> Iterator[tuple[str, Drawn]]:
        """The same."""
        return self.draw(self.generations[0])

    def fusing_matters(self, generation: Generation) -> bool:
        """The instruction set as a whole matters; see `requires`."""
        return False
