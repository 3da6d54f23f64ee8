"""Layers that a model reads the weight of and never calls: the verdict is what PEFT's merge does to the outputs."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from peft import LoKrConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file, save_file

import adaptertool
from adaptertool.merge.base.read_layers import _table, is_read
from tests.merge.models import SMALL
from tests.methods.written import ARGUMENTS, shake
from tests.tools.generate_read_layers import entry_of
from tests.tools.model_trees import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LINEAR_ATTENTION = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_JAMBA = {
    "num_experts": 2,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "use_mamba_kernels": False,
    "mamba_d_state": 4,
    "mamba_dt_rank": 4,
}
_EXPERTS = {
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
_RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}

_SPEECH = {
    **SMALL,
    "conv_dim": [8, 8],
    "conv_kernel": [3, 3],
    "conv_stride": [2, 2],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "tdnn_dim": [8, 8],
    "tdnn_kernel": [3, 1],
    "tdnn_dilation": [1, 1],
    "xvector_output_dim": 8,
}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "jamba": ("AutoModelForCausalLM", {**SMALL, **_JAMBA}),
    "mamba": (
        "AutoModelForCausalLM",
        {"vocab_size": 64, "hidden_size": 16, "state_size": 4, "time_step_rank": 4, "num_hidden_layers": 2},
    ),
    "qwen3_next": ("AutoModelForCausalLM", {**SMALL, **_EXPERTS, **_LINEAR_ATTENTION}),
    "qwen3_5_text": ("AutoModelForCausalLM", {**SMALL, **_LINEAR_ATTENTION}),
    "lfm2": ("AutoModelForCausalLM", {**SMALL, "layer_types": ["conv", "full_attention"]}),
    "deberta-v2": ("AutoModelForSequenceClassification", {**SMALL, **_RELATIVE}),
    "wav2vec2": ("AutoModelForAudioXVector", _SPEECH),
    "siglip_vision_model": ("AutoModel", {**SMALL, "image_size": 16, "patch_size": 8}),
    "siglip": (
        "AutoModel",
        {
            "text_config": {**SMALL, "projection_size": 16},
            "vision_config": {**SMALL, "image_size": 16, "patch_size": 8},
        },
    ),
}

CASES: list[tuple[str, str, Any, dict[str, Any]]] = [
    ("jamba", "LORA", "all-linear", {}),
    ("jamba", "BEFT", ["dt_proj"], {}),
    ("jamba", "IA3", ["dt_proj"], {"feedforward_modules": []}),
    ("jamba", "LOKR", ["conv1d"], {"r": 4}),
    ("mamba", "LORA", ["dt_proj"], {"r": 2, "lora_bias": True}),
    ("mamba", "OFT", ["dt_proj"], {}),
    ("qwen3_next", "LOKR", ["conv1d"], {"r": 4}),
    ("qwen3_5_text", "LOHA", ["conv1d"], {"r": 4}),
    ("lfm2", "LOKR", ["conv.conv"], {"r": 4}),
    ("deberta-v2", "LORA", ["rel_embeddings"], {}),
    ("wav2vec2", "LORA", ["kernel"], {}),
    ("siglip_vision_model", "LORA", ["fc1", "out_proj"], {}),
    ("siglip_vision_model", "OFT", ["out_proj"], {}),
    ("siglip", "LORA", ["q_proj", "v_proj", "out_proj"], {}),
    ("siglip", "BEFT", ["out_proj"], {}),
]


@cache
def base_of(name: str) -> Path:
    auto, fields = MODELS[name]
    torch.manual_seed(1)
    model = getattr(transformers, auto).from_config(transformers.AutoConfig.for_model(name, **fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    folder = Path(mkdtemp())
    model.save_pretrained(folder)
    return folder


def load(name: str) -> PreTrainedModel:
    model: PreTrainedModel = getattr(transformers, MODELS[name][0]).from_pretrained(base_of(name))
    model.train(mode=False)
    return model


def outputs(model: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    inputs = {"input_ids": torch.randint(3, 60, (2, 9), generator=generator)}
    if getattr(model, "main_input_name", "") == "input_values":
        inputs = {"input_values": torch.randn(2, 200, generator=generator)}
    images = {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind == "siglip_vision_model":
        inputs = images
    elif kind == "siglip":
        inputs |= images
    with torch.no_grad():
        found = model.eval()(**inputs)
    result: torch.Tensor = next(found[name] for name in ("logits", "logits_per_text", "pooler_output") if name in found)
    return result


def train(model: torch.nn.Module, steps: int = 2) -> None:
    """As PEFT's users do it: what gets no gradient stays as it was made."""
    optimiser = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.1)
    for _ in range(steps):
        optimiser.zero_grad()
        model(input_ids=torch.arange(3, 12)[None], labels=torch.arange(3, 12)[None]).loss.backward()
        optimiser.step()


def adapted(name: str, peft_type: str, targets: Any, arguments: dict[str, Any]) -> Any:
    config: Any = PEFT_TYPE_TO_CONFIG_MAPPING[peft_type]  # type: ignore[index]
    task = {"task_type": "CAUSAL_LM"} if targets == "all-linear" else {}
    return get_peft_model(
        load(name), config(target_modules=targets, **task, **{**ARGUMENTS.get(peft_type, {}), **arguments})
    )


def moved(name: str, folder: Path) -> float:
    """By how much the outputs change at the merge."""
    loaded = PeftModel.from_pretrained(load(name), str(folder))
    before = outputs(loaded)
    return float((outputs(loaded.merge_and_unload(safe_merge=True)) - before).abs().max())


@pytest.mark.parametrize(("name", "peft_type", "targets", "arguments"), CASES, ids=str)
def test_merge_changes_outputs(
    name: str, peft_type: str, targets: Any, arguments: dict[str, Any], tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = adapted(name, peft_type, targets, arguments)
        shake(model)
        model.save_pretrained(str(tmp_path))
        assert moved(name, tmp_path) > 1e-3
    report = adaptertool.check_merge(tmp_path, base_of(name))
    assert report.verdict == "lossy"
    assert [one.code for one in report.findings if one.severity == "error"] == ["ADP209"]
    lossy = {layer.module for layer in report.layers if layer.status == "lossy"}
    config = load(name).config.to_dict()
    assert lossy == {layer.module for layer in report.layers if is_read(config, layer.module)} != set()


def test_lora_of_an_attention_as_a_whole(tmp_path: Path) -> None:
    """LoRA wraps torch's attention, and its `out_proj` with it: that merges rightly, and is held against the base's shapes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = adapted("siglip_vision_model", "LORA", ["attention"], {"r": 2})
        shake(model)
        model.save_pretrained(str(tmp_path))
        assert moved("siglip_vision_model", tmp_path) < 1e-4
    report = adaptertool.check_merge(tmp_path, base_of("siglip_vision_model"))
    assert (report.verdict, report.findings) == ("mergeable", ())
    assert [layer.module for layer in report.layers] == ["head.attention"]
    file = tmp_path / "adapter_model.safetensors"
    held = load_file(file)
    for name, tensor in held.items():
        save_file({**held, name: tensor[1:].clone()}, file, {"format": "pt"})
        with pytest.raises(RuntimeError, match="size mismatch"):
            PeftModel.from_pretrained(load("siglip_vision_model"), str(tmp_path))
        assert adaptertool.check_merge(tmp_path, base_of("siglip_vision_model")).verdict == "not-mergeable"
        save_file({**held, name: tensor * float("nan")}, file, {"format": "pt"})
        assert adaptertool.check_merge(tmp_path, base_of("siglip_vision_model")).verdict == "not-mergeable"


def test_trained_lora_stays_zero_there(tmp_path: Path) -> None:
    """No gradient reaches it, so that a usual LoRA of all linear layers merges rightly."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = adapted("jamba", "LORA", "all-linear", {})
        train(model)
        model.save_pretrained(str(tmp_path))
        assert moved("jamba", tmp_path) < 1e-3
    report = adaptertool.check_merge(tmp_path, base_of("jamba"))
    assert report.verdict == "mergeable"
    assert any(layer.module.endswith("dt_proj") for layer in report.layers)


def test_a_layer_that_is_read_where_tokens_are_generated_one_by_one(tmp_path: Path) -> None:
    """What is computed over a whole sequence stays as it is at the merge."""
    torch.manual_seed(1)
    fields: dict[str, Any] = {**SMALL, "num_hidden_layers": 3, "lru_width": 16, "attention_window_size": 16}
    base = tmp_path / "base"
    model: Any = transformers.RecurrentGemmaForCausalLM(transformers.RecurrentGemmaConfig(**fields))
    model.save_pretrained(base)
    adapter: Any = get_peft_model(model, LoKrConfig(target_modules=["conv_1d"], r=2))
    shake(adapter)
    adapter.save_pretrained(str(tmp_path / "adapter"))

    def steps(model: torch.nn.Module) -> torch.Tensor:
        tokens = torch.arange(3, 12)[None]
        with torch.no_grad():
            model(input_ids=tokens[:, :6], use_cache=True)
            # The numbers of the places are the tokens less three.
            one_by_one = [
                model(input_ids=at, position_ids=at - 3, use_cache=True).logits for at in tokens[0, 6:, None, None]
            ]
        return torch.cat(one_by_one)

    loaded = PeftModel.from_pretrained(
        transformers.RecurrentGemmaForCausalLM.from_pretrained(base), str(tmp_path / "adapter")
    )
    whole, single = outputs(loaded), steps(loaded)
    merged = loaded.merge_and_unload(safe_merge=True)
    assert torch.allclose(outputs(merged), whole, atol=1e-5)
    assert not torch.allclose(steps(merged), single, atol=1e-4)
    report = adaptertool.check_merge(tmp_path / "adapter", base)
    assert report.verdict == "lossy"
    assert {(layer.status, layer.code) for layer in report.layers} == {("lossy", "ADP209")}
    assert "token by token" in (report.layers[0].reason or "")


@pytest.mark.parametrize(
    "model_type",
    [
        *("jamba", "mamba", "lfm2", "deberta-v2", "mobilebert", "qwen3_5_text", "llama", "clip", "detr", "reformer"),
        *("siglip", "siglip_vision_model", "siglip2", "aria"),
    ],
)
def test_table(model_type: str) -> None:
    quiet()
    assert _table()["models"].get(model_type, {}) == entry_of(model_type)


@pytest.mark.parametrize("name", MODELS)
def test_what_the_table_says_is_so(name: str) -> None:
    """Layers of the table are never called, and the outputs depend on them; all others that they depend on are called."""
    model = load(name)
    called: set[str] = set()
    for path, module in model.named_modules():
        module.register_forward_hook(lambda *_, path=path: called.add(path))
    plain = outputs(model)
    config = model.config.to_dict()
    for path, module in model.named_modules():
        if not isinstance(module, (torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv1d)):
            continue
        if path in called:
            assert not is_read(config, path)
            continue
        weight = module.weight.detach().clone()
        with torch.no_grad():
            module.weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(5)) * 0.3)
        changes = not torch.allclose(outputs(model), plain, atol=1e-6)
        with torch.no_grad():
            module.weight.copy_(weight)
        assert changes == is_read(config, path), path
    assert any(is_read(config, path) for path, _ in model.named_modules())
