"""SHiRA: single elements of each layer's weight are trained, at places that a random mask chooses.

Source: `peft/tuners/shira/`, read at 0.21.2. Trained is `shira_weight` (r * (in + out)) of each layer; `shira_indices` (2, the
same), rows and columns, are drawn from `random_seed`. They are no buffers: where the file has none, PEFT keeps those that it
drew when it attached the adapter, and says nothing. There is no flag. A mask function of the user's own does not show in
the config if its `mask_type` was left as it is, only in the bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptertool.methods.base import CannotDrawError
from adaptertool.methods.layered import LayerProjections, layout_entry, whole
from adaptertool.methods.merging import ANY_PLACE, BACKENDS, LINEAR, MergeRule
from adaptertool.methods.plain import PlainMethod
from adaptertool.methods.seeds import seed
from adaptertool.methods.shapes import elements, integer, refuse

if TYPE_CHECKING:
    from adaptertool.checkpoint.config import AdapterConfig
    from adaptertool.checkpoint.header import TensorInfo
    from adaptertool.methods.base import Values
    from adaptertool.methods.shapes import Place, Places, Settings, Shapes
    from adaptertool.projection.permuted import RandomMasks
    from adaptertool.projection.recipe import Recipe

DEFAULT_TORCH_SEED = 67280421310721
"""What `torch.Generator()` starts from (`c10/core/GeneratorImpl.h`, `default_rng_seed_val`): PEFT's where no seed is given."""

_TRIED_SHAPES = 16
_COMPARED = 64
_MOST_PLACES = 1 << 26


@dataclass(frozen=True)
class ShiraProjections(LayerProjections):
    """See `adaptertool.methods.base.Projections`."""

    pattern: str = r"(?P<module>.*)\.(?P<kind>shira_indices)"
    trained_pattern: str = r"(?P<module>.*)\.shira_weight"

    def layout(self, config: AdapterConfig, shapes: Mapping[str, tuple[int, ...]], values: Values) -> Mapping[str, Any]:
        """The (out_features, in_features) of each layer, of which the number of places only shows the sum."""
        rank = _rank(config)
        return {"layers": {name: _layer(name, shape, rank, _key(config), values) for name, shape in shapes.items()}}

    def basis(
        self, config: AdapterConfig, shapes: Mapping[str, tuple[int, ...]], layout: Mapping[str, Any]
    ) -> RandomMasks:
        """As many places for each layer as a LoRA of rank r has numbers."""
        return self._basis(_key(config), _rank(config), shapes, layout)

    def basis_of(self, recipe: Recipe, shapes: Mapping[str, tuple[int, ...]]) -> RandomMasks:
        """The same from a recipe."""
        layers = _checked(recipe.layout)
        ranks = {shape[-1] / sum(layers[name]) for name, shape in shapes.items() if name in layers and shape}
        if len(ranks) != 1:
            raise CannotDrawError("the recipe's layers do not fit the tensors")
        return self._basis(recipe.key, int(ranks.pop()), shapes, recipe.layout)

    def _basis(
        self, key: int, rank: int, shapes: Mapping[str, tuple[int, ...]], layout: Mapping[str, Any]
    ) -> RandomMasks:
        from adaptertool.projection.permuted import RandomMasks

        layers = _checked(layout)
        basis = RandomMasks(key, rank, {name: layers[name] for name in shapes if name in layers})
        if basis.shapes != dict(shapes):
            raise CannotDrawError(f"indices of rank {rank} have other shapes")
        return basis

    def undocumented(
        self,
        config: AdapterConfig,
        tensors: Mapping[str, TensorInfo],
        layers: Callable[[], Mapping[str, tuple[int, int]]],
    ) -> tuple[RandomMasks, str]:
        """The seed, the rank and the layers' shapes decide the masks, unless a function of the user's own made them."""
        key, rank = _key(config), _rank(config)
        shapes = {f"{module}.shira_indices": shape for module, shape in layers().items()}
        for module in self.target_modules(tensors):
            weight = tensors[f"{module}.shira_weight"]
            if weight.numel != rank * sum(shapes[f"{module}.shira_indices"]):
                raise CannotDrawError(f"{module} trains {weight.numel} numbers, and the base's layer has another shape")
        layout = {"layers": {name: list(shape) for name, shape in shapes.items()}}
        return self._basis(key, rank, {name: (2, rank * sum(shape)) for name, shape in shapes.items()}, layout), "int32"

    def check_layers(self, config: AdapterConfig, tensors: Mapping[str, TensorInfo]) -> None:
        """As many places as trained numbers, and places for every layer."""
        for module in self.target_modules(tensors):
            indices = tensors.get(f"{module}.shira_indices")
            weight = tensors[f"{module}.shira_weight"]
            if indices is None or indices.shape[1:] != weight.shape:
                raise CannotDrawError(f"{module} trains {weight.numel} numbers, and its indices are not as many")


def _checked(layout: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """The layers of a layout, with shapes whose masks are known."""
    from adaptertool.projection.sampler import SMALL_PERMUTATION

    layers = {}
    for name, layer in layout_entry(layout, "layers", dict).items():
        if not isinstance(layer, list) or len(layer) != 2 or not all(type(dim) is int and dim > 0 for dim in layer):
            raise CannotDrawError("the recipe's layers have no shapes")
        if layer[0] * layer[1] > SMALL_PERMUTATION:
            raise CannotDrawError(f"a layer of {layer[0]}x{layer[1]} is larger than those whose masks are known")
        layers[name] = layer[0], layer[1]
    return layers


def _layer(name: str, shape: tuple[int, ...], rank: int, key: int, values: Values) -> list[int]:
    """The (out_features, in_features) of a layer whose mask this is.

    The last row and the greatest column bound them from below, and their sum is known, so that few shapes are possible.
    """
    from adaptertool.projection.permuted import masked_places
    from adaptertool.projection.sampler import SMALL_PERMUTATION

    if len(shape) != 2 or shape[0] != 2 or not 0 < shape[1] <= _MOST_PLACES or shape[1] % rank:
        raise CannotDrawError(f"{name} {shape} is no mask of rank {rank}")
    count = shape[1]
    compared = min(count, _COMPARED)
    rows = whole(values(name, 0, compared), name)
    columns = whole(values(name, count, count + compared), name)
    least_out = int(whole(values(name, count - 1, count), name)[0]) + 1
    most_out = count // rank - int(columns.max()) - 1
    for out in range(max(1, least_out), min(most_out, least_out + _TRIED_SHAPES) + 1):
        into = count // rank - out
        if into > 0 and count <= out * into <= SMALL_PERMUTATION:
            places = masked_places(key, out * into, count)[:compared]
            if (places == rows * into + columns).all():
                return [out, into]
    raise CannotDrawError(f"seed {key} draws {name} for no shape of a layer: the mask was chosen in another way")


def _rank(config: AdapterConfig) -> int:
    return config.integer("r", 32, least=1, most=2**31)


def _key(config: AdapterConfig) -> int:
    mask_type = config.fields.get("mask_type", "random")
    if mask_type != "random":
        raise CannotDrawError(f"mask_type is {mask_type!r}: the mask came from a function that PEFT does not save")
    if config.fields.get("random_seed") is None:
        return DEFAULT_TORCH_SEED
    return seed(config, "random_seed", 0)


def _tensors(settings: Settings, place: Place, _: Places) -> Shapes:
    numbers = integer(settings, "r", 1) * (place.into + place.out)
    refuse(
        numbers > elements(place),
        f"its r asks for {numbers} places, more than the layer's weight has, and PEFT raises ValueError",
    )
    return {"shira_weight": (numbers,), "shira_indices": (2, numbers)}


def _places(_: Settings, name: str, __: object, shape: tuple[int, ...] | None) -> tuple[range, ...] | None:
    """A row and a column for each number."""
    if name != "shira_indices":
        return None
    return ANY_PLACE if shape is None or len(shape) != 2 else (range(shape[0]), range(shape[1]))


SHIRA = PlainMethod(
    "SHIRA",
    "shira_",
    "r",
    projections=ShiraProjections(),
    merge=MergeRule(tensors=_tensors, kinds=LINEAR, quantised=BACKENDS, places=_places),
)
