"""UniLoRA: all layers' LoRA matrices are made of one trained vector, each place taking one of its numbers.

Source: `peft/tuners/unilora/`, read at 0.21.2. Trained is `base_model.unilora_theta_d`. `unilora_indices_A/B` and
`unilora_scales_A/B` of each layer are drawn from `proj_seed`, one shuffle over all layers in the order of the model. They
are in the file where `save_indices` is true; it is false by default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptertool.methods.base import CannotDrawError
from adaptertool.methods.layered import SAME_MODULES, LayerProjections, check_order, layout_entry, whole
from adaptertool.methods.merging import MergeRule
from adaptertool.methods.plain import PlainMethod
from adaptertool.methods.shapes import integer, number
from adaptertool.words import natural

if TYPE_CHECKING:
    from adaptertool.checkpoint.config import AdapterConfig
    from adaptertool.methods.base import Values
    from adaptertool.methods.shapes import Place, Places, Settings, Shapes
    from adaptertool.projection.balanced import BalancedIndices
    from adaptertool.projection.recipe import Recipe

_COMPARED = 64
_MOST_PLACES = 1 << 28


@dataclass(frozen=True)
class UniLoraProjections(LayerProjections):
    """See `adaptertool.methods.base.Projections`."""

    pattern: str = r"(?P<module>.*)\.(?P<kind>unilora_(?:indices|scales)_[AB])"
    trained_pattern: str = r"(?P<module>.*)\.unilora_theta_d"
    flag: str | None = "save_indices"
    flag_default: bool = False
    stripped_flag: bool | None = False

    def layout(self, config: AdapterConfig, shapes: Mapping[str, tuple[int, ...]], values: Values) -> Mapping[str, Any]:
        """The order of the modules in the model, which the file does not keep: the one in which the drawn indices fit."""
        from adaptertool.projection.balanced import balanced_indices

        layers = self._layers(shapes)
        sizes = {module: tuple(_numel(shape) for shape in pair) for module, pair in layers.items()}
        length = _length(config)
        count = sum(sum(pair) for pair in sizes.values())
        _check_size(count, length)
        drawn = balanced_indices(_key(config), count, length)
        heads = {
            module: whole(values(f"{module}.unilora_indices_A", 0, min(_COMPARED, sizes[module][0])), module)
            for module in sorted(layers, key=natural)
        }
        order: list[str] = []
        at = 0
        while heads:
            fitting = next(
                (module for module, head in heads.items() if (drawn[at : at + head.size] == head).all()), None
            )
            if fitting is None:
                raise CannotDrawError(
                    f"proj_seed {_key(config)} gives no layer of the file the indices that are due at place {at} of {count}"
                )
            del heads[fitting]
            order.append(fitting)
            at += sum(sizes[fitting])
        check_order(order)
        return {"order": order, "length": length}

    def basis(
        self, config: AdapterConfig, shapes: Mapping[str, tuple[int, ...]], layout: Mapping[str, Any]
    ) -> BalancedIndices:
        """Indices into `theta_d_length` numbers."""
        return self._basis(_key(config), _length(config), shapes, layout)

    def basis_of(self, recipe: Recipe, shapes: Mapping[str, tuple[int, ...]]) -> BalancedIndices:
        """The same from a recipe."""
        return self._basis(recipe.key, layout_entry(recipe.layout, "length", int), shapes, recipe.layout)

    def _basis(
        self, key: int, length: int, shapes: Mapping[str, tuple[int, ...]], layout: Mapping[str, Any]
    ) -> BalancedIndices:
        from adaptertool.projection.balanced import BalancedIndices

        layers = self._layers(shapes)
        order = layout_entry(layout, "order", list)
        _check_size(sum(_numel(shape) for pair in layers.values() for shape in pair), length)
        if not all(isinstance(module, str) for module in order) or sorted(order) != sorted(layers) or key < 0:
            raise CannotDrawError("the recipe's order is not that of the file's modules")
        return BalancedIndices(key, length, {module: layers[module] for module in order}, (SAME_MODULES,))

    def _layers(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        modules = dict.fromkeys(self.module_and_kind(name)[0] for name in shapes)
        layers = {}
        for module in modules:
            found = [
                [shapes.get(f"{module}.unilora_{what}_{side}", ()) for side in "AB"] for what in ("indices", "scales")
            ]
            if found[0] != found[1] or not all(len(shape) == 2 and 0 not in shape for shape in found[0]):
                raise CannotDrawError(f"the indices and scales of {module} are incomplete")
            layers[module] = found[0][0], found[0][1]
        return layers


def _check_size(count: int, length: int) -> None:
    if count > _MOST_PLACES or not 0 < length <= _MOST_PLACES:
        raise CannotDrawError(f"{length} numbers at {count} places are more than any adapter has")


def _numel(shape: tuple[int, ...]) -> int:
    result = 1
    for dim in shape:
        result *= dim
    return result


def _key(config: AdapterConfig) -> int:
    return config.integer("proj_seed", 42, least=0)


def _length(config: AdapterConfig) -> int:
    return config.integer("theta_d_length", 256, least=1, most=2**31)


def _refused(settings: Mapping[str, Any]) -> str | None:
    if number(settings, "init_theta_d_bound") <= 0 or not 0 <= number(settings, "unilora_dropout") <= 1:
        return "init_theta_d_bound is not above 0 or unilora_dropout not from 0 to 1, and PEFT raises ValueError"
    if isinstance(seed := settings.get("proj_seed"), int) and seed < 0:
        return f"proj_seed is {seed}, and PEFT raises where it is below 0"
    if settings.get("bias") not in ("none", "all", "unilora_only"):
        return f"bias is {settings.get('bias')!r}, with which PEFT raises ValueError"
    return None


def _tensors(settings: Settings, place: Place, _: Places) -> Shapes:
    """Nothing of its own, unless the places are saved."""
    rank = integer(settings, "r", 1)
    if not settings.get("save_indices"):
        return {}
    inputs, outputs = (rank, place.into), (place.out, rank)
    return {
        f"unilora_{what}_{side}": shape
        for what in ("indices", "scales")
        for side, shape in (("A", inputs), ("B", outputs))
    }


def _places(settings: Settings, name: str, *_: object) -> tuple[range, ...] | None:
    return (range(integer(settings, "theta_d_length", 1)),) if name.startswith("unilora_indices_") else None


UNILORA = PlainMethod(
    "UNILORA",
    "unilora_",
    "r",
    projections=UniLoraProjections(),
    merge=MergeRule(
        tensors=_tensors,
        refused=_refused,
        shared=lambda settings, _: {"unilora_theta_d": (integer(settings, "theta_d_length", 1),)},
        own_tensors=False,
        places=_places,
    ),
)
