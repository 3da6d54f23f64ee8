"""LoRA: merges into any weight; with `lora_bias=True` it also adds `lora_B.bias` to the base layer's bias.

Source: `peft/tuners/lora/layer.py` and `variants.py`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from adaptertool.errors import CorruptError
from adaptertool.methods import initialisation, replication
from adaptertool.methods.merging import (
    CONV,
    CONV1D,
    EMBEDDING,
    LINEAR,
    BiasUpdate,
    MergeRule,
    Product,
    low_rank,
    not_into_mamba,
)
from adaptertool.methods.plain import DECOMPOSITION, OfTheBase, PlainMethod
from adaptertool.patterns import match

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.checkpoint.header import TensorInfo


def _never(config: Mapping[str, Any]) -> str | None:
    if config.get("alora_invocation_tokens"):
        return "activated LoRA (alora_invocation_tokens) applies from a token of the input on"
    if config.get("arrow_config"):
        return "Arrow (arrow_config) routes by the input"
    return None


def _refused(config: Mapping[str, Any]) -> str | None:
    if _has_bias(config) and config.get("use_dora"):
        return "its config asks for lora_bias and for use_dora, and PEFT raises ValueError for the two together"
    if _has_bias(config) and config.get("init_lora_weights", True) not in (True, False):
        return "its config asks for lora_bias and for an init_lora_weights with which PEFT raises ValueError"
    return initialisation.refused(config)


def _has_bias(config: Mapping[str, Any]) -> bool:
    return bool(config.get("lora_bias"))


def _by_pattern(config: Mapping[str, Any], patterns: str, module: str, default: Any) -> Any:
    """As `get_pattern_key` in peft/utils/other.py: what the first pattern says that the module path ends with."""
    table = config.get(patterns) or {}
    if not isinstance(table, dict):
        raise _makes_no_sense(f"{patterns} is {table!r}, no table of patterns")
    return next((value for pattern, value in table.items() if _ends_with(pattern, module, patterns)), default)


def _ends_with(pattern: str, module: str, field: str) -> bool:
    return match(rf"(.*\.)?({pattern})$", module, field) is not None


def _rank(config: Mapping[str, Any], module: str) -> int:
    rank = _by_pattern(config, "rank_pattern", module, config.get("r", 8))
    if type(rank) is not int or rank < 1:
        raise _makes_no_sense(f"r of {module} is {rank!r}, where it should be a whole number from 1 on")
    return rank


def _scale(config: Mapping[str, Any], module: str) -> float:
    """`lora_alpha / r`, or `lora_alpha / √r` for rank-stabilised LoRA."""
    rank = _rank(config, module)
    alpha = _by_pattern(config, "alpha_pattern", module, config.get("lora_alpha", 8))
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool):
        raise _makes_no_sense(f"lora_alpha of {module} is {alpha!r}: no scale can be made of it")
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _makes_no_sense(reason: str) -> CorruptError:
    return CorruptError(reason, code="ADP304", hint="Restore the config that was saved with these weights.")


def _misfit(config: Mapping[str, Any], module: str, tensors: Mapping[str, TensorInfo]) -> str | None:
    """PEFT makes the factors of the rank that the config says, and a file of another rank raises at loading."""
    if _has_bias(config) and "lora_embedding_A" in tensors:
        return "the adapter's config asks for lora_bias, which PEFT refuses for embeddings"
    if config.get("use_bdlora"):
        return None
    rank = _rank(config, module)
    # An adapter of parameters (target_parameters) has as many ranks side by side as there are experts.
    several = bool(config.get("target_parameters"))
    # A decomposition has no more parts than the layer has inputs or outputs.
    if initialisation.is_decomposition(config) and "lora_A.weight" in tensors and "lora_B.weight" in tensors:
        down, up = tensors["lora_A.weight"].shape, tensors["lora_B.weight"].shape
        if len(down) == len(up) == 2:
            rank = min(rank, down[1], up[0])
    for name, dimension in _RANKS:
        shape = tensors[name].shape if name in tensors else ()
        if len(shape) < 2 or shape[dimension] == rank or (several and shape[dimension] % rank == 0):
            continue
        return (
            f"the adapter's {name} has rank {shape[dimension]}, and its config says {rank}: PEFT raises a size mismatch"
        )
    return None


def _refuses_parameters(config: Mapping[str, Any]) -> str | None:
    """As `ParamWrapper` in peft/tuners/lora/layer.py; QA-LoRA is a variant of layers for GPTQ alone."""
    field = next((field for field in _NOT_FOR_PARAMETERS if config.get(field)), None)
    return f"the adapter's config has {field}, with which PEFT raises ValueError for parameters" if field else None


_NOT_FOR_PARAMETERS = (
    *("lora_dropout", "fan_in_fan_out", "lora_bias", "use_dora", "velora_config", "kasa_config"),
    *("alora_invocation_tokens", "arrow_config", "use_bdlora", "monteclora_config"),
)

_RANKS = (("lora_A.weight", 0), ("lora_B.weight", 1), ("lora_embedding_A", 0), ("lora_embedding_B", 1))
"""The factors, and which of their dimensions is the rank."""


def _made(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> tuple[str, ...]:
    names: tuple[str, ...] = ("lora_A.weight", "lora_B.weight")
    if "lora_embedding_A" in tensors or "lora_embedding_B" in tensors:
        names = ("lora_embedding_A", "lora_embedding_B")
    elif _has_bias(config):
        names += ("lora_B.bias",)
    return (*names, "lora_magnitude_vector") if config.get("use_dora") else names


def _unmade(config: Mapping[str, Any]) -> tuple[str, ...]:
    asked = {"lora_B.bias": _has_bias(config), "lora_magnitude_vector": config.get("use_dora")}
    return tuple(name for name, wanted in asked.items() if not wanted)


def _product(config: Mapping[str, Any], module: str, tensors: Mapping[str, TensorInfo]) -> Product | None:
    """B·A·scale, which DoRA rescales together with the base's weight. Other variants put something else around it."""
    if any(config.get(field) for field in (*_VARIANTS, "target_parameters")):
        return None
    factors = "lora_B.weight", "lora_A.weight"
    if config.get("use_dora"):
        # Convolutions and embeddings have lengths of other dimensions.
        if any(name not in tensors or len(tensors[name].shape) != 2 for name in factors) or _LENGTHS not in tensors:
            return None
        return Product(*factors, _scale(config, module), lengths=_LENGTHS)
    if all(name in tensors for name in factors):
        return Product(*factors, _scale(config, module))
    if "lora_embedding_B" in tensors and "lora_embedding_A" in tensors:
        return Product("lora_embedding_B", "lora_embedding_A", _scale(config, module), transposed=True)
    return None


_LENGTHS = "lora_magnitude_vector"
_VARIANTS = ("use_qalora", "use_bdlora", "velora_config", "monteclora_config", "kasa_config")


def _plain_only(config: Mapping[str, Any], quantisation: str) -> str | None:
    """What the layers in `peft/tuners/lora/{bnb,hqq,torchao}.py` leave out of what those for plain weights can."""
    if quantisation == "torchao" and config.get("use_dora"):
        return "the merge into such a weight adds B·A alone and leaves DoRA's magnitude out, without an error"
    if quantisation == "torchao" and config.get("use_bdlora"):
        return "the merge into such a weight raises for block-diagonal factors (use_bdlora)"
    if quantisation != "torchao" and config.get("velora_config"):
        return "PEFT raises ValueError for velora_config on such a layer"
    return initialisation.plain_only(config, quantisation)


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
    of_the_base=(
        OfTheBase(
            r".*\.lora_(?:B\.weight|embedding_B)",
            "Singular vectors of each layer, which MiCA freezes",
            DECOMPOSITION,
            when=lambda config: str(config.get("init_lora_weights")).lower() == "mica",
        ),
    ),
    # MonteCLoRA's buffers, and the direction that VeLoRA takes from activations.
    state=r".*\.(?:lora_monteclora_sampler\.(?:gaussian_var_prior|expert_weights)|lora_velora_embed)",
    otherwise=initialisation.loads_otherwise,
    merge=MergeRule(
        kinds=LINEAR | CONV1D | EMBEDDING | CONV,
        bias=BiasUpdate(
            "lora_B.bias",
            "RuntimeError: Impossible to merge LoRA with `lora_bias=True` because the base layer has no bias.",
            _scale,
            wanted=_has_bias,
        ),
        quantised=frozenset({"bitsandbytes", "hqq", "torchao"}),
        plain_only=_plain_only,
        never=_never,
        refused=_refused,
        hazard=lambda config: replication.hazard(config) or initialisation.drawn_anew(config),
        undecided=initialisation.undecided,
        base_module=replication.base_module,
        fits=_fits,
        any_saved_module=True,
        misfit=_misfit,
        made=_made,
        unmade=_unmade,
        starts_at_zero=lambda config: config.get("init_lora_weights", True) in (True, "gaussian", "eva", "lora_ga"),
        zeros=frozenset(("lora_B.weight", "lora_B.bias", "lora_embedding_A")),
        product=_product,
        refuses=not_into_mamba,
        refuses_parameters=_refuses_parameters,
    ),
)
