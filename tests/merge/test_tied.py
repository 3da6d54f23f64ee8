"""Layers that are one tensor: the verdict is what merging does to the outputs, whatever a model calls and ties them."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftConfig, PeftModel, TrainableTokensConfig, get_peft_model
from safetensors.torch import load_file, save_file

from adaptertool.operations.check_merge import check_merge

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from transformers import PreTrainedModel

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
ENCODER_DECODER: dict[str, Any] = {
    "vocab_size": 64,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "decoder_start_token_id": 1,
}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
GPT2: dict[str, Any] = {
    "vocab_size": 64,
    "n_embd": 16,
    "n_layer": 1,
    "n_head": 2,
    "n_positions": 32,
    "add_cross_attention": True,
}


Answers = dict[str, "tuple[str | None, str, list[str]]"]
"""By arrangement: what merging does to the outputs, the verdict, and the codes."""


@dataclass(frozen=True)
class Model:
    """A tiny model: its class, how its config is made, a layer that is no end, and its two ends."""

    name: str
    config: Callable[[], Any]
    layer: str
    embedding: str
    head: str


def _composite(encoder: str, decoder: str) -> Callable[[], Any]:
    def make() -> Any:
        vision = encoder == "vit"
        first = transformers.ViTConfig(**VISION) if vision else transformers.BertConfig(**SIZES)
        second = (
            transformers.GPT2Config(**GPT2)
            if decoder == "gpt2"
            else transformers.BertConfig(**SIZES, is_decoder=True, add_cross_attention=True)
        )
        kind = transformers.VisionEncoderDecoderConfig if vision else transformers.EncoderDecoderConfig
        config = kind.from_encoder_decoder_configs(first, second)
        config.update({"decoder_start_token_id": 1, "pad_token_id": 0})
        return config

    return make


def _config(name: str, fields: dict[str, Any]) -> Callable[[], Any]:
    return lambda: getattr(transformers, name)(**fields)


def _llava() -> Any:
    vision = {"model_type": "clip_vision_model", "projection_dim": 16, **VISION}
    return transformers.LlavaConfig(
        vision_config=vision, text_config={"model_type": "qwen2", **SIZES}, image_token_index=60
    )


T5 = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "pad_token_id": 0}
MODELS = {
    "llama": Model("LlamaForCausalLM", _config("LlamaConfig", SIZES), "q_proj", "embed_tokens", "lm_head"),
    "gemma3": Model("Gemma3ForCausalLM", _config("Gemma3TextConfig", SIZES), "q_proj", "embed_tokens", "lm_head"),
    "gpt2": Model("GPT2LMHeadModel", _config("GPT2Config", GPT2), "c_attn", "wte", "lm_head"),
    "biogpt": Model("BioGptForCausalLM", _config("BioGptConfig", SIZES), "q_proj", "embed_tokens", "output_projection"),
    "bert": Model(
        "BertForMaskedLM", _config("BertConfig", SIZES), "query", "word_embeddings", "cls.predictions.decoder"
    ),
    "modernbert": Model(
        "ModernBertForMaskedLM", _config("ModernBertConfig", SIZES), "Wqkv", "tok_embeddings", "decoder"
    ),
    "bert-classifier": Model(
        "BertForSequenceClassification", _config("BertConfig", SIZES), "query", "word_embeddings", "classifier"
    ),
    "bart": Model(
        "BartForConditionalGeneration", _config("BartConfig", ENCODER_DECODER), "q_proj", "embed_tokens", "lm_head"
    ),
    "bart-shared": Model(
        "BartForConditionalGeneration", _config("BartConfig", ENCODER_DECODER), "q_proj", "model.shared", "lm_head"
    ),
    "marian": Model("MarianMTModel", _config("MarianConfig", ENCODER_DECODER), "q_proj", "embed_tokens", "lm_head"),
    "t5": Model("T5ForConditionalGeneration", _config("T5Config", T5), "q", "shared", "lm_head"),
    "llava": Model("LlavaForConditionalGeneration", _llava, "q_proj", "embed_tokens", "lm_head"),
    "vit-bert": Model(
        "VisionEncoderDecoderModel",
        _composite("vit", "bert"),
        "query",
        "decoder.bert.embeddings.word_embeddings",
        "cls.predictions.decoder",
    ),
    "vit-gpt2": Model("VisionEncoderDecoderModel", _composite("vit", "gpt2"), "c_attn", "wte", "lm_head"),
    "bert-bert": Model(
        "EncoderDecoderModel",
        _composite("bert", "bert"),
        "query",
        "decoder.bert.embeddings.word_embeddings",
        "cls.predictions.decoder",
    ),
}
TOKENS = [1, 5, 33]


def _adapters(model: Model) -> dict[str, PeftConfig]:
    """The arrangements of adapters at the two ends."""

    def lora(*targets: str, **fields: Any) -> LoraConfig:
        return LoraConfig(target_modules=[model.layer, *targets], r=2, init_lora_weights=False, **fields)

    def rows(*targets: str) -> TrainableTokensConfig:
        return TrainableTokensConfig(target_modules=list(targets) or None, token_indices=TOKENS)

    end, head = model.embedding, model.head
    return {
        "tokens": rows(),
        "tokens of the embedding": rows(end),
        "tokens of the head": rows(head),
        "LoRA, tokens": lora(trainable_token_indices=TOKENS),
        "LoRA, tokens of the embedding": lora(trainable_token_indices={end: TOKENS}),
        "LoRA, tokens of the head": lora(trainable_token_indices={head: TOKENS}),
        "LoRA, same tokens of both": lora(trainable_token_indices={end: TOKENS, head: TOKENS}),
        "LoRA, other tokens of both": lora(trainable_token_indices={end: TOKENS, head: [2, 9]}),
        "LoRA, tokens tied": lora(trainable_token_indices={end: TOKENS}, ensure_weight_tying=True),
        "LoRA on the head, tokens": lora(head, trainable_token_indices=TOKENS),
        "LoRA on the embedding": lora(end),
        "LoRA on the head": lora(head),
        "LoRA on both": lora(end, head),
        "LoRA on both, tied": lora(end, head, ensure_weight_tying=True),
        "embedding saved": lora(modules_to_save=[end]),
        "head saved": lora(modules_to_save=[head]),
        "LoRA on the embedding, head saved": lora(end, modules_to_save=[head]),
        "LoRA on the head, embedding saved": lora(head, modules_to_save=[end]),
    }


def _set_ties(config: Any, tied: bool) -> None:
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        if hasattr(part, "tie_word_embeddings"):
            part.tie_word_embeddings = tied


def save_base(model: Model, folder: Path, *, tied: bool) -> None:
    """The model with random weights, its biases too."""
    torch.manual_seed(0)
    config = model.config()
    _set_ties(config, tied)
    made = getattr(transformers, model.name)(config)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            torch.nn.init.normal_(parameter, std=0.3 if name.endswith("bias") else 0.1)
    made.save_pretrained(folder)


def load_base(model: Model, folder: Path) -> PreTrainedModel:
    """The model as a user loads it."""
    loaded: PreTrainedModel = getattr(transformers, model.name).from_pretrained(folder)
    return loaded


def save_adapter(base: PreTrainedModel, config: PeftConfig, folder: Path) -> None:
    """An adapter with random values in all that it trains."""
    made = get_peft_model(copy.deepcopy(base), copy.deepcopy(config))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if any(part in name for part in ("lora_", "trainable_tokens_delta", "modules_to_save")):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    made.save_pretrained(str(folder))


@cache
def _picture() -> torch.Tensor:
    return torch.linspace(-1, 1, 3 * 28 * 28).reshape(1, 3, 28, 28)


def outputs_of(model: torch.nn.Module) -> torch.Tensor:
    """Logits, for inputs that the class takes."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    ids = torch.tensor([[5, 9, 33, 17]])
    given = {"pixel_values": _picture()} if base.main_input_name == "pixel_values" else {"input_ids": ids}
    if base.config.is_encoder_decoder or "EncoderDecoder" in type(base).__name__:
        given["decoder_input_ids"] = ids
    with torch.no_grad():
        logits = base.eval()(**given).logits
    assert isinstance(logits, torch.Tensor)
    return logits


def verdict_by_peft(model: Model, base: Path, adapter: Path) -> str | None:
    """What merging does to the outputs; None where the adapter does not even run unmerged."""
    loaded = PeftModel.from_pretrained(load_base(model, base), str(adapter))
    try:
        before = outputs_of(loaded)
    except ValueError:
        return None
    after = outputs_of(loaded.merge_and_unload(safe_merge=True))
    return "mergeable" if torch.allclose(before, after, atol=1e-4) else "lossy"


def answers(model: Model, base: Path, folder: Path, which: Sequence[str] = ()) -> Answers:
    """Every arrangement that PEFT attaches: what merging does, the verdict, and the codes."""
    found: Answers = {}
    plain = load_base(model, base)
    for name, config in _adapters(model).items():
        adapter = folder / name.replace(" ", "-")
        if which and name not in which:
            continue
        try:
            save_adapter(plain, config, adapter)
        except (IndexError, TypeError, ValueError):
            continue
        report = check_merge(adapter, base)
        codes = [finding.code for finding in report.findings]
        found[name] = verdict_by_peft(model, base, adapter), report.verdict, codes
    return found


def wrong(found: Answers) -> Answers:
    """Where the verdict is another one than what merging does.

    What PEFT does not run before it is merged is nothing that could have been trained, and never called mergeable.
    """
    return {name: one for name, one in found.items() if one[1] != (one[0] or "lossy")}


@pytest.mark.parametrize("name", MODELS)
def test_the_verdict_is_what_merging_does_to_the_outputs(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    save_base(model, tmp_path / "base", tied=True)
    found = answers(model, tmp_path / "base", tmp_path)
    assert len(found) > 10
    assert wrong(found) == {}
    # The rows that PEFT writes once more under a tied layer are no tensors without a place.
    assert [one for one, (_, _, codes) in found.items() if one.startswith("tokens") and "ADP210" in codes] == []
    if name != "bert-classifier":
        assert {due for due, _, _ in found.values()} >= {"mergeable", "lossy"}


@pytest.mark.parametrize("name", ["llama", "bert", "bart", "t5", "vit-bert"])
def test_ends_that_are_apart_merge_unless_a_bias_is_left_out(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    save_base(model, tmp_path / "base", tied=False)
    which = ("tokens of the head", "LoRA, tokens of the head", "LoRA, same tokens of both", "LoRA on both")
    found = answers(model, tmp_path / "base", tmp_path, which)
    assert wrong(found) == {}
    with_bias = name in ("bert", "vit-bert")
    assert {due for due, _, _ in found.values()} == ({"lossy", "mergeable"} if with_bias else {"mergeable"})


FEW = ("tokens", "LoRA, tokens of the head", "LoRA on the head", "LoRA on the embedding, head saved")


@pytest.mark.parametrize(("whole", "text"), [(True, None), (None, True), (False, True), (None, None), (False, None)])
def test_the_part_of_the_config_decides_that_the_class_asks(
    whole: bool | None, text: bool | None, tmp_path: Path
) -> None:
    model = MODELS["llava"]
    tied = whole is True or text is True
    save_base(model, tmp_path / "base", tied=tied)
    path = tmp_path / "base/config.json"
    config = json.loads(path.read_text())
    for part, value in ((config, whole), (config["text_config"], text)):
        part.pop("tie_word_embeddings", None)
        part.update({} if value is None else {"tie_word_embeddings": value})
    path.write_text(json.dumps(config))
    found = answers(model, tmp_path / "base", tmp_path, FEW)
    assert wrong(found) == {}
    assert ({due for due, _, _ in found.values()} == {"mergeable"}) is not tied


@pytest.mark.parametrize("says", [True, False, None])
@pytest.mark.parametrize("name", ["vit-bert", "bert-bert", "vit-gpt2"])
def test_a_decoder_goes_by_its_own_config(name: str, says: bool | None, tmp_path: Path) -> None:
    model = MODELS[name]
    save_base(model, tmp_path / "base", tied=says is not False)
    path = tmp_path / "base/config.json"
    config = json.loads(path.read_text())
    assert config.get("tie_word_embeddings") is not True
    config["decoder"].pop("tie_word_embeddings", None)
    config["decoder"].update({} if says is None else {"tie_word_embeddings": says})
    path.write_text(json.dumps(config))
    save_adapter(load_base(model, tmp_path / "base"), _adapters(model)["LoRA on the head"], tmp_path / "adapter")
    due = "mergeable" if says is False else "lossy"
    assert verdict_by_peft(model, tmp_path / "base", tmp_path / "adapter") == due
    assert check_merge(tmp_path / "adapter", tmp_path / "base").verdict == due


@pytest.mark.parametrize("name", ["llama", "t5", "bart"])
def test_two_ends_that_are_stored_apart_are_not_tied(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    save_base(model, tmp_path / "base", tied=False)
    path = tmp_path / "base/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "tie_word_embeddings": True}))
    found = answers(model, tmp_path / "base", tmp_path, FEW)
    assert wrong(found) == {}
    assert found["LoRA on the head"][0] == "mergeable"
    # The same twice is one tensor again.
    weights = tmp_path / "base/model.safetensors"
    tensors = load_file(weights)
    for key in [key for key in tensors if key.endswith(("embed_tokens.weight", "shared.weight"))]:
        tensors[key] = tensors["lm_head.weight"].clone()
    save_file(tensors, weights, {"format": "pt"})
    found = answers(model, tmp_path / "base", tmp_path / "again", FEW)
    assert wrong(found) == {}
    assert found["LoRA on the head"][0] == "lossy"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["UMT5", "SwitchTransformers"])
def test_a_model_that_computes_by_its_ties(name: str, tied: bool, tmp_path: Path) -> None:
    """PEFT turns `tie_word_embeddings` off where a merge leaves two ends apart, and such a model scales its outputs by it."""
    config = _config(f"{name}Config", {**T5, "num_decoder_layers": 1, "num_experts": 2})
    model = Model(f"{name}ForConditionalGeneration", config, "q", "shared", "lm_head")
    save_base(model, tmp_path / "base", tied=tied)
    path = tmp_path / "base/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tie_word_embeddings": True}))
    found = answers(model, tmp_path / "base", tmp_path, ("tokens", "LoRA, tokens", "embedding saved", "head saved"))
    assert wrong(found) == {}
    assert {due for due, _, _ in found.values()} == ({"lossy", "mergeable"} if tied else {"lossy"})


@pytest.mark.parametrize("says", [True, False, None])
@pytest.mark.parametrize("head_stored", [True, False])
def test_of_code_that_is_not_known_the_config_tells(says: bool | None, head_stored: bool, tmp_path: Path) -> None:
    model = MODELS["llama"]
    save_base(model, tmp_path / "base", tied=not head_stored)
    save_adapter(load_base(model, tmp_path / "base"), _adapters(model)["LoRA on the embedding"], tmp_path / "adapter")
    path = tmp_path / "base/config.json"
    config = {**json.loads(path.read_text()), "model_type": "not-known", "architectures": ["NotKnownForCausalLM"]}
    config.pop("tie_word_embeddings")
    path.write_text(json.dumps({**config, **({} if says is None else {"tie_word_embeddings": says})}))
    verdict = check_merge(tmp_path / "adapter", tmp_path / "base").verdict
    apart = says is False or (says is None and head_stored)
    assert verdict == ("mergeable" if apart else "unknown" if says is None else "lossy")
