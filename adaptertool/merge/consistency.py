"""Where an adapter's config and its file, or the base's config and its file, do not describe the same layers.

PEFT goes by the configs: it wraps and merges every layer that the adapter's config targets, trained or not, in a model of as
many layers as the base's config says. What the files hold beyond or short of that is not what will be merged.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from adaptertool.merge.resolve import modules_of
from adaptertool.merge.result import LayerResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.merge.adapted import AdaptedLayer
    from adaptertool.merge.base import Base

_NUMBERED = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks?)\.(\d+)\.")


def targeted_without_tensors(adapter: Adapter, adapted: Iterable[AdaptedLayer], base: Base) -> tuple[LayerResult, ...]:
    """Modules that the adapter's config targets and the base has, of which the adapter's file holds nothing.

    Only lists of names are looked at: what a pattern or a shorthand targets, the live model alone can tell.
    """
    targets = adapter.config.fields.get("target_modules")
    if not isinstance(targets, list):
        return ()
    held = [layer.module for layer in adapted]
    present = modules_of(base.files)
    reason = (
        "the adapter's config targets it, and its file holds no tensors of it: PEFT would merge an untrained update"
    )
    return tuple(
        LayerResult(module=f"*.{target}", status="unknown", reason=reason)
        for target in targets
        if isinstance(target, str) and not _any_ends(held, target) and _any_ends(present, target)
    )


def against_configs(adapter: Adapter, adapted: Sequence[AdaptedLayer], base: Base, result: LayerResult) -> LayerResult:
    """A layer's result, unless a config says that PEFT will meet something else there."""
    if result.status != "ok":
        return result
    tensors = next((layer.tensors for layer in adapted if layer.module == result.module), {})
    if adapter.config.fields.get("lora_bias") is True and "lora_B.weight" in tensors and "lora_B.bias" not in tensors:
        reason = "the adapter's config says lora_bias, and its file holds no bias: PEFT would merge one all the same"
        return replace(result, status="unknown", reason=reason)
    count = base.config.get("num_hidden_layers")
    composite = any(key.endswith("_config") and isinstance(value, dict) for key, value in base.config.items())
    number = _NUMBERED.search(result.module)
    if type(count) is int and not composite and number is not None and int(number[1]) >= count:
        reason = f"the base's config says {count} layers, so that the model has no layer {number[1]}"
        return replace(result, status="unknown", reason=reason)
    return result


def _any_ends(modules: Iterable[str], target: str) -> bool:
    return any(module == target or module.endswith(f".{target}") for module in modules)
