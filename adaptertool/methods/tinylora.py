"""TinyLoRA: a decomposition of each layer's weight, steered by a tiny trained vector through random matrices.

Source: `peft/tuners/tinylora/`, read at 0.21.2. Trained are `base_model.tinylora_v.*`. `tinylora_A` and `tinylora_B` of each
layer are a decomposition of the base's weight. `tinylora_P` (u, r, r) is drawn from `projection_seed` plus the layer's number
in the order of the model; with `save_projection` false PEFT draws it when it loads the adapter. PEFT 0.19 drew it from a hash
that changes with every process, and the bits tell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptertool.checkpoint.config import version_numbers
from adaptertool.methods.base import CannotDrawError
from adaptertool.methods.layered import SAME_MODULES, LayerProjections, check_order, layout_entry
from adaptertool.methods.merging import CONV1D, EMBEDDING, LINEAR, MergeRule
from adaptertool.methods.plain import DECOMPOSITION, OfTheBase, PlainMethod
from adaptertool.methods.seeds import seed
from adaptertool.methods.shapes import integer
from adaptertool.words import natural

if TYPE_CHECKING:
    from adaptertool.checkpoint.config import AdapterConfig
    from adaptertool.checkpoint.header import TensorInfo
    from adaptertool.methods.base import Values
    from adaptertool.methods.shapes import Place, Places, Settings, Shape, Shapes
    from adaptertool.projection.gaussian import GaussianMatrices
    from adaptertool.projection.recipe import Recipe

_COMPARED = 16
_FIRST_SEEDED = 20
_SEEDED = f"PEFT 0.{_FIRST_SEEDED} or newer: the one before draws others from the same config."
_MOST_ELEMENTS = 1 << 28


@dataclass(frozen=True)
class TinyLoraProjections(LayerProjections):
    """See `adaptertool.methods.base.Projections`."""

    pattern: str = r"(?P<module>.*)\.(?P<kind>tinylora_P)"
    trained_pattern: str = r"(?P<module>.*)\.tinylora_[AB]"
    flag: str | None = "save_projection"
    stripped_flag: bool | None = False
    needs_torch: bool = True
    conditions: tuple[str, ...] = (
        "Other adapters of its method on the model saved without projections too; PEFT raises otherwise.",
    )

    def layout(self, config: AdapterConfig, shapes: Mapping[str, tuple[int, ...]], values: Values) -> Mapping[str, Any]:
        """The order of the layers in the model, which the file does not keep: the one in which the drawn matrices fit."""
        from adaptertool.projection.drawn import LOAD_DTYPES
        from adaptertool.projection.dtypes import rounded
        from adaptertool.projection.gaussian import gaussian

        key = _key(config)
        _check_seeds(key, len(shapes))
        left = {name: _shape(name, shapes[name]) for name in sorted(shapes, key=natural)}
        heads = {name: values(name, 0, min(_COMPARED, shape[0] * shape[1] ** 2)) for name, shape in left.items()}
        order: list[str] = []
        for index in range(len(shapes)):
            for name, shape in left.items():
                head = heads[name]
                drawn = gaussian(key + index, shape)[: head.size]
                # The bits proper are compared later, with every chain of casts.
                if any((rounded(drawn, dtype) == head).all() for dtype in LOAD_DTYPES):
                    order.append(name)
                    del left[name]
                    break
            else:
                raise CannotDrawError(
                    f"seed {key + index} is due for layer {index} of {len(shapes)}, and no stored matrix is drawn from it; "
                    + self._who_drew(config)
                )
        check_order([self.module_and_kind(name)[0] for name in order])
        return {"order": order}

    def _who_drew(self, config: AdapterConfig) -> str:
        """What may have drawn the matrices that the config does not."""
        version = version_numbers(config.text_or_none("peft_version"))
        if version >= (0, _FIRST_SEEDED):
            return "another adapter may have been on the model before, or a processor of another kind have drawn them"
        return "PEFT 0.19 drew them from a seed of its own that it did not save"

    def basis(
        self, config: AdapterConfig, shapes: Mapping[str, tuple[int, ...]], layout: Mapping[str, Any]
    ) -> GaussianMatrices:
        """Of `u` matrices for each layer."""
        vectors = config.integer("u", 64, least=1)
        wrong = [shape for shape in shapes.values() if shape[:1] != (vectors,)]
        if wrong:
            raise CannotDrawError(f"the config's u is {vectors}, and {wrong[0]} is the shape of what is stored")
        return self._basis(_key(config), shapes, layout)

    def basis_of(self, recipe: Recipe, shapes: Mapping[str, tuple[int, ...]]) -> GaussianMatrices:
        """The same from a recipe."""
        return self._basis(recipe.key, shapes, recipe.layout)

    def _basis(self, key: int, shapes: Mapping[str, tuple[int, ...]], layout: Mapping[str, Any]) -> GaussianMatrices:
        from adaptertool.projection.gaussian import GaussianMatrices

        order = layout_entry(layout, "order", list)
        _check_seeds(key, len(shapes))
        if not all(isinstance(name, str) for name in order) or sorted(order) != sorted(shapes):
            raise CannotDrawError("the recipe's order is not that of the file's layers")
        return GaussianMatrices(key, {name: _shape(name, shapes[name]) for name in order}, (_SEEDED, SAME_MODULES))

    def drawn_otherwise(self, config: AdapterConfig) -> str | None:
        """PEFT 0.19 seeded with a hash of the adapter's name, which Python salts anew in every process."""
        version = re.match(r"0\.(\d{1,9})", str(config.fields.get("peft_version")))
        if version is None or int(version[1]) >= _FIRST_SEEDED:
            return None
        return "PEFT 0.19 drew tinylora_P from a seed that it did not save, other ones in every process: they are lost"

    def check_layers(self, config: AdapterConfig, tensors: Mapping[str, TensorInfo]) -> None:
        """Every layer has its own."""
        missing = [module for module in self.target_modules(tensors) if f"{module}.tinylora_P" not in tensors]
        if missing:
            raise CannotDrawError(f"{missing[0]} has no tinylora_P in the file, and others have one")


def _check_seeds(key: int, layers: int) -> None:
    if key + layers >= 2**64:
        raise CannotDrawError(f"seed {key} leaves no seeds for {layers} layers")


def _shape(name: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) != 3 or shape[1] != shape[2] or 0 in shape or shape[0] * shape[1] ** 2 > _MOST_ELEMENTS:
        raise CannotDrawError(f"{name} {shape} is no stack of square matrices")
    return shape[0], shape[1], shape[2]


def _key(config: AdapterConfig) -> int:
    return seed(config, "projection_seed", 42)


def _refused(settings: Mapping[str, Any]) -> str | None:
    tying = settings.get("weight_tying")
    if not isinstance(tying, (int, float)) or not 0 <= tying <= 1:
        return f"weight_tying is {tying!r}, and PEFT raises where it is not from 0 to 1"
    return None


def _tensors(settings: Settings, place: Place, _: Places) -> Shapes:
    rank, vectors = min(integer(settings, "r", 1), place.least), integer(settings, "u", 1)
    # Of an embedding PEFT decomposes the weight as it is stored.
    out, into = (place.into, place.out) if place.kind == "embedding" else (place.out, place.into)
    shapes: dict[str, Shape] = {"tinylora_A": (rank, into), "tinylora_B": (out, rank)}
    # What the config says to draw anew PEFT leaves in the file.
    return {**shapes, "tinylora_P": (vectors, rank, rank)} if settings.get("save_projection") else shapes


def _shared(settings: Settings, places: Places) -> Shapes:
    """A vector for each group of layers, as `_create_and_replace` counts them."""
    layers = len(places)
    groups = max(1, round(layers * (1.0 - settings["weight_tying"])))
    size = max(1, layers // groups)
    used = {min(index // size, groups - 1) for index in range(layers)}
    return {f"tinylora_v.{group}": (integer(settings, "u", 1),) for group in sorted(used)}


TINYLORA = PlainMethod(
    "TINYLORA",
    "tinylora_",
    "r",
    projections=TinyLoraProjections(),
    merge=MergeRule(
        tensors=_tensors,
        refused=_refused,
        shared=_shared,
        kinds=LINEAR | CONV1D | EMBEDDING,
        scaled=False,
    ),
    of_the_base=(OfTheBase(r".*\.tinylora_[AB]", "Singular vectors of each layer", DECOMPOSITION),),
)
