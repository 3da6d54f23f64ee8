"""Tiny base models that transformers saved, adapters that PEFT saved, and what PEFT does when it merges them."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers
from peft import BeftConfig, LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer

if TYPE_CHECKING:
    from pathlib import Path

_SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_QWEN_VISION = {
    "depth": 2,
    "embed_dim": 16,
    "hidden_size": 16,
    "num_heads": 2,
    "out_hidden_size": 16,
    "intermediate_size": 32,
}


@dataclass(frozen=True)
class Recipe:
    """How a tiny base model is made."""

    config: str
    model: str
    fields: dict[str, Any]
    target: str | list[str]
    task: str = "CAUSAL_LM"


def _qwen3_5_text() -> dict[str, Any]:
    return {
        **_SMALL,
        "num_hidden_layers": 4,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    }


RECIPES: dict[str, Recipe] = {
    "llama": Recipe("LlamaConfig", "LlamaForCausalLM", _SMALL, ["v_proj"]),
    "llama-attention-bias": Recipe("LlamaConfig", "LlamaForCausalLM", {**_SMALL, "attention_bias": True}, ["v_proj"]),
    "qwen2": Recipe("Qwen2Config", "Qwen2ForCausalLM", _SMALL, ["v_proj"]),
    "qwen2-output": Recipe("Qwen2Config", "Qwen2ForCausalLM", _SMALL, ["v_proj", "o_proj"]),
    "qwen3.5": Recipe("Qwen3_5TextConfig", "Qwen3_5ForCausalLM", _qwen3_5_text(), ["v_proj"]),
    "qwen3.5-attention-bias": Recipe(
        "Qwen3_5TextConfig", "Qwen3_5ForCausalLM", {**_qwen3_5_text(), "attention_bias": True}, ["v_proj"]
    ),
    "qwen3.5-hybrid": Recipe(
        "Qwen3_5TextConfig",
        "Qwen3_5ForCausalLM",
        {**_qwen3_5_text(), "attention_bias": True},
        ["v_proj", "in_proj_qkv"],
    ),
    "opt": Recipe(
        "OPTConfig",
        "OPTForCausalLM",
        {**_SMALL, "ffn_dim": 32, "word_embed_proj_dim": 16},
        ["v_proj"],
    ),
    "bert": Recipe("BertConfig", "BertForSequenceClassification", _SMALL, ["value"], "SEQ_CLS"),
    "t5": Recipe(
        "T5Config",
        "T5ForConditionalGeneration",
        {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "pad_token_id": 0},
        ["v"],
        "SEQ_2_SEQ_LM",
    ),
    "gemma3": Recipe("Gemma3TextConfig", "Gemma3ForCausalLM", _SMALL, ["v_proj"]),
    "mistral": Recipe("MistralConfig", "MistralForCausalLM", _SMALL, ["v_proj"]),
    "llava": Recipe(
        "LlavaConfig",
        "LlavaForConditionalGeneration",
        {
            "vision_config": {"model_type": "clip_vision_model", "projection_dim": 16, **_VISION},
            "text_config": {"model_type": "llama", **_SMALL},
            "image_token_index": 60,
        },
        ["v_proj"],
    ),
    "llava-qwen2": Recipe(
        "LlavaConfig",
        "LlavaForConditionalGeneration",
        {
            "vision_config": {"model_type": "clip_vision_model", "projection_dim": 16, **_VISION},
            "text_config": {"model_type": "qwen2", **_SMALL},
            "image_token_index": 60,
        },
        ["v_proj"],
    ),
    "gemma3-vision": Recipe(
        "Gemma3Config",
        "Gemma3ForConditionalGeneration",
        {
            "vision_config": {"model_type": "siglip_vision_model", **_VISION},
            "text_config": {"model_type": "gemma3_text", **_SMALL},
            "mm_tokens_per_image": 4,
        },
        ["v_proj"],
    ),
    "qwen2-vl": Recipe(
        "Qwen2VLConfig",
        "Qwen2VLForConditionalGeneration",
        {
            "vision_config": _QWEN_VISION,
            "text_config": {**_SMALL, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        },
        ["v_proj"],
    ),
    "qwen2-vl-visual": Recipe(
        "Qwen2VLConfig",
        "Qwen2VLForConditionalGeneration",
        {
            "vision_config": _QWEN_VISION,
            "text_config": {**_SMALL, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        },
        ["qkv", "v_proj"],
    ),
    "gpt2": Recipe(
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
        ["c_attn", "c_proj"],
    ),
    "roberta": Recipe("RobertaConfig", "RobertaForSequenceClassification", _SMALL, ["value"], "SEQ_CLS"),
    "phi": Recipe("PhiConfig", "PhiForCausalLM", _SMALL, ["v_proj"]),
    "mixtral": Recipe("MixtralConfig", "MixtralForCausalLM", {**_SMALL, "num_local_experts": 2}, ["v_proj"]),
}
"""By name: the base models on which a merge was tried."""


def save_base(recipe: Recipe, folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    """A tiny base with random weights and random biases, saved by transformers."""
    torch.manual_seed(0)
    config = getattr(transformers, recipe.config)(**recipe.fields)
    model = getattr(transformers, recipe.model)(config)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    model.to(dtype).save_pretrained(folder, **options)
    return folder


def load_base(recipe: Recipe, folder: Path, dtype: torch.dtype | str = "auto") -> torch.nn.Module:
    """The base as a user loads it."""
    model = getattr(transformers, recipe.model).from_pretrained(folder, dtype=dtype)
    assert isinstance(model, torch.nn.Module)
    return model


def save_adapter(recipe: Recipe, base: Path, folder: Path, *, std: float = 0.1, **lora: Any) -> Path:
    """A BEFT adapter for the recipe's target, or a LoRA one where LoRA's fields are given, with random values."""
    model = load_base(recipe, base, torch.float32)
    common: dict[str, Any] = {"target_modules": recipe.target, "task_type": recipe.task}
    config = LoraConfig(r=2, **common, **lora) if lora else BeftConfig(**common)
    peft_model = get_peft_model(model, config)
    torch.manual_seed(1)
    for name, parameter in peft_model.named_parameters():
        if "beft_" in name or "lora_" in name:
            torch.nn.init.normal_(parameter, std=std)
    peft_model.save_pretrained(str(folder))
    gc.collect()
    return folder


@dataclass(frozen=True)
class Outcome:
    """What PEFT's merge did, layer by layer."""

    fails: dict[str, str | None]
    biases: dict[str, torch.Tensor | None]


def merge_by_peft(recipe: Recipe, base: Path, adapter: Path, dtype: torch.dtype | str = "auto") -> Outcome:
    """Merge each adapted layer with safe_merge=True: the error or None, and the layer's bias afterwards."""
    model = PeftModel.from_pretrained(load_base(recipe, base, dtype), adapter)
    fails: dict[str, str | None] = {}
    biases: dict[str, torch.Tensor | None] = {}
    for path, module in model.get_base_model().named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        try:
            module.merge(safe_merge=True)
            fails[path] = None
        except (ValueError, RuntimeError) as error:
            fails[path] = str(error)
        biases[path] = getattr(module.get_base_layer(), "bias", None)
    return Outcome(fails, biases)


def whole_merge_fails(recipe: Recipe, base: Path, adapter: Path, dtype: torch.dtype | str = "auto") -> str | None:
    """The error of `merge_and_unload(safe_merge=True)`, None where it works."""
    model = PeftModel.from_pretrained(load_base(recipe, base, dtype), adapter)
    try:
        model.merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError) as error:
        return str(error)
    return None


def load_failure(recipe: Recipe, base: Path, adapter: Path) -> str:
    """What PEFT says where it does not load the adapter."""
    try:
        PeftModel.from_pretrained(load_base(recipe, base), adapter)
    except (ValueError, RuntimeError) as error:
        return str(error)
    raise AssertionError("PEFT loads it")
