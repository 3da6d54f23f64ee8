"""Places in a matrix that are the first of a random permutation, as SHiRA and FRoD draw them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from adaptertool.projection.basis import WholeBasis
from adaptertool.projection.drawn import Drawn, Whole
from adaptertool.projection.generation import Generation
from adaptertool.projection.sampler import WordStream, permutation_head

if TYPE_CHECKING:
    from numpy.typing import NDArray

_GENERATION = Generation("any", None, "int64")


@lru_cache(maxsize=8)
def masked_places(key: int, numel: int, count: int) -> NDArray[np.int64]:
    """The places that a random mask of `count` ones among `numel` elements has, in ascending order."""
    return np.sort(permutation_head(WordStream(key), numel, count))


@dataclass(frozen=True)
class RandomMasks(WholeBasis):
    """`shira_indices` (2, r * (out + in)) of each layer: rows and columns of its mask, in row-major order.

    Source: `peft/tuners/shira/mask_functions.py`, `random_mask`, and `layer.py`, `update_layer`, read at PEFT 0.21.2. Each
    layer's generator starts anew, so layers of one shape have one mask.

    Attributes:
        key: `random_seed`, or torch's own default.
        rank: `r`.
        layers: Tensor -> (out_features, in_features).
    """

    key: int
    rank: int
    layers: Mapping[str, tuple[int, int]]
    name: str = "random-mask"
    fixed: ClassVar[Mapping[str, str]] = {}
    requires: ClassVar[tuple[str, ...]] = ()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """As many as a LoRA of that rank has numbers."""
        return {name: (2, self.rank * sum(layer)) for name, layer in self.layers.items()}

    @property
    def layout(self) -> Mapping[str, Any]:
        """The layers' shapes, of which the tensors only show the sum."""
        return {"layers": {name: list(layer) for name, layer in self.layers.items()}}

    @property
    def generations(self) -> list[Generation]:
        """Permutations are the same in all versions."""
        return [_GENERATION]

    def chains(self, generation: Generation, stored: str) -> list[tuple[str, ...]]:
        """PEFT saves them as int32, and as float32 on Windows; it loads either."""
        return [(stored,)] if stored in ("int32", "float32") else []

    def draw(self, generation: Generation) -> Iterator[tuple[str, Drawn]]:
        """See `Basis.draw`."""
        for name, (out, into) in self.layers.items():
            yield name, _rows_and_columns(masked_places(self.key, out * into, self.rank * (out + into)), into)

    def draw_with_torch(self, dtype: str) -> Iterator[tuple[str, Drawn]]:
        """See `Basis.draw_with_torch`."""
        import torch

        for name, (out, into) in self.layers.items():
            generator = torch.Generator(device="cpu").manual_seed(self.key)
            places = torch.randperm(out * into, generator=generator)[: self.rank * (out + into)]
            yield name, _rows_and_columns(places.sort().values.numpy(), into)

    def fusing_matters(self, generation: Generation) -> bool:
        """Whole numbers do not fuse."""
        return False


def _rows_and_columns(places: NDArray[np.int64], columns: int) -> Whole:
    return Whole(np.concatenate(np.divmod(places, columns)))


@dataclass(frozen=True)
class OffDiagonals(WholeBasis):
    """`frod_s_indices` (2, nonzero) and `frod_s_size` (2,) of each category of layers: places off a square's diagonal.

    Source: `peft/tuners/frod/model.py`, `_init_frod_projections`, read at PEFT 0.21.2. One generator serves all categories, in
    alphabetical order.

    Attributes:
        key: `projection_prng_key`.
        kinds: Category -> the names of its indices and its size.
        squares: Category -> (in_features, nonzero).
    """

    key: int
    kinds: Mapping[str, tuple[str, str]]
    squares: Mapping[str, tuple[int, int]]
    requires: tuple[str, ...]
    name: str = "off-diagonal"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Category by category, indices and size."""
        shapes: dict[str, tuple[int, ...]] = {}
        for category in sorted(self.kinds):
            indices, size = self.kinds[category]
            shapes[indices] = (2, self.squares[category][1])
            shapes[size] = (2,)
        return shapes

    @property
    def fixed(self) -> Mapping[str, str]:
        """All of them are int64."""
        return dict.fromkeys(self.shapes, "int64")

    @property
    def layout(self) -> Mapping[str, Any]:
        """The categories' in_features."""
        return {"dimensions": {category: square[0] for category, square in self.squares.items()}}

    @property
    def generations(self) -> list[Generation]:
        """Permutations are the same in all versions."""
        return [_GENERATION]

    def chains(self, generation: Generation, stored: str) -> list[tuple[str, ...]]:
        """Nothing is cast."""
        return [("int64",)]

    def draw(self, generation: Generation) -> Iterator[tuple[str, Drawn]]:
        """See `Basis.draw`."""
        stream = WordStream(self.key)
        for category in sorted(self.kinds):
            dimension, nonzero = self.squares[category]
            places = dimension * (dimension - 1)
            # Without nonzero places PEFT draws nothing.
            head = permutation_head(stream, places, nonzero) if nonzero else np.empty(0, dtype=np.int64)
            yield from self._tensors(category, head)

    def draw_with_torch(self, dtype: str) -> Iterator[tuple[str, Drawn]]:
        """See `Basis.draw_with_torch`."""
        import torch

        generator = torch.Generator(device="cpu").manual_seed(self.key)
        for category in sorted(self.kinds):
            dimension, nonzero = self.squares[category]
            head = np.empty(0, dtype=np.int64)
            if nonzero:
                head = torch.randperm(dimension * (dimension - 1), generator=generator)[:nonzero].numpy()
            yield from self._tensors(category, head)

    def _tensors(self, category: str, head: NDArray[np.int64]) -> Iterator[tuple[str, Drawn]]:
        dimension, _ = self.squares[category]
        indices, size = self.kinds[category]
        # Row-major places off the diagonal: `dimension - 1` in each row, those from the diagonal on one to the right.
        rows, columns = np.divmod(head, max(1, dimension - 1))
        columns += columns >= rows
        yield indices, Whole(np.concatenate([rows, columns]), "int64")
        yield size, Whole(np.array([dimension, dimension], dtype=np.int64), "int64")

    def fusing_matters(self, generation: Generation) -> bool:
        """Whole numbers do not fuse."""
        return False
