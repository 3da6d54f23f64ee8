"""Layer replication: a model that is made of ranges of the base's layers, each with an update of its own.

Source: `replicate_layers` in `peft/tuners/tuners_utils.py`, which the LoRA and AdaLoRA models call, read at 0.21.2.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from adaptertool.errors import CorruptError
from adaptertool.words import layer_number

if TYPE_CHECKING:
    from collections.abc import Mapping


def hazard(config: Mapping[str, Any]) -> str | None:
    """See `MergeRule.hazard`."""
    layers = _layers(config)
    if len(set(layers)) < len(layers):
        return (
            "layer_replication trained several updates for one base layer, and merge_and_unload adds them all to the weights "
            "that the replicas share"
        )
    return None


def base_module(config: Mapping[str, Any], module: str) -> str:
    """See `MergeRule.base_module`: the model's layers are ranges of the base's, one after another."""
    layers = _layers(config)
    number = re.search(r"(?<=\.)\d+(?=\.)", module)
    if not layers or number is None:
        return module
    index = layer_number(number[0])
    return f"{module[: number.start()]}{layers[index]}{module[number.end() :]}" if index < len(layers) else module


def _layers(config: Mapping[str, Any]) -> list[int]:
    """The base's layer of each of the model's; none where they are not replicated."""
    ranges = config.get("layer_replication")
    if not isinstance(ranges, list):
        return []
    try:
        return [layer for start, end in ranges for layer in range(start, min(end, _MOST_LAYERS))]
    except (TypeError, ValueError) as error:
        raise CorruptError(
            f"layer_replication is {ranges!r}, no list of ranges",
            code="ADP304",
            hint="Restore the config that was saved with these weights.",
        ) from error


_MOST_LAYERS = 100_000
