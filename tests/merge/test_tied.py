"""Ends that are one tensor, whatever a model calls them: merged into one, the update reaches the other as well."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from adaptertool.operations.check_merge import check_merge

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
ENDS = {
    "bert": ("BertForMaskedLM", "decoder"),
    "modernbert": ("ModernBertForMaskedLM", "decoder"),
    "roberta": ("RobertaForMaskedLM", "lm_head.decoder"),
    "biogpt": ("BioGptForCausalLM", "output_projection"),
    "llama": ("LlamaForCausalLM", "lm_head"),
    "xlm": ("XLMWithLMHeadModel", "transformer.embeddings"),
}
"""The model type: a class that ties, and one of its two ends."""


def outputs_of(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.tensor([[5, 9, 33, 17]])
    with torch.no_grad():
        logits = model.eval()(input_ids=ids)[0]
    assert isinstance(logits, torch.Tensor)
    return logits


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "apart"])
@pytest.mark.parametrize("model_type", ENDS)
def test_the_verdict_is_what_merging_does_to_the_outputs(model_type: str, tied: bool, tmp_path: Path) -> None:
    name, end = ENDS[model_type]
    model_class = getattr(transformers, name)
    sizes = (
        {"vocab_size": 64, "emb_dim": 16, "n_layers": 1, "n_heads": 2, "max_position_embeddings": 32}
        if model_type == "xlm"
        else SIZES
    )
    torch.manual_seed(0)
    config = model_class.config_class(**sizes, tie_word_embeddings=tied)
    model_class(config).save_pretrained(tmp_path / "base")
    base = model_class.from_pretrained(tmp_path / "base")
    lora = LoraConfig(target_modules=[end], r=2, init_lora_weights=False)
    adapted = get_peft_model(copy.deepcopy(base), lora)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    report = check_merge(tmp_path / "adapter", tmp_path / "base")

    loaded = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    before = outputs_of(loaded)
    after = outputs_of(loaded.merge_and_unload(safe_merge=True))
    same = torch.allclose(before, after, atol=1e-5)
    assert same is not tied
    assert report.verdict == ("mergeable" if same else "lossy")
    assert [finding.code for finding in report.findings] == ([] if same else ["ADP209"])
