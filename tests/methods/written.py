"""Tiny models and adapters of every PEFT type, written and loaded by real PEFT."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel, XLoraConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

VOCABULARY = 64
FAMILIES = ("llama", "gpt2", "opt")
ALL_FAMILIES = (*FAMILIES, "qwen2", "gemma3")
_LLAMA_LIKE = ["q_proj", "v_proj", "down_proj"]
TARGETS = {
    "llama": _LLAMA_LIKE,
    "gpt2": ["c_attn"],
    "opt": ["q_proj", "v_proj", "fc1"],
    "qwen2": _LLAMA_LIKE,
    "gemma3": _LLAMA_LIKE,
}
NORMS = {
    "gpt2": ["ln_1"],
    "opt": ["self_attn_layer_norm"],
    **{family: ["input_layernorm"] for family in ("llama", "qwen2", "gemma3")},
}
EMBEDDINGS = {"gpt2": "wte", **dict.fromkeys(("llama", "opt", "qwen2", "gemma3"), "embed_tokens")}

_LLAMA_CLASSES: Mapping[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
}

ARGUMENTS: Mapping[str, Mapping[str, Any]] = {
    "ADALORA": {"total_step": 10, "target_r": 2, "init_r": 3},
    "ADAMSS": {"r": 4, "num_subspaces": 2},
    "ADAPTION_PROMPT": {"adapter_len": 3, "adapter_layers": 1},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8},
    "CARTRIDGE": {"num_virtual_tokens": 3},
    "CPT": {"cpt_token_ids": [1, 2, 3], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 4]},
    "FOURIERFT": {"n_frequency": 10},
    "FROD": {"progressbar": False, "sparse_rate": 0.1},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 3, "num_tasks": 2, "num_ranks": 2},
    "OFT": {"oft_block_size": 4, "r": 0},
    "POLY": {"r": 2, "n_tasks": 2},
    "PREFIX_TUNING": {"num_virtual_tokens": 3},
    "PROMPT_TUNING": {"num_virtual_tokens": 3},
    "P_TUNING": {"num_virtual_tokens": 3, "encoder_hidden_size": 8},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 2, "random_seed": 1},
    "TINYLORA": {"r": 2, "u": 5},
    "TRAINABLE_TOKENS": {"token_indices": [1, 2]},
    "UNILORA": {"r": 2, "save_indices": True, "theta_d_length": 32},
    "VBLORA": {"num_vectors": 4, "vector_length": 4, "topk": 2, "r": 2},
    "WAVEFT": {"n_frequency": 10},
}
UNTARGETED = {
    "ADAPTION_PROMPT",
    "CARTRIDGE",
    "CPT",
    "MULTITASK_PROMPT_TUNING",
    "PREFIX_TUNING",
    "PROMPT_TUNING",
    "P_TUNING",
    "SHADOW",
    "TRAINABLE_TOKENS",
    "XLORA",
}

_LINEAR_ONLY = (
    *("BEFT", "BOFT", "C3A", "DELORA", "GLORA", "HRA", "LILY", "LOHA", "LOKR"),
    *("MISS", "OFT", "OSF", "PEANUT", "POLY", "PSOFT", "ROAD", "SHIRA", "SUPERTUNING"),
)
CANNOT_ATTACH: Mapping[str, tuple[str, ...]] = {
    # AdaMSS clusters with scikit-learn, and attaches to nothing without it.
    "ADAMSS": ("gpt2",) if importlib.util.find_spec("sklearn") else ALL_FAMILIES,
    "ADAPTION_PROMPT": ("opt", "qwen2", "gemma3"),
    # Conv1D is no layer that these can adapt.
    **dict.fromkeys(
        _LINEAR_ONLY,
        ("gpt2",),
    ),
}
"""Families that PEFT 0.21.2 can't attach a type to."""


def peft_types() -> list[str]:
    """All types of the installed PEFT."""
    return sorted(getattr(one, "value", one) for one in PEFT_TYPE_TO_CONFIG_MAPPING)


def seed(number: int) -> None:
    """Seed what is drawn on the CPU: `torch.manual_seed` keeps a stack trace for each GPU backend, at every call."""
    torch.default_generator.manual_seed(number)


def base(
    family: str, dtype: torch.dtype = torch.float32, *, tied: bool | None = None, wide: bool = False
) -> PreTrainedModel:
    """A tiny random base model, always the same one; of those like Llama a wide one too."""
    seed(0)
    common: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if tied is not None:
        common["tie_word_embeddings"] = tied
    model: Any
    if family in _LLAMA_CLASSES:
        config_class, model_class = _LLAMA_CLASSES[family]
        if family == "gemma3":
            common |= {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}
        model = model_class(
            config_class(
                hidden_size=32 if wide else 16,
                intermediate_size=48 if wide else 24,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=64,
                **common,
            )
        )
    elif family == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **common))
    else:
        model = OPTForCausalLM(
            OPTConfig(
                hidden_size=16,
                ffn_dim=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=64,
                word_embed_proj_dim=16,
                **common,
            )
        )
    result: PreTrainedModel = model.to(dtype).eval()
    return result


def configured(peft_type: str, family: str, **arguments: Any) -> Any:
    """A config of that type for that family."""
    config = PEFT_TYPE_TO_CONFIG_MAPPING[peft_type]  # type: ignore[index]
    chosen = dict(ARGUMENTS.get(peft_type, {}))
    if peft_type == "IA3":
        chosen["feedforward_modules"] = [TARGETS[family][-1]]
    if peft_type == "LN_TUNING":
        chosen["target_modules"] = NORMS[family]
    elif peft_type not in UNTARGETED:
        chosen["target_modules"] = TARGETS[family]
    if "r" in config.__dataclass_fields__ and "r" not in chosen:
        chosen["r"] = 2
    return config(task_type="CAUSAL_LM", **{**chosen, **arguments})


@dataclass(frozen=True)
class Written:
    """An adapter as PEFT wrote it.

    Attributes:
        folder: Where it is.
        family: The base that it belongs to.
        dtype: The dtype in which that was loaded.
        tied: Whether its embeddings are tied; None for the family's default.
        model: The model that was saved.
    """

    folder: Path
    family: str
    dtype: torch.dtype
    tied: bool | None
    model: PeftModel

    @property
    def logits(self) -> torch.Tensor:
        """What the saved model computes."""
        return logits(self.model)

    def loaded(self, folder: Path, **arguments: Any) -> PeftModel:
        """A folder loaded onto the same base by real PEFT."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # What the loaded model draws at random must not be what the saved one drew.
            bare = base(self.family, self.dtype, tied=self.tied)
            seed(12345)
            return PeftModel.from_pretrained(bare, str(folder), **arguments).eval()


def write(
    folder: Path,
    peft_type: str,
    family: str = "llama",
    *,
    dtype: torch.dtype = torch.float32,
    tied: bool | None = None,
    **arguments: Any,
) -> Written:
    """Attach an adapter of that type, give everything trained some values, and save it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bare = base(family, dtype, tied=tied)
        seed(1)
        model = get_peft_model(bare, configured(peft_type, family, **arguments))
        shake(model)
        model.save_pretrained(str(folder))
    return Written(folder, family, dtype, tied, model.eval())


def write_xlora(folder: Path, names: tuple[str, ...], depth: int = 3) -> PeftModel:
    """An X-LoRA adapter of LoRA experts of these names.

    PEFT 0.21.2 loses tensors of the classifier whose names hold an expert's number: all of them where it has one layer.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            write(folder / "experts" / name, "LORA")
        experts = {name: str(folder / "experts" / name) for name in names}
        config = XLoraConfig(task_type="CAUSAL_LM", hidden_size=16, xlora_depth=depth, xlora_size=8, adapters=experts)
        bare = base("llama")
        bare.config.use_cache = False
        seed(1)
        model = get_peft_model(bare, config)
        shake(model)
        model.save_pretrained(str(folder))
    return model.eval()


def shake(model: torch.nn.Module) -> None:
    """Move all trainable parameters off their initial values, as training would."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in trainable(model).values():
            noise = torch.empty(parameter.shape).uniform_(-0.1, 0.1, generator=generator)
            parameter.add_(noise.to(parameter.dtype))


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, each once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def logits(model: torch.nn.Module) -> torch.Tensor:
    """What a model computes for a fixed input."""
    seed(3)
    tokens = torch.arange(1, 13).reshape(2, 6)
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    return result


def cases(families: tuple[str, ...] = FAMILIES) -> list[tuple[str, str]]:
    """Every PEFT type with every family that it can be attached to; X-LoRA, which is made of adapters, apart."""
    return [
        (peft_type, family)
        for peft_type in peft_types()
        for family in families
        if peft_type != "XLORA" and family not in CANNOT_ATTACH.get(peft_type, ())
    ]
