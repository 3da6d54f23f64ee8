"""The formats in which a base's weights can be quantised, and whether PEFT has a merge for any method there.

Source: `peft/utils/quantization_utils.py` and `peft/tuners/lora/*.py`, read at 0.21.2. Which method merges into which format
stands in its rule (`MergeRule.quantised`).
"""

from __future__ import annotations

import json
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from adaptertool.errors import CorruptError
from adaptertool.patterns import match

if TYPE_CHECKING:
    from collections.abc import Mapping

FORWARD_ONLY = frozenset({"gptq", "awq", "aqlm", "eetq", "inc", "auto-round"})
"""PEFT has layers for these, as far as it attaches to them at all, and none of those has a merge."""

REQUANTISED = frozenset({"bitsandbytes", "hqq", "torchao"})
"""PEFT dequantises the weight, adds the update and quantises the sum again, for some methods."""

PACKED = frozenset({"bitsandbytes", "hqq"})
"""Formats in which transformers makes every layer a quantised one that the settings do not leave alone, and files hold all
of those packed (`replace_with_bnb_linear` and `pre_quantized` in transformers 5.23).
"""

_LEFT_ALONE = ("modules_to_not_convert", "ignore", "ignored_layers", "exclude", "llm_int8_skip_modules", "skip_modules")
"""Where a quantisation's settings name the layers that it leaves as they are."""


def quantisation_of(settings: Mapping[str, Any]) -> str | None:
    """The format that a base's `quantization_config` names; None where it has none.

    Of torchao's, those of whole bytes alone go by that name: into others PEFT's LoRA raises, or it was not tried.
    """
    if not settings:
        return None
    method = str(settings.get("quant_method", "unknown"))
    if method == "torchao":
        kind = json.dumps(settings.get("quant_type")).lower()
        return method if "int8" in kind and "int4" not in kind else "torchao (not int8)"
    return "bitsandbytes" if method == "bnb" else method


def is_quantized_at_loading(settings: Mapping[str, Any], module: str, kind: str | None) -> bool:
    """Whether a layer that is stored as it is becomes a quantised one all the same, by the base's config.

    Formats that have no merge store what they quantise under names of their own, and leave the other layers as they are.

    Args:
        settings: The base's `quantization_config`.
        module: The layer's path in the live model.
        kind: What the model's code makes of it (`CodeLayer.kind`); None where that is not known.
    """
    method = quantisation_of(settings)
    if method is None or method in FORWARD_ONLY:
        return False
    if kind not in (None, "linear"):
        return False
    fields = (settings.get(field) for field in _LEFT_ALONE)
    kept = [name for names in fields if isinstance(names, list) for name in names if isinstance(name, str)]
    return not any(_covers(name, module) for name in (*kept, "lm_head"))


def _covers(pattern: str, module: str) -> bool:
    """Whether an entry of a quantisation's list of layers that it leaves alone means this module."""
    if pattern.startswith("re:"):
        try:
            return match(pattern[3:], module, "quantization_config") is not None
        except CorruptError:
            return False
    return fnmatch(module, f"*{pattern}*")
