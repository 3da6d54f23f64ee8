"""LoRA: merges into any weight; with `lora_bias=True` it also adds `lora_B.bias` to the base layer's bias.

Source: `peft/tuners/lora/layer.py` and `variants.py`.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from adaptertool.errors import CorruptError
from adaptertool.methods.merging import BiasUpdate, MergeRule, low_rank
from adaptertool.methods.plain import PlainMethod

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.checkpoint.header import TensorInfo


def _never(config: Mapping[str, Any]) -> str | None:
    if config.get("alora_invocation_tokens"):
        return "activated LoRA (alora_invocation_tokens) applies from a token of the input on"
    if config.get("arrow_config"):
        return "Arrow (arrow_config) routes by the input"
    return None


def _hazard(config: Mapping[str, Any]) -> str | None:
    if config.get("layer_replication"):
        return (
            "layer_replication trained several updates for one base layer, and merge_and_unload adds them all to the weights "
            "that the replicas share"
        )
    return None


def _scale(config: Mapping[str, Any], module: str, tensors: Mapping[str, TensorInfo]) -> float:
    """`lora_alpha / r`, or `lora_alpha / √r` for rank-stabilised LoRA; r is the rank that the layer was saved with."""
    weight = tensors.get("lora_A.weight")
    rank = weight.shape[0] if weight is not None and weight.shape else config.get("r", 8)
    alpha = config.get("lora_alpha", 8)
    patterns = config.get("alpha_pattern") or {}
    if isinstance(patterns, dict):
        # As `get_pattern_key` in peft/utils/other.py: the first pattern that the module path ends with.
        key = next((key for key in patterns if _ends_with(key, module)), None)
        alpha = alpha if key is None else patterns[key]
    if not isinstance(alpha, (int, float)) or not isinstance(rank, int) or rank < 1:
        raise CorruptError(
            f"lora_alpha is {alpha!r} and r is {rank!r}: no scale can be made of them",
            code="ADP304",
            hint="Restore the config that was saved with these weights.",
        )
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _ends_with(pattern: str, module: str) -> bool:
    try:
        return re.match(rf"(.*\.)?({pattern})$", module) is not None
    except re.error as error:
        raise CorruptError(
            f"alpha_pattern holds {pattern!r}, which is no regular expression: {error}",
            code="ADP304",
            hint="Restore the config that was saved with these weights.",
        ) from error


_FACTORS = low_rank("lora_B.weight", "lora_A.weight")


def _fits(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], out_features: int, in_features: int) -> bool:
    """Block-diagonal factors are narrower than the layer, and adapters of parameters go by the parameter's own dimensions."""
    if config.get("use_bdlora"):
        return True
    fits = _FACTORS(config, tensors, out_features, in_features)
    return fits or bool(config.get("target_parameters") and _FACTORS(config, tensors, in_features, out_features))


LORA = PlainMethod(
    "LORA",
    "lora_",
    "r",
    merge=MergeRule(
        bias=BiasUpdate(
            "lora_B.bias",
            "RuntimeError: Impossible to merge LoRA with `lora_bias=True` because the base layer has no bias.",
            _scale,
        ),
        never=_never,
        hazard=_hazard,
        fits=_fits,
        any_saved_module=True,
    ),
)
