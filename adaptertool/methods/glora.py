"""GLoRA: five paths for each layer, of which those that are not trained hold zeros.

Source: `peft/tuners/glora/layer.py`, `GloraEmptyPath`, read at 0.21.2. A path that the config switches off, or that needs a
bias which the layer does not have, is a buffer `zeros`; for the paths A and B it is as large as the layer's weight. PEFT
makes the same zeros when it attaches the adapter, whether they are in the file or not. There is no flag.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from adaptertool.methods.base import CannotDrawError
from adaptertool.methods.layered import LayerProjections
from adaptertool.methods.merging import LINEAR, MergeRule
from adaptertool.methods.plain import PlainMethod
from adaptertool.methods.shapes import integer

if TYPE_CHECKING:
    from adaptertool.checkpoint.config import AdapterConfig
    from adaptertool.checkpoint.header import TensorInfo
    from adaptertool.methods.shapes import Place, Places, Settings, Shape, Shapes
    from adaptertool.projection.recipe import Recipe
    from adaptertool.projection.zeros import Zeros


# A and B are (out, in), C is (in, 1), D and E are (out,).
_OF_THE_INPUT = "glora_C.zeros"
_OF_THE_BIAS = ("glora_D.zeros", "glora_E.zeros")


@dataclass(frozen=True)
class GloraProjections(LayerProjections):
    """See `adaptertool.methods.base.Projections`."""

    pattern: str = r"(?P<module>.*)\.(?P<kind>glora_[A-E]\.zeros)"
    trained_pattern: str = r"(?P<module>.*)\.glora_[A-E]\.X[du]?"

    def basis(self, config: AdapterConfig, shapes: Mapping[str, tuple[int, ...]], layout: Mapping[str, Any]) -> Zeros:
        """Zeros."""
        return self._basis(shapes)

    def basis_of(self, recipe: Recipe, shapes: Mapping[str, tuple[int, ...]]) -> Zeros:
        """The same from a recipe."""
        if recipe.basis != "zeros":
            raise CannotDrawError(f"{recipe.basis} is nothing that GLoRA stores")
        return self._basis(shapes)

    def undocumented(
        self,
        config: AdapterConfig,
        tensors: Mapping[str, TensorInfo],
        layers: Callable[[], Mapping[str, tuple[int, int]]],
    ) -> NoReturn:
        """They hold nothing that anyone needs."""
        raise CannotDrawError("paths that are not trained hold zeros, which PEFT makes whether they are stored or not")

    def _basis(self, shapes: Mapping[str, tuple[int, ...]]) -> Zeros:
        from adaptertool.projection.zeros import Zeros

        for name, shape in shapes.items():
            path = self.module_and_kind(name)[1]
            dimensions = 1 if path in _OF_THE_BIAS else 2
            if len(shape) != dimensions or 0 in shape or (path == _OF_THE_INPUT and shape[1] != 1):
                raise CannotDrawError(f"{name} has shape {shape}, in which PEFT makes no zeros")
        return Zeros(shapes)


def _refused(settings: Mapping[str, Any]) -> str | None:
    for field, known in _PATHS.items():
        if settings.get(field) not in known:
            return f"PEFT knows no {field} {settings.get(field)!r}, and raises ValueError"
    return None


_PATHS = {
    "config_A_B": ("lora", "vector", "constant", "none"),
    "config_C": ("lora", "vector", "none"),
    "config_D_E": ("vector", "constant", "none"),
}


def _tensors(settings: Settings, place: Place, _: Places) -> Shapes:
    rank = integer(settings, "r", 0)
    shapes: dict[str, Shape] = {}
    for path, (field, full) in _SHAPES.items():
        kind = settings.get(field) if place.bias or field == "config_A_B" else "none"
        size = full(place)
        if kind == "lora":
            shapes |= {f"glora_{path}.Xd": (size[0], rank), f"glora_{path}.Xu": (rank, size[1])}
        elif kind == "vector":
            shapes[f"glora_{path}.X"] = (size[0], 1)[: len(size)]
        elif kind == "constant":
            shapes[f"glora_{path}.X"] = (1,)
        else:
            shapes[f"glora_{path}.zeros"] = size
    return shapes


_SHAPES: Mapping[str, tuple[str, Callable[[Place], tuple[int, ...]]]] = {
    **dict.fromkeys("AB", ("config_A_B", lambda place: (place.out, place.into))),
    "C": ("config_C", lambda place: (place.into, 1)),
    **dict.fromkeys("DE", ("config_D_E", lambda place: (place.out,))),
}
"""The config's field for each path, and the shape of what it adds."""

GLORA = PlainMethod(
    "GLORA",
    "glora_",
    "r",
    projections=GloraProjections(),
    merge=MergeRule(tensors=_tensors, refused=_refused, kinds=LINEAR),
)
