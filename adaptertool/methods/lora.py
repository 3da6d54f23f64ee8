"""LoRA: merges into any weight; with `lora_bias=True` it also adds `lora_B.bias` to the base layer's bias.

Source: `peft/tuners/lora/layer.py` and `variants.py`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from adaptertool.errors import CorruptError
from adaptertool.methods import initialisation, replication
from adaptertool.methods.lora_variants import lora_tensors
from adaptertool.methods.merging import (
    ATTENTION,
    CONV,
    CONV1D,
    EMBEDDING,
    LINEAR,
    BiasUpdate,
    MergeRule,
    Product,
    not_into_mamba,
)
from adaptertool.methods.plain import DECOMPOSITION, OfTheBase, PlainMethod
from adaptertool.methods.shapes import RefusedError, by_pattern

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.checkpoint.header import TensorInfo


def _never(config: Mapping[str, Any]) -> str | None:
    if config.get("alora_invocation_tokens"):
        return "activated LoRA (alora_invocation_tokens) applies from a token of the input on"
    if config.get("arrow_config") is not None:
        return "Arrow (arrow_config) routes by the input"
    return None


def _refused(config: Mapping[str, Any]) -> str | None:
    if config.get("use_dora") and config.get("megatron_config"):
        return "its config has use_dora and megatron_config, and PEFT raises ValueError for the two together"
    if _has_bias(config) and config.get("use_dora"):
        return "its config asks for lora_bias and for use_dora, and PEFT raises ValueError for the two together"
    if _has_bias(config) and config.get("init_lora_weights", True) not in (True, False):
        return "its config asks for lora_bias and for an init_lora_weights with which PEFT raises ValueError"
    return initialisation.refused(config)


def _has_bias(config: Mapping[str, Any]) -> bool:
    return bool(config.get("lora_bias"))


def _rank(config: Mapping[str, Any], module: str) -> int:
    rank = _pattern(config, "rank_pattern", module, config.get("r", 8))
    if type(rank) is not int or rank < 1:
        raise _makes_no_sense(f"r of {module} is {rank!r}, where it should be a whole number from 1 on")
    return rank


def _pattern(config: Mapping[str, Any], patterns: str, module: str, default: Any) -> Any:
    try:
        return by_pattern({"value": default, patterns: config.get(patterns) or {}}, "value", patterns, module)
    except RefusedError as error:
        raise _makes_no_sense(str(error)) from error


def _scale(config: Mapping[str, Any], module: str) -> float:
    """`lora_alpha / r`, or `lora_alpha / √r` for rank-stabilised LoRA."""
    rank = _rank(config, module)
    alpha = _pattern(config, "alpha_pattern", module, config.get("lora_alpha", 8))
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool):
        raise _makes_no_sense(f"lora_alpha of {module} is {alpha!r}: no scale can be made of it")
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _makes_no_sense(reason: str) -> CorruptError:
    return CorruptError(reason, code="ADP304", hint="Restore the config that was saved with these weights.")


def _misfit_of_parameters(
    config: Mapping[str, Any], parameter: str, tensors: Mapping[str, TensorInfo], shape: tuple[int, ...] | None
) -> str | None:
    """An adapter of a parameter (target_parameters) has as many ranks side by side as there are experts.

    Patterns are held against the parameter's own path (`create_and_replace_param` in `peft/tuners/tuners_utils.py`). Which of
    a parameter's two sides is the inputs', the model's code decides (`ParamWrapper` in `peft/tuners/lora/layer.py`).
    """
    factors = {name: one.shape for name, one in tensors.items() if name.endswith(("lora_A.weight", "lora_B.weight"))}
    for name, factor in factors.items():
        if len(factor) != 2:
            return f"the adapter's {name} has shape {list(factor)}, and PEFT makes a matrix: it raises a size mismatch"
        down = factors.get(name.replace("lora_B.", "lora_A."), ())
        if name.endswith("lora_B.weight") and len(down) == 2 and not (down[0] == factor[1] > 0):
            return (
                f"the adapter's {name} has shape {list(factor)} and lora_A {list(down)}, of which PEFT makes no pair: it "
                "raises a size mismatch"
            )
    rank = _rank(config, parameter)
    experts = None if shape is None else shape[0] if len(shape) == 3 else 1
    sides = []
    for name, dimension in (("lora_A.weight", 0), ("lora_B.weight", 1)):
        factor = tensors[name].shape if name in tensors else ()
        if len(factor) != 2:
            return None
        if factor[dimension] % rank or (experts is not None and factor[dimension] != rank * experts):
            due = f"{rank}" if experts in (None, 1) else f"{rank} for each of {experts} experts"
            return f"the adapter's {name} has rank {factor[dimension]}, and its config says {due}: it raises a size mismatch"
        sides.append(factor[1 - dimension])
    if shape is not None and len(shape) in (2, 3) and sorted(sides) != sorted(shape[-2:]):
        return f"the adapter is for a parameter of another shape than the base's, which is {list(shape)}"
    return None


def _refuses_parameters(config: Mapping[str, Any]) -> str | None:
    """As `ParamWrapper` in peft/tuners/lora/layer.py; QA-LoRA is a variant of layers for GPTQ alone."""
    field = next((field for field in _NOT_FOR_PARAMETERS if config.get(field)), None)
    return f"the adapter's config has {field}, with which PEFT raises ValueError for parameters" if field else None


_NOT_FOR_PARAMETERS = (
    *("lora_dropout", "fan_in_fan_out", "lora_bias", "use_dora", "velora_config", "kasa_config"),
    *("alora_invocation_tokens", "arrow_config", "use_bdlora", "monteclora_config"),
)


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


def _undecided(config: Mapping[str, Any]) -> str | None:
    if config.get("megatron_config"):
        return (
            "its config has megatron_config, with which PEFT imports Megatron, and raises where that is not installed"
        )
    return initialisation.undecided(config)


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
        kinds=LINEAR | CONV1D | EMBEDDING | CONV | ATTENTION,
        bias=BiasUpdate(
            "lora_B.bias",
            "RuntimeError: Impossible to merge LoRA with `lora_bias=True` because the base layer has no bias.",
            "with lora_bias=False",
            _scale,
            wanted=_has_bias,
        ),
        quantised=frozenset({"bitsandbytes", "hqq", "torchao"}),
        plain_only=_plain_only,
        never=_never,
        refused=_refused,
        hazard=lambda config: replication.hazard(config) or initialisation.drawn_anew(config),
        undecided=_undecided,
        base_module=replication.base_module,
        any_saved_module=True,
        tensors=lora_tensors,
        misfit_of_parameters=_misfit_of_parameters,
        starts_at_zero=lambda config: config.get("init_lora_weights", True) in (True, "gaussian", "eva", "lora_ga"),
        zeros=frozenset(("lora_B.weight", "lora_B.bias", "lora_embedding_A")),
        product=_product,
        refuses=not_into_mamba,
        refuses_parameters=_refuses_parameters,
    ),
)
