"""Layers that PEFT does not attach a method to: where it raises at loading, nothing is called mergeable."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    ViTConfig,
    ViTModel,
)

import adaptertool
from adaptertool.methods import method_of
from adaptertool.methods.base import Method
from tests.checkpoints import change_config
from tests.merge.models import QWEN3_MOE
from tests.methods.written import ALL_FAMILIES, CANNOT_ATTACH, UNTARGETED, base, peft_types, write

if TYPE_CHECKING:
    from pathlib import Path

    from tests.merge.conftest import Bases

TYPES = [one for one in peft_types() if one not in UNTARGETED and one not in ("LILY", "POLY")]


@pytest.mark.parametrize("more", ["embed_tokens", "norm", "mlp", r".*self_attn", r".*layers\.0\..*_proj"])
@pytest.mark.parametrize("peft_type", TYPES)
def test_targets_that_are_no_layers_of_the_method(peft_type: str, more: str, bases: Bases, tmp_path: Path) -> None:
    family = "opt" if peft_type == "BEFT" else "llama"
    if peft_type == "OSF" and more == r".*self_attn":
        pytest.skip("OSF attaches to it and does nothing")
    written = write(tmp_path, peft_type, family)
    targets: Any = (
        more if "*" in more else [*json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"], more]
    )
    change_config(tmp_path, target_modules=targets)
    try:
        merged = written.loaded(tmp_path).merge_and_unload(safe_merge=True)
    except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
        merged = None
    verdict = adaptertool.check_merge(tmp_path, bases(family)).verdict
    assert verdict in ("not-mergeable", "unknown") if merged is None else verdict != "not-mergeable"


@pytest.mark.parametrize("peft_type", [one for one in TYPES if one in CANNOT_ATTACH and "gpt2" in CANNOT_ATTACH[one]])
def test_methods_that_do_not_attach_to_a_conv1d(peft_type: str, bases: Bases, tmp_path: Path) -> None:
    """A LoRA adapter's layers, under the name of a method that is for nn.Linear only."""
    if set(CANNOT_ATTACH[peft_type]) == set(ALL_FAMILIES) or peft_type == "OSF":
        pytest.skip("attached to nothing here, or to anything without a word")
    written = write(tmp_path / "llama", peft_type, "opt" if peft_type == "BEFT" else "llama", target_modules=["v_proj"])
    state = load_file(tmp_path / "llama" / "adapter_model.safetensors")
    moved = {
        name.replace("decoder.", "")
        .replace("model.layers", "transformer.h")
        .replace("self_attn.v_proj", "attn.c_attn"): tensor
        for name, tensor in state.items()
    }
    save_file(moved, tmp_path / "llama" / "adapter_model.safetensors", {"format": "pt"})
    change_config(tmp_path / "llama", target_modules=["c_attn"])
    with pytest.raises((KeyError, NotImplementedError, TypeError, ValueError)):
        PeftModel.from_pretrained(base("gpt2"), str(tmp_path / "llama"))
    report = adaptertool.check_merge(tmp_path / "llama", bases("gpt2"))
    assert report.verdict == "not-mergeable"
    assert written.model is not None


def test_every_method_says_what_it_attaches_to() -> None:
    kinds = {"linear", "conv1d", "embedding", "conv", "attention"}
    for peft_type in TYPES:
        method: Method = method_of(_Config(peft_type))  # type: ignore[arg-type]
        assert method.merge is not None
        assert method.merge.kinds is None or "linear" in method.merge.kinds <= kinds
        if "gpt2" in CANNOT_ATTACH.get(peft_type, ()) and method.merge.kinds is not None:
            assert "conv1d" not in method.merge.kinds


class _Config:
    def __init__(self, peft_type: str) -> None:
        self.peft_type = peft_type
        self.fields: dict[str, Any] = {}


@pytest.mark.parametrize("peft_type", ["LORA", "ADALORA", "RANDLORA", "VERA"])
@pytest.mark.parametrize("more", ["out_proj", "x_proj"])
def test_mambas_kernels_take_weights(peft_type: str, more: str, tmp_path: Path) -> None:
    config = MambaConfig(vocab_size=32, hidden_size=16, state_size=4, num_hidden_layers=2, time_step_rank=2)
    MambaForCausalLM(config).save_pretrained(tmp_path / "base")
    arguments: dict[str, Any] = {"r": 2} if peft_type != "ADALORA" else {"total_step": 10, "target_r": 2, "init_r": 3}
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    config_class: Any = PEFT_TYPE_TO_CONFIG_MAPPING[peft_type]  # type: ignore[index]
    peft_config = config_class(
        target_modules=["in_proj", "x_proj", "out_proj"] if peft_type == "VERA" else ["in_proj", "x_proj"],
        task_type="CAUSAL_LM",
        **arguments,
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), peft_config)
    model.save_pretrained(str(tmp_path / "adapter"))
    change_config(tmp_path / "adapter", target_modules=["in_proj", "x_proj", more])
    fails = False
    try:
        loaded = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
        )
        loaded.merge_and_unload(safe_merge=True)
    except ValueError:
        fails = True
    assert fails == (more == "out_proj" and peft_type != "VERA")
    report = adaptertool.check_merge(tmp_path / "adapter", tmp_path / "base")
    assert report.verdict == ("not-mergeable" if fails else "mergeable")
    if fails:
        assert any("incompatible with Mamba" in finding.message for finding in report.findings)


def test_a_convolution(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = ViTModel(ViTConfig(image_size=8, patch_size=4, **sizes))  # type: ignore[arg-type]
    model.save_pretrained(tmp_path / "base")
    get_peft_model(model, LoraConfig(target_modules=["projection", "q_proj"], r=2)).save_pretrained(
        str(tmp_path / "adapter")
    )
    assert adaptertool.check_merge(tmp_path / "adapter", tmp_path / "base").verdict == "mergeable"
    change_config(tmp_path / "adapter", target_modules=["projection", "q_proj", "layernorm_before"])
    with pytest.raises(ValueError, match="is not supported"):
        PeftModel.from_pretrained(ViTModel.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert adaptertool.check_merge(tmp_path / "adapter", tmp_path / "base").verdict == "not-mergeable"


@pytest.mark.parametrize(
    "fields",
    [
        {"target_parameters": ["experts.gate_up_proj"]},
        {"target_parameters": ["gate_up_proj", "gate.weight"]},
        {"target_parameters": ["experts.gate_up_proj", "no_such_parameter"]},
        {"target_parameters": ["q_proj.weight"]},
        {"target_parameters": ["weight"]},
        {"target_parameters": ["q_proj.weight"], "target_modules": ["q_proj"]},
        {"target_parameters": ["q_proj.weight"], "exclude_modules": ["q_proj"]},
        {"target_parameters": ["gate_up_proj"], "use_dora": True},
        {"target_parameters": ["gate_up_proj"], "lora_dropout": 0.1},
        # What only layers for GPTQ look at.
        {"target_parameters": ["gate_up_proj"], "use_qalora": True},
        {"target_parameters": ["q_proj.weight"], "use_qalora": True},
        {"target_parameters": ["gate_up_proj"], "target_modules": None},
        {"target_parameters": ["input_layernorm.weight"]},
        {"target_parameters": [], "target_modules": []},
        {"target_parameters": ["nothing"], "target_modules": ["v_proj"]},
        *(
            {"target_parameters": None, "target_modules": targets}
            for targets in (
                # What these were before transformers 5 fused the experts, PEFT turns into parameters.
                ["gate_proj", "up_proj", "down_proj", "q_proj"],
                ["gate_proj", "v_proj"],
                ["gate", "v_proj"],
                ["experts.0.down_proj"],
                "all-linear",
                r".*\.q_proj",
                r".*\.layers\.0\.mlp\.experts\..*",
                r".*\.(gate_proj|up_proj)",
                "no_such_layer",
            )
        ),
    ],
    ids=str,
)
def test_parameters_as_targets(fields: dict[str, Any], tmp_path: Path) -> None:
    """Written for some, loaded with others: as PEFT attaches."""
    Qwen3MoeForCausalLM(Qwen3MoeConfig(**QWEN3_MOE)).save_pretrained(tmp_path / "base")
    config = LoraConfig(
        target_modules=["v_proj"], target_parameters=["experts.gate_up_proj"], r=2, task_type="CAUSAL_LM"
    )
    model = get_peft_model(Qwen3MoeForCausalLM.from_pretrained(tmp_path / "base"), config)
    model.save_pretrained(str(tmp_path / "adapter"))
    change_config(tmp_path / "adapter", **{"target_modules": [], **fields})
    try:
        loaded = PeftModel.from_pretrained(
            Qwen3MoeForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter", is_trainable=False
        )
        attached = {
            name.removeprefix("base_model.model.").removesuffix(".base_layer")
            for name, module in loaded.named_modules()
            if hasattr(module, "lora_A")
        }
        loaded.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError):
        attached = set()
    report = adaptertool.check_merge(tmp_path / "adapter", tmp_path / "base")
    assert report.verdict == ("mergeable" if attached else "not-mergeable")
    if attached:
        assert {layer.module for layer in report.layers} == attached


def test_an_expert_that_is_not_finite(tmp_path: Path) -> None:
    Qwen3MoeForCausalLM(Qwen3MoeConfig(**QWEN3_MOE)).save_pretrained(tmp_path / "base")
    config = LoraConfig(
        target_modules=[],
        target_parameters=["experts.gate_up_proj", "experts.down_proj"],
        r=2,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(Qwen3MoeForCausalLM.from_pretrained(tmp_path / "base"), config)
    model.save_pretrained(str(tmp_path / "adapter"))
    assert adaptertool.check_merge(tmp_path / "adapter", tmp_path / "base").verdict == "mergeable"
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    for name in load_file(path):
        state = load_file(path)
        kept = state[name].clone()
        state[name].view(-1)[-1] = float("nan")
        save_file(state, path, {"format": "pt"})
        assert adaptertool.check_merge(tmp_path / "adapter", tmp_path / "base").verdict == "not-mergeable", name
        state[name] = kept
        save_file(state, path, {"format": "pt"})
