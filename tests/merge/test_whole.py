"""What an adapter's file holds in the base's place: where PEFT does not load it, nothing is called mergeable."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from peft import LNTuningConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from adaptertool.operations.check_merge import check_merge
from tests.merge.test_tied import MODELS, SIZES, load_base, save_adapter, save_base

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RAISED = (IndexError, KeyError, RuntimeError, ValueError)


def lora(**fields: Any) -> LoraConfig:
    return LoraConfig(target_modules=["q_proj"], r=2, **fields)


def codes_of(folder: Path, base: Path) -> tuple[str, list[str]]:
    report = check_merge(folder, base)
    return report.verdict, sorted({finding.code for finding in report.findings})


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], **fields: Any) -> None:
    """Change an adapter's tensors, and fields of its config."""
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **fields}))


@pytest.mark.parametrize(("size", "verdict"), [(16, "mergeable"), (3, "not-mergeable")])
def test_a_tensor_of_the_bases_that_the_config_does_not_name(size: int, verdict: str, tmp_path: Path) -> None:
    """PEFT loads it over the base's own."""
    model = MODELS["llama"]
    save_base(model, tmp_path / "base", tied=False)
    save_adapter(load_base(model, tmp_path / "base"), lora(), tmp_path / "adapter")
    norm = {"base_model.model.model.norm.weight": torch.full((size,), 7.0)}
    edit(tmp_path / "adapter", lambda tensors: {**tensors, **norm})
    base = load_base(model, tmp_path / "base")
    if verdict == "mergeable":
        merged = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).merge_and_unload(safe_merge=True)
        assert torch.equal(merged.state_dict()["model.norm.weight"], torch.full((size,), 7.0))
    else:
        with pytest.raises(RuntimeError, match="size mismatch"):
            PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    assert codes_of(tmp_path / "adapter", tmp_path / "base")[0] == verdict


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"trainable_token_indices": [1, 5]},
    ],
    ids=str,
)
def test_a_vocabulary_that_was_resized_before_training(fields: dict[str, Any], tied: bool, tmp_path: Path) -> None:
    model = MODELS["llama"]
    save_base(model, tmp_path / "base", tied=tied)
    resized = load_base(model, tmp_path / "base")
    resized.resize_token_embeddings(70)
    resized.save_pretrained(tmp_path / "resized")
    save_adapter(resized, lora(**fields), tmp_path / "adapter")
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(load_base(model, tmp_path / "base"), str(tmp_path / "adapter"))
    assert codes_of(tmp_path / "adapter", tmp_path / "base") == ("not-mergeable", ["ADP203"])
    loaded = PeftModel.from_pretrained(load_base(model, tmp_path / "resized"), str(tmp_path / "adapter"))
    loaded.merge_and_unload(safe_merge=True)
    assert "ADP203" not in codes_of(tmp_path / "adapter", tmp_path / "resized")[1]
    assert check_merge(tmp_path / "adapter", tmp_path / "resized").verdict in ("mergeable", "lossy")


@pytest.mark.parametrize(
    ("headless", "labels", "due"),
    [
        (False, 2, "not-mergeable"),
        (False, 3, "mergeable"),
        (True, 3, "mergeable"),
        (True, 4, "not-mergeable"),
        (True, None, "unknown"),
    ],
)
def test_a_head_of_another_number_of_labels(headless: bool, labels: int | None, due: str, tmp_path: Path) -> None:
    """Of a head that the base lacks its config tells, or nobody does: num_labels is given when the base is loaded."""
    auto = transformers.AutoModelForSequenceClassification

    def make(count: int) -> Any:
        torch.manual_seed(0)
        config = transformers.BertConfig(**SIZES)
        config.num_labels = count
        return transformers.BertForSequenceClassification(config)

    made = make(2 if labels is None else labels)
    (made.bert if headless else made).save_pretrained(tmp_path / "base")
    config = LoraConfig(target_modules=["query"], r=2, task_type="SEQ_CLS")
    get_peft_model(make(3), config).save_pretrained(str(tmp_path / "adapter"))
    try:
        PeftModel.from_pretrained(auto.from_pretrained(tmp_path / "base"), str(tmp_path / "adapter")).merge_and_unload()
        assert due == "mergeable"
    except RuntimeError:
        assert due != "mergeable"
    verdict, codes = codes_of(tmp_path / "adapter", tmp_path / "base")
    assert (verdict, "ADP203" in codes) == (due, due == "not-mergeable")
    if headless:
        base = auto.from_pretrained(tmp_path / "base", num_labels=3)
        PeftModel.from_pretrained(base, str(tmp_path / "adapter")).merge_and_unload()


@pytest.mark.parametrize("ask_model", [True, False])
@pytest.mark.parametrize(
    ("trained", "lost", "fields"),
    [
        ({"modules_to_save": ["lm_head"]}, "lm_head", {}),
        ({"modules_to_save": ["model.norm", "lm_head"]}, "lm_head", {}),
        ({"modules_to_save": ["input_layernorm"]}, "layers.0.input_layernorm", {}),
        ({}, None, {"modules_to_save": ["lm_head"]}),
        ({}, None, {"modules_to_save": ["norm"]}),
        ({}, None, {"trainable_token_indices": [1, 5]}),
        ({}, None, {"trainable_token_indices": {"lm_head": [1]}}),
        ({"trainable_token_indices": [1, 5]}, "trainable_tokens_delta", {}),
        ({"modules_to_save": ["norm"]}, None, {}),
        ({"modules_to_save": ["mlp"]}, None, {}),
        ({}, None, {"modules_to_save": ["no_such_module"]}),
        ({}, None, {"modules_to_save": []}),
        ({}, None, {"trainable_token_indices": None}),
    ],
)
def test_modules_whose_tensors_the_file_lacks(
    trained: dict[str, Any], lost: str | None, fields: dict[str, Any], ask_model: bool, tmp_path: Path
) -> None:
    model = MODELS["llama"]
    save_base(model, tmp_path / "base", tied=False)
    save_adapter(load_base(model, tmp_path / "base"), lora(**trained, task_type="CAUSAL_LM"), tmp_path / "adapter")
    edit(tmp_path / "adapter", lambda held: {k: v for k, v in held.items() if lost is None or lost not in k}, **fields)
    report = check_merge(tmp_path / "adapter", tmp_path / "base", ask_model=ask_model)
    try:
        loaded = PeftModel.from_pretrained(load_base(model, tmp_path / "base"), str(tmp_path / "adapter"))
    except RAISED:
        assert report.verdict in (("not-mergeable",) if ask_model else ("not-mergeable", "unknown"))
    else:
        try:
            loaded.merge_and_unload(safe_merge=True)
            due = "mergeable"
        except AttributeError:
            due = "not-mergeable"
        assert report.verdict in ((due,) if ask_model else (due, "unknown"))


def test_a_module_to_save_within_another(tmp_path: Path) -> None:
    """PEFT adds the task's head to the modules to save, and the config names a part of it: it saves what it can't load."""
    config = transformers.ElectraConfig(**SIZES, embedding_size=16)
    torch.manual_seed(0)
    transformers.ElectraForSequenceClassification(config).save_pretrained(tmp_path / "base")
    auto = transformers.AutoModelForSequenceClassification
    for part, due in (("classifier.dense", "not-mergeable"), ("classifier", "mergeable")):
        folder = tmp_path / part
        adapter = LoraConfig(target_modules=["value"], r=2, modules_to_save=[part], task_type="SEQ_CLS")
        get_peft_model(auto.from_pretrained(tmp_path / "base"), adapter).save_pretrained(str(folder))
        try:
            PeftModel.from_pretrained(auto.from_pretrained(tmp_path / "base"), str(folder))
            raised = False
        except KeyError:
            raised = True
        assert raised is (part != "classifier")
        report = check_merge(folder, tmp_path / "base")
        if raised:
            assert report.verdict == due
        else:
            assert not any("twice" in finding.message for finding in report.findings)


@pytest.mark.parametrize("headless", [False, True])
@pytest.mark.parametrize(
    ("lost", "due"), [("qa_outputs.bias", "not-mergeable"), ("qa_outputs.weight", "not-mergeable"), (None, "mergeable")]
)
def test_a_saved_module_of_which_one_tensor_is_missing(
    lost: str | None, due: str, headless: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    made = transformers.BertForQuestionAnswering(transformers.BertConfig(**SIZES))
    (made.bert if headless else made).save_pretrained(tmp_path / "base")
    config = LoraConfig(target_modules=["query"], r=2, task_type="QUESTION_ANS")
    get_peft_model(made, config).save_pretrained(str(tmp_path / "adapter"))
    edit(tmp_path / "adapter", lambda held: {k: v for k, v in held.items() if lost is None or not k.endswith(lost)})
    base = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "base")
    if lost is None:
        PeftModel.from_pretrained(base, str(tmp_path / "adapter")).merge_and_unload(safe_merge=True)
    else:
        with pytest.raises(KeyError, match=lost):
            PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    assert check_merge(tmp_path / "adapter", tmp_path / "base").verdict == due
    without = check_merge(tmp_path / "adapter", tmp_path / "base", ask_model=False).verdict
    assert without in ((due,) if lost is None else (due, "unknown"))


def test_norms_under_the_names_of_the_first_bert(tmp_path: Path) -> None:
    """transformers makes weight and bias of gamma and beta: the model's norms have a bias, and PEFT merges into them."""
    torch.manual_seed(0)
    transformers.BertForMaskedLM(transformers.BertConfig(**SIZES)).save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    held = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(path).items()
    }
    save_file(held, path, {"format": "pt"})
    auto: Any = transformers.AutoModelForMaskedLM
    model: Any = get_peft_model(auto.from_pretrained(tmp_path / "base"), LNTuningConfig(target_modules=["LayerNorm"]))
    model.save_pretrained(str(tmp_path / "adapter"))
    loaded: Any = PeftModel.from_pretrained(auto.from_pretrained(tmp_path / "base"), str(tmp_path / "adapter"))
    merged = loaded.merge_and_unload(safe_merge=True)
    report = check_merge(tmp_path / "adapter", tmp_path / "base")
    assert report.verdict == "mergeable"
    for layer in report.layers:
        assert merged.get_submodule(layer.module).bias is not None
        assert layer.has_bias is not False
