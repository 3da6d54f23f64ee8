"""Layers whose class has a `forward` of its own: the verdict is what PEFT's merge does to the model's outputs."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

import adaptertool
from adaptertool.merge.base.read_layers import _table
from tests.methods.written import ARGUMENTS, shake
from tests.tools.generate_read_layers import entry_of
from tests.tools.model_trees import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
MODELS: dict[str, dict[str, Any]] = {
    "opt": {**_SMALL, "ffn_dim": 32, "word_embed_proj_dim": 16},
    "inkling_text": {**_SMALL, "swa_num_attention_heads": 2, "swa_num_key_value_heads": 2, "swa_head_dim": 8},
    "falcon": {key: value for key, value in _SMALL.items() if key != "head_dim"},
    "gemma3_text": _SMALL,
}

CASES: list[tuple[str, str, list[str], dict[str, Any]]] = [
    ("opt", "LORA", ["embed_positions"], {}),
    ("opt", "LORA", ["q_proj", "embed_positions"], {"use_dora": True}),
    ("opt", "HIRA", ["embed_positions"], {}),
    ("opt", "TINYLORA", ["embed_positions"], {}),
    ("opt", "OFT", ["embed_positions"], {}),
    ("opt", "TRAINABLE_TOKENS", ["embed_positions"], {"token_indices": [2, 3]}),
    ("opt", "LORA", ["embed_tokens"], {}),
    ("inkling_text", "LORA", ["embed_tokens"], {}),
    ("inkling_text", "HIRA", ["embed_tokens"], {}),
    ("inkling_text", "OFT", ["embed_tokens"], {}),
    ("inkling_text", "LORA", ["q_proj"], {"trainable_token_indices": [5, 6]}),
    ("inkling_text", "LORA", ["q_proj"], {}),
    ("falcon", "LORA", ["query_key_value", "dense"], {}),
    ("falcon", "OFT", ["query_key_value"], {}),
    ("gemma3_text", "LORA", ["embed_tokens"], {}),
]


@cache
def base_of(name: str) -> Path:
    torch.manual_seed(1)
    # Ties have verdicts of their own.
    config = transformers.AutoConfig.for_model(name, **MODELS[name], tie_word_embeddings=False)
    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    folder = Path(mkdtemp())
    model.save_pretrained(folder)
    return folder


def load(name: str) -> PreTrainedModel:
    model: PreTrainedModel = transformers.AutoModelForCausalLM.from_pretrained(base_of(name))
    return model


def outputs(model: torch.nn.Module) -> torch.Tensor:
    tokens = torch.arange(3, 12)[None]
    with torch.no_grad():
        result: torch.Tensor = model.eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    return result


@pytest.mark.parametrize(("name", "peft_type", "targets", "arguments"), CASES, ids=str)
def test_verdict_is_what_the_merge_does(
    name: str, peft_type: str, targets: list[str], arguments: dict[str, Any], tmp_path: Path
) -> None:
    config: Any = PEFT_TYPE_TO_CONFIG_MAPPING[peft_type]  # type: ignore[index]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = get_peft_model(
            load(name), config(target_modules=targets, **{**ARGUMENTS.get(peft_type, {}), **arguments})
        )
        shake(model)
        model.save_pretrained(str(tmp_path))
        loaded: Any = PeftModel.from_pretrained(load(name), str(tmp_path))
        before = outputs(loaded)
        moved = float((outputs(loaded.merge_and_unload(safe_merge=True)) - before).abs().max())
    report = adaptertool.check_merge(tmp_path, base_of(name))
    assert report.verdict == ("lossy" if moved > 1e-3 else "mergeable"), moved
    assert {layer.code for layer in report.layers if layer.status == "lossy"} == ({"ADP209"} if moved > 1e-3 else set())


@pytest.mark.parametrize(
    "model_type", ["opt", "biogpt", "bart", "whisper", "inkling_text", "falcon", "gemma3_text", "bit"]
)
def test_table(model_type: str) -> None:
    quiet()
    assert _table()["models"].get(model_type, {}) == entry_of(model_type)
