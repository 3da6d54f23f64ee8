"""FRoD: each layer's weight in a basis that layers of one category share, with trained values on and off the diagonal.

Source: `peft/tuners/frod/`, read at 0.21.2. Trained are `frod_lambda_l` and `frod_lambda_s_values` of each layer. Shared by a
category of layers are `frod_V`, a decomposition of the base's weights, and `frod_s_indices` and `frod_s_size`, which are drawn
from `projection_prng_key`. One flag, `save_projection`, stands for all three. It has to stay true: with it false PEFT
decomposes the weights anew, to other bits. With it true PEFT asks only that one of the three is in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptertool.methods.base import FIRST_OF_ITS_METHOD, CannotDrawError
from adaptertool.methods.layered import SAME_MODULES, LayerProjections, layout_entry, whole
from adaptertool.methods.merging import MergeRule
from adaptertool.methods.plain import DECOMPOSITION, OfTheBase, PlainMethod
from adaptertool.methods.seeds import seed

if TYPE_CHECKING:
    from adaptertool.checkpoint.config import AdapterConfig
    from adaptertool.checkpoint.header import TensorInfo
    from adaptertool.methods.base import Values
    from adaptertool.methods.shapes import Place, Places, Settings, Shape, Shapes
    from adaptertool.projection.permuted import OffDiagonals
    from adaptertool.projection.recipe import Recipe

_INDICES, _SIZE, _BASIS = "base_model.frod_s_indices.", "base_model.frod_s_size.", "base_model.frod_V."


@dataclass(frozen=True)
class FrodProjections(LayerProjections):
    """See `adaptertool.methods.base.Projections`."""

    pattern: str = r"base_model\.(?P<kind>frod_s_(?:indices|size))\.(?P<module>[^.]+)"
    trained_pattern: str = r"(?P<module>.*)\.frod_lambda_(?:l|s_values)"
    flag: str | None = "save_projection"
    conditions: tuple[str, ...] = FIRST_OF_ITS_METHOD

    def layout(self, config: AdapterConfig, shapes: Mapping[str, tuple[int, ...]], values: Values) -> Mapping[str, Any]:
        """Each category's in_features."""
        sizes = [name for name, shape in shapes.items() if name.startswith(_SIZE) and shape == (2,)]
        return {"dimensions": {name.removeprefix(_SIZE): int(whole(values(name, 0, 1), name)[0]) for name in sizes}}

    def basis(
        self, config: AdapterConfig, shapes: Mapping[str, tuple[int, ...]], layout: Mapping[str, Any]
    ) -> OffDiagonals:
        """As many places as `sparse_rate` says."""
        basis = self._basis(seed(config, "projection_prng_key", 0), shapes, layout)
        for category, (dimension, nonzero) in basis.squares.items():
            due = _nonzero(config, dimension)
            if nonzero != due:
                raise CannotDrawError(
                    f"the config's sparse_rate makes {due} places for {category}, and {nonzero} are stored"
                )
        return basis

    def basis_of(self, recipe: Recipe, shapes: Mapping[str, tuple[int, ...]]) -> OffDiagonals:
        """The same from a recipe."""
        return self._basis(recipe.key, shapes, recipe.layout)

    def _basis(self, key: int, shapes: Mapping[str, tuple[int, ...]], layout: Mapping[str, Any]) -> OffDiagonals:
        from adaptertool.projection.permuted import OffDiagonals
        from adaptertool.projection.sampler import SMALL_PERMUTATION

        dimensions = layout_entry(layout, "dimensions", dict)
        squares = {}
        for category, dimension in dimensions.items():
            shape = shapes.get(_INDICES + category, ())
            if type(dimension) is not int or dimension < 1 or dimension * (dimension - 1) > SMALL_PERMUTATION:
                raise CannotDrawError(f"frod_s_size of {category} is {dimension}")
            if len(shape) != 2 or shape[1] > dimension * (dimension - 1):
                raise CannotDrawError(f"frod_s_indices of {category} has shape {shape}")
            squares[category] = dimension, shape[1]
        kinds = {category: (_INDICES + category, _SIZE + category) for category in squares}
        basis = OffDiagonals(key, kinds, squares, (SAME_MODULES,))
        if basis.shapes != dict(shapes):
            raise CannotDrawError("indices and sizes do not belong together")
        return basis

    def undocumented(
        self,
        config: AdapterConfig,
        tensors: Mapping[str, TensorInfo],
        layers: Callable[[], Mapping[str, tuple[int, int]]],
    ) -> tuple[OffDiagonals, str]:
        """The seed, the rate and the sizes of the categories' bases, which are in the file, decide the places."""
        dimensions = {
            name.removeprefix(_BASIS): tensor.shape[0]
            for name, tensor in tensors.items()
            if name.startswith(_BASIS) and tensor.shape
        }
        if not dimensions:
            raise CannotDrawError(
                "PEFT decomposes the base's weights when it loads the adapter, and nothing here does",
                "PEFT does it again with every load; save it from there with save_projection=True to have it in the file.",
            )
        shapes: dict[str, tuple[int, ...]] = {}
        for category, dimension in dimensions.items():
            shapes[_INDICES + category] = (2, _nonzero(config, dimension))
            shapes[_SIZE + category] = (2,)
        key = seed(config, "projection_prng_key", 0)
        return self._basis(key, shapes, {"dimensions": dimensions}), "int64"

    def check_layers(self, config: AdapterConfig, tensors: Mapping[str, TensorInfo]) -> None:
        """Without `frod_V` in the file PEFT would refuse to load what is left."""
        if not any(name.startswith(_BASIS) for name in tensors):
            raise CannotDrawError("the file holds no frod_V, and PEFT loads no file that has none of the three")

    def absent_against_flag(self, tensors: Mapping[str, TensorInfo]) -> str | None:
        """PEFT raises unless another of the three is there."""
        return None if any(name.startswith(_BASIS) for name in tensors) else "PEFT refuses to load it"


def _nonzero(config: AdapterConfig, dimension: int) -> int:
    rate = config.fields.get("sparse_rate", 0.01)
    if not isinstance(rate, (int, float)) or not 0 <= rate <= 1:
        raise CannotDrawError(f"the config's sparse_rate is {rate!r}")
    places = dimension * (dimension - 1)
    nonzero = min(int(dimension * dimension * rate), places)
    return max(1, nonzero) if rate > 0 and places else nonzero


def _tensors(settings: Settings, place: Place, _: Places) -> Shapes:
    return {"frod_lambda_l": (place.into,), "frod_lambda_s_values": (_places(settings, place.into),)}


def _places(settings: Settings, dimension: int) -> int:
    """How many numbers off the diagonal are trained, as `_init_frod_projections` counts them."""
    rate, most = settings["sparse_rate"], dimension * (dimension - 1)
    number = min(int(dimension * dimension * rate), most)
    return max(1, number) if rate > 0 and most else number


def _shared(settings: Settings, places: Places) -> Shapes:
    """The bases of the layers' categories; PEFT loads them if it finds any of them, and raises if it finds none."""
    if not settings.get("save_projection"):
        return {}
    sizes = {_category(place.module): place.into for place in places}
    shapes: dict[str, Shape] = {}
    for category, size in sizes.items():
        shapes[f"frod_V.{category}"] = (size, size)
        shapes[f"frod_s_indices.{category}"] = (2, _places(settings, size))
        shapes[f"frod_s_size.{category}"] = (2,)
    return shapes


def _chosen_from(_: Settings, name: str, tensors: Mapping[str, TensorInfo], __: object) -> tuple[range, ...] | None:
    """Rows and columns of the basis that the layers of a category share, and its two sides."""
    kind, category = name.partition(".")[::2]
    basis = tensors.get(f"frod_V.{category}")
    if kind not in ("frod_s_indices", "frod_s_size") or basis is None or not basis.shape:
        return None
    size = basis.shape[0]
    return (range(size) if kind == "frod_s_indices" else range(size, size + 1),)


def _category(module: str) -> str:
    """As `_category_from_key`."""
    parts = module.split(".")
    if parts[-3:] == ["attention", "output", "dense"]:
        return "attention_output"
    return parts[-1] if len(parts) == 1 or parts[-2].isdigit() else "_".join(parts[-2:])


def _refused(settings: Mapping[str, Any]) -> str | None:
    rate = settings.get("sparse_rate")
    if not isinstance(rate, (int, float)) or not 0 <= rate <= 1:
        return f"sparse_rate is {rate!r}, and PEFT raises where it is not from 0 to 1"
    return None


FROD = PlainMethod(
    "FROD",
    "frod_",
    projections=FrodProjections(),
    merge=MergeRule(
        tensors=_tensors,
        refused=_refused,
        shared=_shared,
        places=_chosen_from,
    ),
    of_the_base=(OfTheBase(r"base_model\.frod_V\..*", "A basis for each category of layers", DECOMPOSITION),),
)
