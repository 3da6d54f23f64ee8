"""Trained tokens that the merge refuses, whichever method they stand beside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, TrainableTokensConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adaptertool.operations.check_merge import check_merge

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("float32", float("nan")), ("float32", 7e4), ("float16", 7e4), ("float16", 6e4), ("bfloat16", float("inf"))],
)
@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules=["q_proj"], trainable_token_indices=[1, 5], task_type="CAUSAL_LM"),
        TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=[1, 5], task_type="CAUSAL_LM"),
    ],
    ids=["lora", "tokens"],
)
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
