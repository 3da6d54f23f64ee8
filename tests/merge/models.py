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

SMALL = {
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
QWEN3_MOE: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "moe_intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
"""A Qwen3-MoE of one layer with four experts."""

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
        **SMALL,
        "num_hidden_layers": 4,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    }


RECIPES: dict[str, Recipe] = {
    "llama": Recipe("LlamaConfig", "LlamaForCausalLM", SMALL, ["v_proj"]),
    "llama-attention-bias": Recipe("LlamaConfig", "LlamaForCausalLM", {**SMALL, "attention_bias": True}, ["v_proj"]),
    "qwen2": Recipe("Qwen2Config", "Qwen2ForCausalLM", SMALL, ["v_proj"]),
    "qwen2-output": Recipe("Qwen2Config", "Qwen2ForCausalLM", SMALL, ["v_proj", "o_proj"]),
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
        {**SMALL, "ffn_dim": 32, "word_embed_proj_dim": 16},
        ["v_proj"],
    ),
    "bert": Recipe("BertConfig", "BertForSequenceClassification", SMALL, ["value"], "SEQ_CLS"),
    "t5": Recipe(
        "T5Config",
        "T5ForConditionalGeneration",
        {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "pad_token_id": 0},
        ["v"],
        "SEQ_2_SEQ_LM",
    ),
    "gemma3": Recipe("Gemma3TextConfig", "Gemma3ForCausalLM", SMALL, ["v_proj"]),
    "mistral": Recipe("MistralConfig", "MistralForCausalLM", SMALL, ["v_proj"]),
    "llava": Recipe(
        "LlavaConfig",
        "LlavaForConditionalGeneration",
        {
            "vision_config": {"model_type": "clip_vision_model", "projection_dim": 16, **_VISION},
            "text_config": {"model_type": "llama", **SMALL},
            "image_token_index": 60,
        },
        ["v_proj"],
    ),
    "llava-qwen2": Recipe(
        "LlavaConfig",
        "LlavaForConditionalGeneration",
        {
            "vision_config": {"model_type": "clip_vision_model", "projection_dim": 16, **_VISION},
            "text_config": {"model_type": "qwen2", **SMALL},
            "image_token_index": 60,
        },
        ["v_proj"],
    ),
    "gemma3-vision": Recipe(
        "Gemma3Config",
        "Gemma3ForConditionalGeneration",
        {
            "vision_config": {"model_type": "siglip_vision_model", **_VISION},
            "text_config": {"model_type": "gemma3_text", **SMALL},
            "mm_tokens_per_image": 4,
        },
        ["v_proj"],
    ),
    "qwen2-vl": Recipe(
        "Qwen2VLConfig",
        "Qwen2VLForConditionalGeneration",
        {
            "vision_config": _QWEN_VISION,
            "text_config": {**SMALL, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        },
        ["v_proj"],
    ),
    "qwen2-vl-visual": Recipe(
        "Qwen2VLConfig",
        "Qwen2VLForConditionalGeneration",
        {
            "vision_config": _QWEN_VISION,
            "text_config": {**SMALL, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        },
        ["qkv", "v_proj"],
    ),
    "gpt2": Recipe(
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
        ["c_attn", "c_proj"],
    ),
    "roberta": Recipe("RobertaConfig", "RobertaForSequenceClassification", SMALL, ["value"], "SEQ_CLS"),
    "phi": Recipe("PhiConfig", "PhiForCausalLM", SMALL, ["v_proj"]),
    "mixtral": Recipe("MixtralConfig", "MixtralForCausalLM", {**SMALL, "num_local_experts": 2}, ["v_proj"]),
}
"""By name: the base models on which a merge was tried."""


_ENCODER_DECODER = {
    "vocab_size": 64,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
_N_NAMED = {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
_FALCON = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
_MODERNBERT = {**SMALL, "cls_token_id": 1, "sep_token_id": 2}
_MLA = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 2,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 8,
    "first_k_dense_replace": 1,
}
_WAV2VEC2 = {
    **SMALL,
    "conv_dim": [8, 8],
    "conv_kernel": [3, 3],
    "conv_stride": [2, 2],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}

RECIPES |= {
    "qwen3": Recipe("Qwen3Config", "Qwen3ForCausalLM", SMALL, ["v_proj"]),
    "qwen3-attention-bias": Recipe(
        "Qwen3Config", "Qwen3ForCausalLM", {**SMALL, "attention_bias": True}, ["v_proj", "down_proj"]
    ),
    "qwen2-moe": Recipe(
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        {**SMALL, "num_experts": 2, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8},
        ["v_proj", "o_proj"],
    ),
    "bloom": Recipe(
        "BloomConfig",
        "BloomForCausalLM",
        {"vocab_size": 64, "hidden_size": 16, "n_layer": 2, "n_head": 2},
        ["query_key_value"],
    ),
    "falcon": Recipe("FalconConfig", "FalconForCausalLM", _FALCON, ["query_key_value"]),
    "falcon-bias": Recipe("FalconConfig", "FalconForCausalLM", {**_FALCON, "bias": True}, ["query_key_value", "dense"]),
    "gpt-neox": Recipe("GPTNeoXConfig", "GPTNeoXForCausalLM", SMALL, ["query_key_value", "dense_4h_to_h"]),
    "gpt-neox-no-bias": Recipe(
        "GPTNeoXConfig", "GPTNeoXForCausalLM", {**SMALL, "attention_bias": False}, ["query_key_value"]
    ),
    "modernbert": Recipe("ModernBertConfig", "ModernBertForSequenceClassification", _MODERNBERT, ["Wqkv"], "TOKEN_CLS"),
    "modernbert-bias": Recipe(
        "ModernBertConfig",
        "ModernBertForMaskedLM",
        {**_MODERNBERT, "attention_bias": True},
        ["Wqkv", "Wo"],
        "FEATURE_EXTRACTION",
    ),
    "whisper": Recipe(
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        {**_ENCODER_DECODER, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16},
        ["k_proj", "v_proj"],
        "SEQ_2_SEQ_LM",
    ),
    "bart": Recipe(
        "BartConfig",
        "BartForConditionalGeneration",
        {**_ENCODER_DECODER, "max_position_embeddings": 32},
        ["v_proj"],
        "SEQ_2_SEQ_LM",
    ),
    "vit": Recipe("ViTConfig", "ViTForImageClassification", _VISION, ["v_proj"], "FEATURE_EXTRACTION"),
    "vit-no-bias": Recipe(
        "ViTConfig", "ViTForImageClassification", {**_VISION, "qkv_bias": False}, ["v_proj"], "FEATURE_EXTRACTION"
    ),
    "clip": Recipe(
        "CLIPConfig",
        "CLIPModel",
        {
            "vision_config": {**_VISION, "projection_dim": 16},
            "text_config": {**SMALL, "projection_dim": 16},
            "projection_dim": 16,
        },
        ["v_proj"],
        "FEATURE_EXTRACTION",
    ),
    "videomae": Recipe(
        "VideoMAEConfig",
        "VideoMAEForVideoClassification",
        {**_VISION, "num_frames": 2, "tubelet_size": 1},
        ["query", "value"],
        "FEATURE_EXTRACTION",
    ),
    "siglip": Recipe("SiglipVisionConfig", "SiglipVisionModel", _VISION, ["v_proj"], "FEATURE_EXTRACTION"),
    "deberta-v2": Recipe("DebertaV2Config", "DebertaV2ForMaskedLM", SMALL, ["value_proj"], "FEATURE_EXTRACTION"),
    "distilbert": Recipe(
        "DistilBertConfig",
        "DistilBertForMaskedLM",
        {"vocab_size": 64, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
        ["v_lin"],
        "FEATURE_EXTRACTION",
    ),
    "albert": Recipe(
        "AlbertConfig", "AlbertForMaskedLM", {**SMALL, "embedding_size": 8}, ["value"], "FEATURE_EXTRACTION"
    ),
    "phi3": Recipe("Phi3Config", "Phi3ForCausalLM", SMALL, ["qkv_proj"]),
    "gptj": Recipe("GPTJConfig", "GPTJForCausalLM", {**_N_NAMED, "rotary_dim": 4}, ["v_proj", "fc_in"]),
    "gpt-neo": Recipe(
        "GPTNeoConfig",
        "GPTNeoForCausalLM",
        {
            "vocab_size": 64,
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 2,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 64,
        },
        ["v_proj", "out_proj"],
    ),
    "gpt-bigcode": Recipe("GPTBigCodeConfig", "GPTBigCodeForCausalLM", _N_NAMED, ["c_attn"]),
    "starcoder2": Recipe("Starcoder2Config", "Starcoder2ForCausalLM", SMALL, ["v_proj"]),
    "stablelm": Recipe("StableLmConfig", "StableLmForCausalLM", {**SMALL, "use_qkv_bias": True}, ["v_proj", "o_proj"]),
    "glm4": Recipe("Glm4Config", "Glm4ForCausalLM", SMALL, ["v_proj"]),
    "gpt-oss": Recipe(
        "GptOssConfig", "GptOssForCausalLM", {**SMALL, "num_local_experts": 2, "num_experts_per_tok": 1}, ["v_proj"]
    ),
    "deepseek-v3": Recipe(
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        {**SMALL, **_MLA, "attention_bias": True},
        ["o_proj", "q_a_proj", "q_b_proj"],
    ),
    "llama4": Recipe(
        "Llama4TextConfig",
        "Llama4ForCausalLM",
        {**SMALL, "num_local_experts": 2, "intermediate_size_mlp": 16, "attention_bias": True},
        ["v_proj"],
    ),
    "wav2vec2": Recipe("Wav2Vec2Config", "Wav2Vec2ForCTC", _WAV2VEC2, ["v_proj"], "FEATURE_EXTRACTION"),
    "idefics3": Recipe(
        "Idefics3Config",
        "Idefics3ForConditionalGeneration",
        {
            "vision_config": _VISION,
            "text_config": {"model_type": "llama", **SMALL, "attention_bias": True},
            "image_token_id": 60,
        },
        ["v_proj"],
    ),
    "internvl": Recipe(
        "InternVLConfig",
        "InternVLForConditionalGeneration",
        {
            "vision_config": {**_VISION, "image_size": [28, 28], "patch_size": [14, 14]},
            "text_config": {"model_type": "qwen2", **SMALL},
            "image_token_id": 60,
        },
        ["v_proj"],
    ),
    "mllama": Recipe("MllamaTextConfig", "MllamaForCausalLM", {**SMALL, "cross_attention_layers": [1]}, ["v_proj"]),
    "granite": Recipe("GraniteConfig", "GraniteForCausalLM", {**SMALL, "attention_bias": True}, ["v_proj"]),
    "nemotron": Recipe("NemotronConfig", "NemotronForCausalLM", SMALL, ["v_proj"]),
}


def save_base(recipe: Recipe, folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    """A tiny base with random weights and random biases, saved by transformers."""
    torch.manual_seed(0)
    config = getattr(transformers, recipe.config)(**recipe.fields)
    model = getattr(transformers, recipe.model)(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
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
