"""The vocabulary of declarations: which tensors PEFT makes for a layer, from the config and the layer's own shape.

PEFT makes the tensors before it loads any. A tensor of the file that has another shape raises, one that PEFT does not make
is left out, and one that the file lacks stays as it was made: `set_peft_model_state_dict` in `peft/utils/save_and_load.py`.
What is declared is `update_layer` of each tuner's `layer.py`, and what `_create_and_replace` in its `model.py` passes to it,
all read at 0.21.2, and held against what PEFT makes of random configs by `tests/methods/test_shapes.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from adaptertool.patterns import match

Settings = Mapping[str, Any]
"""The fields of a config, with PEFT's defaults where it does not name one."""

Shape = tuple[int | None, ...]
"""As of a tensor; None for a dimension that neither the config nor the base's shapes decide."""

Shapes = Mapping[str, Shape]
"""The tensors of a layer, by their name in its module."""

LayerKind = Literal["linear", "conv1d", "embedding", "conv", "attention", "other"]
"""What a layer is, as in `CodeLayer.kind`."""


@dataclass(frozen=True)
class Place:
    """A layer of the base that an adapter is attached to.

    Attributes:
        module: Its path in the live model.
        kind: What it is.
        weight: The shape of its weight in the live model.
        bias: Whether it has a bias; None where that is not known.
    """

    module: str
    kind: LayerKind
    weight: tuple[int, ...]
    bias: bool | None = None

    @property
    def out(self) -> int:
        """What PEFT calls out_features: of an embedding that is its dimension."""
        return self.weight[1 if self.kind in ("conv1d", "embedding") else 0]

    @property
    def into(self) -> int:
        """What PEFT calls in_features: of an embedding the size of its vocabulary. Convolutions are taken for ungrouped."""
        return self.weight[0 if self.kind in ("conv1d", "embedding") else 1]

    @property
    def kernel(self) -> tuple[int, ...]:
        """Of a convolution."""
        return self.weight[2:]

    @property
    def least(self) -> int:
        """The smaller of the two."""
        return min(self.out, self.into)


class Places(tuple[Place, ...]):
    """All layers that an adapter is attached to, in the order of the model."""

    @cached_property
    def widest(self) -> tuple[int, int]:
        """The greatest out_features and the greatest in_features, which need not be of one layer."""
        sizes = [(place.out, place.into) for place in self if place.kind in ("linear", "conv1d")]
        return max((out for out, _ in sizes), default=0), max((into for _, into in sizes), default=0)

    @cached_property
    def elements(self) -> int:
        """How many numbers their weights have."""
        return sum(map(elements, self))


Declaration = Callable[[Settings, Place, Places], Shapes]
"""The tensors that PEFT makes for a layer; its third argument are all layers that the adapter is attached to.

None at all where PEFT leaves the layer as it is.

Raises `RefusedError` where PEFT raises.
"""


def is_of(held: tuple[int, ...], due: Shape) -> bool:
    """Whether a shape is what is declared."""
    return len(held) == len(due) and all(one in (None, other) for one, other in zip(due, held, strict=True))


class RefusedError(Exception):
    """PEFT raises when it attaches an adapter of this config to this layer; the message is the rest of a sentence."""


def refuse(condition: object, reason: str) -> None:
    """Say that PEFT raises.

    Args:
        condition: If it does.
        reason: Why.
    """
    if condition:
        raise RefusedError(reason)


def integer(settings: Settings, field: str, least: int | None = None, value: Any = None) -> int:
    """A whole number of the config.

    Args:
        settings: The config.
        field: Its name.
        least: The least that PEFT takes.
        value: What stands there, if it was looked up already.
    """
    value = settings.get(field) if value is None else value
    if not isinstance(value, int) or (least is not None and value < least):
        raise RefusedError(f"its config says {value!r} for {field}, with which PEFT raises")
    return int(value)


def number(settings: Settings, field: str) -> float:
    """A number of the config.

    Args:
        settings: The config.
        field: Its name.
    """
    value = settings.get(field)
    if not isinstance(value, (int, float)):
        raise RefusedError(f"its config says {value!r} for {field}, with which PEFT raises")
    return value


def by_pattern(settings: Settings, field: str, patterns: str, module: str) -> Any:
    """What a config says for a module: as its patterns say, and else as the field says.

    Source: `get_pattern_key` in `peft/utils/other.py`: the first pattern counts that the path ends with.
    """
    return _by(settings, field, patterns, module, r"(.*\.)?({})$")


def by_named_pattern(settings: Settings, field: str, patterns: str, module: str) -> Any:
    """The same for methods whose patterns fit no whole path, unless they are one literally (C3A, FourierFT)."""
    table = settings.get(patterns)
    found = _by(settings, "", patterns, module, r".*\.{}$")
    if found is None and isinstance(table, Mapping):
        found = table.get(module)
    return settings.get(field) if found is None else found


def _by(settings: Settings, field: str, patterns: str, module: str, form: str) -> Any:
    table = settings.get(patterns)
    if not isinstance(table, Mapping):
        raise RefusedError(f"its config says {table!r} for {patterns}, with which PEFT raises")
    for pattern, value in table.items():
        if match(form.replace("{}", pattern), module, patterns) is not None:
            return value
    return settings.get(field)


def rank_of(settings: Settings, module: str) -> int:
    """The rank of a layer, for methods with an `r` and a `rank_pattern`."""
    return integer(settings, "r", 1, by_pattern(settings, "r", "rank_pattern", module))


def frequencies(place: Place, asked: int) -> int:
    """How many coefficients of a transform of a layer's weight are trained: as many as asked for, if it has them."""
    refuse(
        asked > elements(place),
        f"its config asks for {asked} frequencies, more than the layer's weight has numbers, and PEFT raises ValueError",
    )
    return asked


def flattened(place: Place) -> int:
    """The inputs of a layer; of a convolution those of its whole kernel, which PEFT takes for a square one."""
    return place.into * (place.kernel[0] ** 2 if place.kernel else 1)


def elements(place: Place) -> int:
    """How many numbers the layer's weight has."""
    return math.prod(place.weight)
