"""Adapters of experts one by one, from transformers 4: PEFT fuses them at loading as transformers 5 has fused the base's."""

from __future__ import annotations

import json
from math import inf
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from adaptertool.merge.adapter.settings import table
from adaptertool.merge.base.live import build_live_model
from adaptertool.operations.check_merge import check_merge
from tests.tools.generate_default_targets import default_targets

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Tensors = dict[str, torch.Tensor]

_SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "num_experts_per_tok": 2,
}
_LOCAL = {**_SMALL, "intermediate_size": 24, "num_local_experts": 3}

BASES: dict[str, tuple[dict[str, Any], str, tuple[str, str, str]]] = {
    "mixtral": (_LOCAL, "block_sparse_moe", ("w1", "w3", "w2")),
    "minimax": ({**_LOCAL, "layer_types": ["full_attention"] * 2}, "block_sparse_moe", ("w1", "w3", "w2")),
    "qwen3_moe": (
        {**_SMALL, "num_experts": 3, "moe_intermediate_size": 24},
        "mlp",
        ("gate_proj", "up_proj", "down_proj"),
    ),
}
"""By model type: the config, and what transformers 4 called the block that holds the experts and their three layers."""


def save_base(name: str, folder: Path) -> Path:
    torch.manual_seed(1)
    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_config(transformers.AutoConfig.for_model(name, **BASES[name][0]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return folder


def save_adapter(name: str, folder: Path, targets: list[str] | str, kept: tuple[str, ...], **fields: Any) -> Tensors:
    """An adapter as PEFT wrote it under transformers 4, where each expert's layers were layers."""
    _, block, (gate, up, down) = BASES[name]
    LoraConfig(r=2, lora_alpha=4, target_modules=targets, task_type="CAUSAL_LM", **fields).save_pretrained(str(folder))
    torch.manual_seed(2)
    tensors = {}
    for layer in range(2):
        for expert in range(3):
            for leaf, (into, out) in {gate: (16, 24), up: (16, 24), down: (24, 16)}.items():
                stem = f"base_model.model.model.layers.{layer}.{block}.experts.{expert}.{leaf}"
                if leaf in kept:
                    tensors[f"{stem}.lora_A.weight"] = torch.randn(2, into) * 0.3
                    tensors[f"{stem}.lora_B.weight"] = torch.randn(out, 2) * 0.3
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return tensors


def outputs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.eval()(input_ids=torch.arange(3, 12)[None]).logits
    return result


def load(base: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(base)


def merge_each(base: Path, tensors: dict[str, torch.Tensor], scale: float) -> None:
    """Merge each of an adapter's layers by itself into the base's file."""
    weights = load_file(base / "model.safetensors")
    for key in (key for key in tensors if "lora_A" in key):
        stem = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        weights[f"{stem}.weight"] += scale * tensors[key.replace("lora_A", "lora_B")] @ tensors[key]
    save_file(weights, base / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("all_linear", [False, True])
@pytest.mark.parametrize("name", BASES)
def test_they_merge_as_they_were_trained(name: str, all_linear: bool, tmp_path: Path) -> None:
    base, leaves = save_base(name, tmp_path / "base"), BASES[name][2]
    tensors = save_adapter(name, tmp_path / "adapter", "all-linear" if all_linear else list(leaves), leaves)
    report = check_merge(tmp_path / "adapter", base)
    assert report.verdict == "mergeable"
    held = {one.module for one in report.layers if ".experts." in one.module}
    assert held == {key.removeprefix("base_model.model.").rsplit(".", 2)[0] for key in tensors}
    loaded = PeftModel.from_pretrained(load(base), str(tmp_path / "adapter"))
    before = outputs(loaded)
    assert torch.allclose(outputs(loaded.merge_and_unload(safe_merge=True)), before, atol=1e-5)
    # The same as if each expert of transformers 4 had been merged by itself.
    merge_each(base, tensors, 2)
    assert torch.allclose(outputs(load(base)), before, atol=1e-5)


@pytest.mark.parametrize(
    ("pattern", "verdict"),
    [
        ("v_proj", "mergeable"),
        ("^model.layers.7.*", "mergeable"),
        ("w2", "unknown"),
        (".*experts.*", "unknown"),
        (".*mlp.*", "unknown"),
        ("down_proj", "unknown"),
    ],
)
@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_patterns_that_name_no_expert_change_none(field: str, pattern: str, verdict: str, tmp_path: Path) -> None:
    base, leaves = save_base("mixtral", tmp_path / "base"), BASES["mixtral"][2]
    save_adapter("mixtral", tmp_path / "plain", list(leaves), leaves)
    save_adapter("mixtral", tmp_path / "adapter", list(leaves), leaves, **{field: {pattern: 3}})
    assert check_merge(tmp_path / "adapter", base).verdict == verdict
    if verdict == "mergeable":
        plain, loaded = (PeftModel.from_pretrained(load(base), str(tmp_path / one)) for one in ("plain", "adapter"))
        assert torch.equal(outputs(loaded), outputs(plain))
        assert torch.allclose(outputs(loaded.merge_and_unload(safe_merge=True)), outputs(plain), atol=1e-5)


def test_down_projections_alone_merge_and_the_others_alone_are_not_loaded(tmp_path: Path) -> None:
    base = save_base("mixtral", tmp_path / "base")
    plain = outputs(load(base))
    for kept, verdict, changes in ((("w2",), "mergeable", True), (("w1", "w3"), "unknown", False)):
        save_adapter("mixtral", tmp_path / "-".join(kept), list(kept), kept)
        assert check_merge(tmp_path / "-".join(kept), base).verdict == verdict
        loaded = PeftModel.from_pretrained(load(base), str(tmp_path / "-".join(kept)))
        assert torch.equal(outputs(loaded), plain) is not changes


@pytest.mark.parametrize(("kept", "verdict"), [(("w2",), "mergeable"), (("w1", "w3", "w2"), "unknown")])
def test_rank_stabilised_scales(kept: tuple[str, ...], verdict: str, tmp_path: Path) -> None:
    base = save_base("mixtral", tmp_path / "base")
    tensors = save_adapter("mixtral", tmp_path / "adapter", list(kept), kept, use_rslora=True)
    assert check_merge(tmp_path / "adapter", base).verdict == verdict
    loaded = PeftModel.from_pretrained(load(base), str(tmp_path / "adapter"))
    before = outputs(loaded)
    assert torch.allclose(outputs(loaded.merge_and_unload(safe_merge=True)), before, atol=1e-5)
    merge_each(base, tensors, 4 / 2**0.5)
    assert torch.allclose(outputs(load(base)), before, atol=1e-4) == (verdict == "mergeable")


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if part not in key}


def wider(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {
        key: torch.cat([tensor, tensor], 1) if part in key and "lora_A" in key else tensor
        for key, tensor in tensors.items()
    }


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (without("layers.0.block_sparse_moe.experts.1"), "unknown"),
        (wider("w2"), "not-mergeable"),
    ],
    ids=["one is missing", "another width"],
)
def test_what_peft_does_not_load_is_never_mergeable(
    change: Callable[[Tensors], Tensors], verdict: str, tmp_path: Path
) -> None:
    base = save_base("mixtral", tmp_path / "base")
    tensors = save_adapter("mixtral", tmp_path / "adapter", ["w1", "w2", "w3"], ("w1", "w2", "w3"))
    save_file(change(tensors), tmp_path / "adapter/adapter_model.safetensors", {"format": "pt"})
    assert check_merge(tmp_path / "adapter", base).verdict == verdict
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(load(base), str(tmp_path / "adapter"))


def test_settings_that_were_not_looked_into(tmp_path: Path) -> None:
    base = save_base("mixtral", tmp_path / "base")
    save_adapter("mixtral", tmp_path / "adapter", ["w1", "w2", "w3"], ("w1", "w2", "w3"), use_rslora=True)
    assert check_merge(tmp_path / "adapter", base).verdict == "unknown"


def test_the_table_is_pefts() -> None:
    assert json.loads(json.dumps(default_targets())) == table()


def test_a_router_that_is_no_linear_layer(tmp_path: Path) -> None:
    """In models whose configs PEFT does not convert, such a router can't be adapted any more."""
    fields = {**_SMALL, "num_experts": 3, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}
    base = tmp_path / "base"
    auto: Any = transformers.AutoModelForCausalLM
    auto.from_config(transformers.AutoConfig.for_model("qwen2_moe", **fields)).save_pretrained(base)
    LoraConfig(r=2, target_modules=["gate"], task_type="CAUSAL_LM").save_pretrained(str(tmp_path / "adapter"))
    stems = [f"base_model.model.model.layers.{layer}.mlp.gate" for layer in range(2)]
    tensors = {f"{stem}.lora_A.weight": torch.ones(2, 16) for stem in stems}
    tensors |= {f"{stem}.lora_B.weight": torch.ones(3, 2) for stem in stems}
    save_file(tensors, tmp_path / "adapter/adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="is not supported"):
        PeftModel.from_pretrained(load(base), str(tmp_path / "adapter"))
    report = check_merge(tmp_path / "adapter", base)
    assert report.verdict == "not-mergeable"
    assert {layer.code for layer in report.layers} == {"ADP207"}


@pytest.mark.parametrize("ask_model", [True, False])
def test_experts_that_the_file_calls_like_linear_layers(ask_model: bool, tmp_path: Path) -> None:
    """Granite 4's files have experts named `input_linear` beside linear layers of that name; PEFT attaches to those alone."""
    fields = {**_LOCAL, "shared_intermediate_size": 24, "layer_types": ["attention", "mamba"]}
    fields |= {"mamba_d_head": 8, "mamba_n_heads": 4, "mamba_d_state": 8}
    config: Any = transformers.AutoConfig.for_model("granitemoehybrid", **fields)
    torch.manual_seed(1)
    model: Any = transformers.GraniteMoeHybridForCausalLM(config)
    model.save_pretrained(tmp_path / "base")
    names = load_file(tmp_path / "base" / "model.safetensors")
    assert names["model.layers.0.block_sparse_moe.input_linear.weight"].ndim == 3
    adapted: Any = get_peft_model(model, LoraConfig(r=2, target_modules=["input_linear", "output_linear", "q_proj"]))
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1 if parameter.requires_grad else 0)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    made = {path for path, one in adapted.base_model.model.named_modules() if hasattr(one, "merge")}
    adapted.merge_and_unload(safe_merge=True)
    report = check_merge(tmp_path / "adapter", tmp_path / "base", ask_model=ask_model)
    assert report.verdict == "mergeable"
    assert {layer.module for layer in report.layers} == made


def test_a_config_with_infinity_in_it(tmp_path: Path) -> None:
    """transformers 5 writes it as an object: the model is built as transformers itself builds it."""
    config: Any = transformers.AutoConfig.for_model("mamba2", time_step_limit=[0.0, inf])
    config.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["time_step_limit"][1] == {"__float__": "Infinity"}
    assert build_live_model(fields, {}, ["layers.0.mixer.in_proj"], []) is not None
