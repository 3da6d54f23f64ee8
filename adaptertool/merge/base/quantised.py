"""The formats in which a base's weights can be quantised, and whether PEFT has a merge for any method there.

Source: `peft/utils/quantization_utils.py` and `peft/tuners/lora/*.py`, read at 0.21.2. Which method merges into which format
stands in its rule (`MergeRule.quantised`).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

FORWARD_ONLY = frozenset({"gptq", "awq", "aqlm", "eetq", "inc", "auto-round"})
"""PEFT has layers for these, as far as it attaches to them at all, and none of those has a merge."""

REQUANTISED = frozenset({"bitsandbytes", "hqq", "torchao"})
"""PEFT dequantises the weight, adds the update and quantises the sum again, for some methods."""

STORED_BY_NAME = FORWARD_ONLY | {"bitsandbytes", "hqq"}
"""Formats that are known for storing what they quantise under names of their own, and the other layers as they are."""


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
