"""Layers that the model has and its file does not hold under any name of theirs: tied, fused with others, or drawn anew."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import BeftConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GteConfig,
    GteModel,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

import adaptertool
from adaptertool.checkpoint.folder import LocalFolder
from adaptertool.merge.base.code import ModelCode
from adaptertool.merge.base.files import Base
from adaptertool.merge.base.layers import BaseLayers
from tests.methods.written import shake

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}

T5: dict[str, Any] = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
OTHER_SETTINGS = [
    (
        T5Config(**T5, feed_forward_proj="gated-gelu"),
        T5ForConditionalGeneration,
        ["wi_1", "wi_0"],
    ),
    (
        OPTConfig(
            vocab_size=32,
            hidden_size=16,
            ffn_dim=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=32,
            word_embed_proj_dim=8,
        ),
        OPTForCausalLM,
        ["project_in", "project_out"],
    ),
]
"""Layers that models of the default config do not have."""


def adapted(model: PreTrainedModel, config: Any, folder: Path) -> None:
    """Write an adapter with values as after training."""
    tuned = get_peft_model(model, config)
    shake(tuned)
    tuned.save_pretrained(str(folder))


@pytest.mark.parametrize("ask_model", [True, False])
@pytest.mark.parametrize(
    ("config", "model_class", "module"),
    [
        (BertConfig(**SIZES), BertForMaskedLM, "cls.predictions.decoder"),
        (RobertaConfig(**SIZES, pad_token_id=1), RobertaForMaskedLM, "lm_head.decoder"),
    ],
    ids=["bert", "roberta"],
)
def test_a_decoder_whose_bias_is_stored_as_its_parents(
    config: Any, model_class: Any, module: str, ask_model: bool, tmp_path: Path
) -> None:
    model = model_class(config)
    with torch.no_grad():
        model.get_submodule(module).bias.normal_()
    model.save_pretrained(tmp_path / "base")
    assert f"{module}.bias" not in load_file(tmp_path / "base" / "model.safetensors")
    adapted(
        model_class.from_pretrained(tmp_path / "base"), BeftConfig(target_modules=["decoder"]), tmp_path / "adapter"
    )
    loaded = PeftModel.from_pretrained(model_class.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    merged = loaded.merge_and_unload(safe_merge=True).get_submodule(module).bias
    report = adaptertool.check_merge(tmp_path / "adapter", tmp_path / "base", ask_model=ask_model)
    assert (report.verdict, report.findings) == ("mergeable", ())
    (layer,) = report.layers
    assert layer.bias_norm == pytest.approx(float(model.get_submodule(module).bias.norm()), rel=1e-6)
    assert layer.update_norm == pytest.approx(float((merged - model.get_submodule(module).bias).norm()), rel=1e-5)


@pytest.mark.parametrize("ask_model", [True, False])
def test_layers_that_are_fused_in_the_file(ask_model: bool, tmp_path: Path) -> None:
    """GTE's files hold query, key and value as one."""
    GteModel(GteConfig(**SIZES)).save_pretrained(tmp_path / "base")
    assert any("qkv" in name for name in load_file(tmp_path / "base" / "model.safetensors"))
    for name, config in (
        ("beft", BeftConfig(target_modules=["k_proj"])),
        ("lora", LoraConfig(target_modules=["q_proj"], r=2)),
    ):
        adapted(GteModel.from_pretrained(tmp_path / "base"), config, tmp_path / name)
        bare = GteModel.from_pretrained(tmp_path / "base")
        fails = bare.get_submodule("layers.0.self_attn.k_proj").bias is None and name == "beft"
        report = adaptertool.check_merge(tmp_path / name, tmp_path / "base", ask_model=ask_model)
        assert report.verdict == ("not-mergeable" if fails else "mergeable")
        assert [layer.rounding_loss for layer in report.layers] == [None] * len(report.layers)
        if not fails:
            PeftModel.from_pretrained(bare, tmp_path / name).merge_and_unload(safe_merge=True)
            assert report.not_examined


@pytest.mark.parametrize("ask_model", [True, False])
def test_a_head_that_the_base_does_not_have_yet(ask_model: bool, tmp_path: Path) -> None:
    BertModel(BertConfig(**SIZES)).save_pretrained(tmp_path / "base")
    bare = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    adapted(bare, LoraConfig(target_modules=["query", "classifier"], r=2), tmp_path / "adapter")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    PeftModel.from_pretrained(again, tmp_path / "adapter").merge_and_unload(safe_merge=True)
    report = adaptertool.check_merge(tmp_path / "adapter", tmp_path / "base", ask_model=ask_model)
    assert report.verdict == "mergeable"
    assert [finding.code for finding in report.findings] == ["ADP208"]
    assert "at random" in report.findings[0].message


def test_a_layer_that_is_simply_gone_stays_unknown(tmp_path: Path) -> None:
    model = BertModel(BertConfig(**SIZES))
    model.save_pretrained(tmp_path / "base")
    adapted(BertModel.from_pretrained(tmp_path / "base"), BeftConfig(target_modules=["key"]), tmp_path / "adapter")
    path = tmp_path / "base" / "model.safetensors"
    state = {name: tensor for name, tensor in load_file(path).items() if ".self.key." not in name}
    save_file(state, path, {"format": "pt"})
    report = adaptertool.check_merge(tmp_path / "adapter", tmp_path / "base", ask_model=False)
    assert {layer.status for layer in report.layers} == {"unknown"}


@pytest.mark.parametrize("ask_model", [True, False])
@pytest.mark.parametrize("setting", OTHER_SETTINGS, ids=lambda setting: setting[2][0])
def test_layers_that_come_with_other_settings(
    setting: tuple[Any, Any, list[str]], ask_model: bool, tmp_path: Path
) -> None:
    """Nothing is wrong with a layer that the file holds and a model of the default config lacks."""
    config, model_class, targets = setting
    model_class(config).save_pretrained(tmp_path / "base")
    chosen = LoraConfig(target_modules=targets, r=2)
    adapted(model_class.from_pretrained(tmp_path / "base"), chosen, tmp_path / "adapter")
    report = adaptertool.check_merge(tmp_path / "adapter", tmp_path / "base", ask_model=ask_model)
    assert (report.verdict, report.findings) == ("mergeable", ())
    loaded = PeftModel.from_pretrained(model_class.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert {layer.module for layer in report.layers} == {
        name.removeprefix("base_model.model.") for name, module in loaded.named_modules() if hasattr(module, "lora_A")
    }
    loaded.merge_and_unload(safe_merge=True)


def test_a_path_that_no_layer_has(tmp_path: Path) -> None:
    """PEFT makes the layers that the config targets, and leaves out tensors under such a path."""
    BertModel(BertConfig(**SIZES)).save_pretrained(tmp_path / "base")
    chosen = LoraConfig(target_modules=["key"], r=2)
    adapted(BertModel.from_pretrained(tmp_path / "base"), chosen, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    state = {
        name.replace("layer.0.attention.self", "layer.0.other"): tensor for name, tensor in load_file(path).items()
    }
    save_file(state, path, {"format": "pt"})
    for ask_model in (True, False):
        report = adaptertool.check_merge(tmp_path / "adapter", tmp_path / "base", ask_model=ask_model)
        assert report.verdict == "unknown"
        assert "ADP208" not in {finding.code for finding in report.findings}


def test_a_norm_that_transformers_renames() -> None:
    """The table leaves norms out, and a file that is renamed at loading may lack the name: that is no proof of anything."""
    stored, live = "layers.1.k_input_norm.weight", "layers.1.k_input_layernorm"
    mapping: Any = get_checkpoint_conversion_mapping
    renamings = [one for one in mapping("inkling2_text") if isinstance(one, WeightRenaming)]
    assert rename_source_key(stored, renamings, [])[0] == f"{live}.weight"
    config = {"model_type": "inkling2_text"}
    layers = BaseLayers(Base(LocalFolder(Path()), config, {stored: ""}), ModelCode(config))
    assert layers.needs_weight(live, trained=True).status == "unknown"


@pytest.fixture
def unset_memory_is_nan() -> Iterator[None]:
    """What nobody sets is NaN: see `torch.utils.deterministic.fill_uninitialized_memory`."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.usefixtures("unset_memory_is_nan")
@pytest.mark.parametrize(
    ("config", "model_class", "verdict"),
    [(GPT2Config, GPT2LMHeadModel, "mergeable"), (OpenAIGPTConfig, OpenAIGPTLMHeadModel, "unknown")],
)
def test_biases_that_transformers_makes_and_does_not_set(
    config: type[PretrainedConfig], model_class: type[PreTrainedModel], verdict: str, tmp_path: Path
) -> None:
    sizes: dict[str, Any] = {"n_embd": 16, "n_head": 2, "n_layer": 1, "vocab_size": 32, "n_positions": 32}
    base = model_class(config(**sizes))
    base.save_pretrained(tmp_path / "base")
    adapted(base, LoraConfig(target_modules=["c_attn"], lora_bias=True, fan_in_fan_out=True), tmp_path / "adapter")
    assert adaptertool.check_merge(tmp_path / "adapter", tmp_path / "base").verdict == "mergeable"
    path = tmp_path / "base" / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if not name.endswith("c_attn.bias")}
    save_file(kept, path, {"format": "pt"})
    assert adaptertool.check_merge(tmp_path / "adapter", tmp_path / "base").verdict == verdict
    loaded = PeftModel.from_pretrained(model_class.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    if verdict == "mergeable":
        loaded.merge_and_unload(safe_merge=True)
    else:
        with pytest.raises(ValueError, match="NaNs detected"):
            loaded.merge_and_unload(safe_merge=True)
