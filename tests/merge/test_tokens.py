"""Trained tokens that the merge refuses, whichever method they stand beside, and which of their copies PEFT loads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, TrainableTokensConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import adaptertool
from adaptertool.operations.check_merge import check_merge
from tests.merge.test_tied import MODELS, load_base, outputs_of, save_adapter, save_base

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LORA = LoraConfig(target_modules=["q_proj"], trainable_token_indices=[1, 5], task_type="CAUSAL_LM")
ROWS = TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=[1, 5], task_type="CAUSAL_LM")


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("float32", float("nan")), ("float32", 7e4), ("float16", 7e4), ("float16", 6e4), ("bfloat16", float("inf"))],
)
@pytest.mark.parametrize("config", [LORA, ROWS], ids=["lora", "tokens"])
def test_the_verdict_is_what_peft_does(
    config: PeftConfig, dtype: str, value: float, tmp_path: Path, base_of: Callable[[str], Path]
) -> None:
    kind = getattr(torch, dtype)
    base = AutoModelForCausalLM.from_pretrained(base_of("llama"), dtype=kind)
    base.save_pretrained(tmp_path / "base")
    get_peft_model(base, config).save_pretrained(str(tmp_path / "adapter"))
    path = tmp_path / "adapter/adapter_model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith("trainable_tokens_delta")]:
        tensors[name] = tensors[name].float()
        tensors[name][0, 0] = value
    save_file(tensors, path, {"format": "pt"})
    loaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=kind), str(tmp_path / "adapter")
    )
    report = check_merge(tmp_path / "adapter", tmp_path / "base")
    try:
        loaded.merge_and_unload(safe_merge=True)
    except ValueError:
        assert report.verdict == "not-mergeable"
        assert "ADP204" in {finding.code for finding in report.findings}
    else:
        assert report.verdict == "mergeable"


@pytest.mark.parametrize("name", ["llama", "bart-shared", "t5", "modernbert"])
def test_of_tied_copies_the_one_counts_that_peft_loads(name: str, tmp_path: Path) -> None:
    """PEFT writes the same rows under every tied layer, and what it loads last stays."""
    model = MODELS[name]
    save_base(model, tmp_path / "base", tied=True)
    save_adapter(load_base(model, tmp_path / "base"), TrainableTokensConfig(token_indices=[1, 5]), tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_model.safetensors"
    tensors = load_file(path)
    assert len(tensors) >= 2
    verdicts = set()
    for broken in tensors:
        changed = {
            name: torch.full_like(value, torch.nan) if name == broken else value for name, value in tensors.items()
        }
        save_file(changed, path, {"format": "pt"})
        loaded = PeftModel.from_pretrained(load_base(model, tmp_path / "base"), str(tmp_path / "adapter"))
        try:
            loaded.merge_and_unload(safe_merge=True)
            due = "mergeable"
        except ValueError:
            due = "not-mergeable"
        # ModernBERT's head has a bias, which PEFT leaves out before the merge.
        due = "lossy" if due == "mergeable" and name == "modernbert" else due
        assert check_merge(tmp_path / "adapter", tmp_path / "base").verdict == due, broken
        verdicts.add(due)
    assert len(verdicts) == 2


@pytest.mark.parametrize("name", ["llama", "bart-shared", "bert"])
def test_one_of_the_tied_copies_loads_to_the_same_bits(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    save_base(model, tmp_path / "base", tied=True)
    save_adapter(load_base(model, tmp_path / "base"), TrainableTokensConfig(token_indices=[1, 5]), tmp_path / "adapter")
    result = adaptertool.slim(tmp_path / "adapter", output=tmp_path / "slim")
    assert result.action == "kept-one-copy"
    assert len(load_file(tmp_path / "slim/adapter_model.safetensors")) == 1
    logits = [
        outputs_of(PeftModel.from_pretrained(load_base(model, tmp_path / "base"), str(tmp_path / folder)))
        for folder in ("adapter", "slim")
    ]
    assert torch.equal(*logits)
    verdicts = {check_merge(tmp_path / folder, tmp_path / "base").verdict for folder in ("adapter", "slim")}
    assert verdicts == {"lossy" if name == "bert" else "mergeable"}


@pytest.mark.parametrize("config", [LORA, ROWS], ids=["lora", "tokens"])
def test_a_token_that_the_base_does_not_have(config: PeftConfig, tmp_path: Path) -> None:
    """Tokens that were added for the training are there once the base was resized."""
    model = MODELS["llama"]
    save_base(model, tmp_path / "base", tied=True)
    resized = load_base(model, tmp_path / "base")
    resized.resize_token_embeddings(66)
    resized.save_pretrained(tmp_path / "resized")
    fields = config.to_dict()
    named = "token_indices" if "token_indices" in fields else "trainable_token_indices"
    save_adapter(resized, type(config)(**{**fields, named: [1, 65]}), tmp_path / "adapter")
    with pytest.raises(IndexError):
        PeftModel.from_pretrained(load_base(model, tmp_path / "base"), str(tmp_path / "adapter"))
    report = check_merge(tmp_path / "adapter", tmp_path / "base")
    assert (report.verdict, [finding.code for finding in report.findings]) == ("not-mergeable", ["ADP203"])
    PeftModel.from_pretrained(load_base(model, tmp_path / "resized"), str(tmp_path / "adapter")).merge_and_unload()
    assert check_merge(tmp_path / "adapter", tmp_path / "resized").verdict == "mergeable"


@pytest.mark.parametrize("name", ["llama", "gpt2", "bart-shared", "bert", "t5", "llava"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_layers_are_those_in_which_peft_makes_some(name: str, tied: bool, tmp_path: Path) -> None:
    """A tied head uses the embedding's rows: PEFT adapts it along, and the file need not hold anything of it."""
    model = MODELS[name]
    save_base(model, tmp_path / "base", tied=tied)
    base = load_base(model, tmp_path / "base")
    config = LoraConfig(target_modules=[model.layer], trainable_token_indices=[1, 5])
    save_adapter(base, config, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(load_base(model, tmp_path / "base"), str(tmp_path / "adapter"))
    made = {
        path.removeprefix("base_model.model.").removesuffix(".token_adapter")
        for path, module in loaded.named_modules()
        if isinstance(module, BaseTunerLayer)
    }
    report = check_merge(tmp_path / "adapter", tmp_path / "base")
    assert {layer.module for layer in report.layers} == made
