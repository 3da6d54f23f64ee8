"""What each PEFT method's merge needs of the base model. One line a method; read from PEFT 0.21.2 and tried on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from adaptertool.checkpoint.header import TensorInfo


@dataclass(frozen=True)
class BiasUpdate:
    """A trained bias that the merge adds to the base layer's.

    Attributes:
        tensor: What the adapter's tensor is called in its module.
        raises: What PEFT raises where the base layer has no bias.
        scale: The factor that the merge applies, from the config, the module path and the layer's tensors by their name in
            the module; None for 1.
        leading: The dimensions that the tensor has before out_features.
    """

    tensor: str
    raises: str
    scale: Callable[[Mapping[str, Any], str, Mapping[str, TensorInfo]], float] | None = None
    leading: tuple[int, ...] = ()

    def shape(self, out_features: int) -> tuple[int, ...]:
        """The shape that the tensor must have for a layer of that many outputs."""
        return (*self.leading, out_features)


@dataclass(frozen=True)
class MergeRule:
    """What a method's merge needs.

    Attributes:
        peft_type: As in `adapter_config.json`.
        prefixes: What the names of its tensors begin with, within their module.
        bias: The bias that it adds, if any.
        linear_only: Whether it attaches to `nn.Linear` and to nothing else.
        never: Why it has no merge; from the config, None where it has one.
        hazard: Why a merge that raises nothing gives something else than the adapter; None where it does not.
        out_features: The tensor (its name in the module) whose first dimension is the layer's out_features, if any.
        in_features: The tensor whose last dimension is the layer's in_features, if any.
        any_saved_module: Whether the merge can put back a `modules_to_save` module that has no weight of its own, such as
            RoBERTa's classification head. `BaseTuner._replace_module` (PEFT 0.21.2) can't, and raises AttributeError;
            the LoRA and HiRA tuners have their own.
    """

    peft_type: str
    prefixes: tuple[str, ...]
    bias: BiasUpdate | None = None
    linear_only: bool = False
    never: Callable[[Mapping[str, Any]], str | None] = lambda _: None
    hazard: Callable[[Mapping[str, Any]], str | None] = lambda _: None
    out_features: str | None = None
    in_features: str | None = None
    any_saved_module: bool = False


def _never(peft_type: str, why: str) -> MergeRule:
    return MergeRule(peft_type, (), never=lambda _: why)


_PROMPT = "it learns tokens that are put before the input, and there is no weight to merge them into"

NEVER = (
    _never("PROMPT_TUNING", _PROMPT),
    _never("MULTITASK_PROMPT_TUNING", _PROMPT),
    _never("P_TUNING", _PROMPT),
    _never(
        "PREFIX_TUNING", "it learns keys and values that are put before the input's, and there is no weight for them"
    ),
    _never("CPT", _PROMPT),
    _never("CARTRIDGE", "it learns a key-value cache, and there is no weight to merge it into"),
    _never("ADAPTION_PROMPT", "it adds a gated attention branch that depends on the input"),
    _never("LILY", "its routers choose by the input"),
    _never("POLY", "its routers choose by the task"),
    _never("SHADOW", "its adaptation depends on the input"),
)
"""Methods without a merge."""

WEIGHT_ONLY = tuple(
    MergeRule(peft_type, prefixes, any_saved_module=peft_type in ("ADALORA", "HIRA"))
    for peft_type, prefixes in {
        "ADALORA": ("lora_",),
        "ADAMSS": ("adamss_",),
        "BOFT": ("boft_",),
        "C3A": ("c3a_",),
        "DEFT": ("deft_",),
        "DELORA": ("delora_",),
        "FOURIERFT": ("fourierft_",),
        "FROD": ("frod_",),
        "GRALORA": ("gralora_",),
        "HIRA": ("hira_",),
        "HRA": ("hra_",),
        "IA3": ("ia3_",),
        "LOHA": ("hada_",),
        "LOKR": ("lokr_",),
        "MISS": ("miss_",),
        "OFT": ("oft_",),
        "PEANUT": ("peanut_",),
        "PSOFT": ("psoft_",),
        "PVERA": ("pvera_",),
        "RANDLORA": ("randlora_",),
        "ROAD": ("road_",),
        "SHIRA": ("shira_",),
        "SUPERTUNING": ("supertuning_",),
        "TINYLORA": ("tinylora_",),
        "UNILORA": ("unilora_",),
        "VBLORA": ("vblora_",),
        "VERA": ("vera_",),
        "WAVEFT": ("waveft_",),
    }.items()
)
"""Methods that merge into the weight of any layer that they attach to."""


def merge_rules() -> Mapping[str, MergeRule]:
    """The rules by `peft_type`; a type that is not among them was not looked into."""
    from adaptertool.methods.beft import BEFT_MERGE
    from adaptertool.methods.lora import LORA_MERGE, XLORA_MERGE

    return {rule.peft_type: rule for rule in (*NEVER, *WEIGHT_ONLY, BEFT_MERGE, LORA_MERGE, XLORA_MERGE)}
