"""Layers that a model's code uses otherwise than torch's are: it reads them, or their class has a `forward` of its own.

Some have their weight read and are never called, such as Mamba's `dt_proj` and `conv1d`.

An adapter acts in the `forward` of the layer that it wraps, and the wrapper's `weight` and `bias` are the base's
(`BaseTunerLayer` in `peft/tuners/tuners_utils.py`, read at 0.21.2): the model computes without the adapter until that is
merged, and with it afterwards. The table beside this module was made from the code of transformers
(`tests/tools/generate_read_layers.py`).
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adaptertool.merge.base.paths import pattern_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


def is_read(config: Mapping[str, Any], module: str) -> bool:
    """Whether the model reads a layer's weight and never calls the layer.

    Args:
        config: The base model's. Its parts can be models of their own types.
        module: The layer's path in the live model.
    """
    # Some of them are called where transformers has quantised the model.
    quantised = isinstance(config.get("quantization_config"), dict)
    when = ("always",) if quantised else ("always", "not quantised")
    return _is_listed(config, module, when)


def is_read_in_steps(config: Mapping[str, Any], module: str) -> bool:
    """Whether the model calls a layer over a whole sequence, and reads its weight where it generates token by token.

    Args:
        config: See `is_read`.
        module: See `is_read`.
    """
    return _is_listed(config, module, ("in steps",))


Forward = Literal["before", "after", "own"]
"""What a layer's class does beside torch's forward: to its input alone, to its output, or all in code of its own."""


def own_forward(config: Mapping[str, Any], module: str) -> Forward | None:
    """What the class of a layer does in a `forward` of its own; None where that is torch's, or its outputs times a factor.

    Args:
        config: See `is_read`.
        module: See `is_read`.
    """
    effects: tuple[Forward, ...] = ("before", "after", "own")
    return next((effect for effect in effects if _is_listed(config, module, (effect,))), None)


def _is_listed(config: Mapping[str, Any], module: str, when: Iterable[str]) -> bool:
    path = f".{pattern_of(module)}"
    entries = [_table()["models"].get(model_type, {}) for model_type in model_types(config)]
    return any(path.endswith(f".{end}") for one in when for entry in entries for end in entry.get(one, ()))


def model_types(config: Mapping[str, Any]) -> Iterator[str]:
    """The model types of a config and of its parts."""
    model_type = config.get("model_type")
    if isinstance(model_type, str):
        yield model_type
    for part in config.values():
        if isinstance(part, dict):
            yield from model_types(part)


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(Path(__file__).with_name("read_layers.json").read_bytes())
    return table
