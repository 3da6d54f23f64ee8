"""The verdict is what PEFT's merge does, layer by layer, and merged biases are PEFT's bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from peft import BeftConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from adaptertool.merge.trial.arithmetic import merge_bias
from adaptertool.methods.beft import BEFT
from adaptertool.operations.check_merge import check_merge
from adaptertool.projection.dtypes import values_of
from tests.merge.models import RECIPES, merge_by_peft, save_adapter, save_base, whole_merge_fails

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from adaptertool.operations.check_merge import MergeReport
    from tests.merge.models import Outcome

BEFT_RECIPES = [name for name in RECIPES if name not in ("gpt2", "roberta")]
LORA_RECIPES = ["llama", "llama-attention-bias", "qwen2-output", "qwen3.5-hybrid", "opt", "t5", "llava", "gpt2"]
DTYPES = ["float32", "bfloat16", "float16"]


def agree(report: MergeReport, outcome: Outcome) -> None:
    """Every layer that PEFT has is reported, and is ok where PEFT merges it."""
    found = {layer.module: layer.status for layer in report.layers}
    assert found == {path: "ok" if error is None else "blocked" for path, error in outcome.fails.items()}
    assert report.base is not None
    assert report.base.source == "headers"


@pytest.mark.parametrize("name", BEFT_RECIPES)
def test_beft_merges_where_peft_merges(
    name: str, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    report = check_merge(beft_of(name), base_of(name), threshold=1.0)
    agree(report, merge_by_peft(RECIPES[name], base_of(name), beft_of(name)))
    fails = whole_merge_fails(RECIPES[name], base_of(name), beft_of(name))
    assert report.verdict == ("mergeable" if fails is None else "not-mergeable")
    assert report.exit_code == (0 if fails is None else 1)
    assert {layer.code for layer in report.layers if layer.status == "blocked"} <= {"ADP201"}


def test_a_saved_head_of_several_layers_stops_the_merge(
    base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    report = check_merge(beft_of("roberta"), base_of("roberta"))
    agree(report, merge_by_peft(RECIPES["roberta"], base_of("roberta"), beft_of("roberta")))
    assert report.verdict == "not-mergeable"
    assert [(finding.code, finding.count) for finding in report.findings] == [("ADP207", 1)]
    with pytest.raises(AttributeError, match="has no attribute 'weight'"):
        whole_merge_fails(RECIPES["roberta"], base_of("roberta"), beft_of("roberta"))


def test_lora_puts_a_saved_head_back(base_of: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = save_adapter(RECIPES["roberta"], base_of("roberta"), tmp_path / "adapter", lora_bias=True)
    assert check_merge(adapter, base_of("roberta")).verdict == "mergeable"
    assert whole_merge_fails(RECIPES["roberta"], base_of("roberta"), adapter) is None


@pytest.mark.parametrize("name", LORA_RECIPES)
def test_lora_with_a_bias_merges_where_peft_merges(name: str, base_of: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = save_adapter(RECIPES[name], base_of(name), tmp_path / "adapter", lora_bias=True, lora_alpha=5)
    agree(check_merge(adapter, base_of(name), threshold=1.0), merge_by_peft(RECIPES[name], base_of(name), adapter))


@pytest.mark.parametrize(
    ("own", "verdict"),
    [(0.1, "mergeable"), (100.0, "lossy"), (float("nan"), "not-mergeable")],
)
@pytest.mark.parametrize("lora", [{}, {"lora_bias": True}], ids=["beft", "lora"])
def test_the_copy_of_an_output_layer_takes_the_bases_place(
    lora: dict[str, Any], own: float, verdict: str, tmp_path: Path
) -> None:
    """PEFT saves the weight and bias of an adapted output layer, and loads them over the base's."""
    recipe = replace(RECIPES["phi"], target=["lm_head"])
    base = save_base(recipe, tmp_path / "base", torch.bfloat16)
    adapter = save_adapter(recipe, base, tmp_path / "adapter", std=0.1, **lora)
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    copy = tensors["base_model.model.lm_head.base_layer.bias"]
    save_file({**tensors, "base_model.model.lm_head.base_layer.bias": torch.full_like(copy, own)}, file)
    report = check_merge(adapter, base)
    assert report.verdict == verdict
    fails = whole_merge_fails(recipe, base, adapter)
    assert (fails is not None) == (verdict == "not-mergeable")
    if fails is None:
        (update,) = (tensor for name, tensor in tensors.items() if name.endswith(("beft_bias", "lora_B.bias")))
        scale = 8 / 2 if lora else 1
        merged = merge_by_peft(recipe, base, adapter).biases["lm_head"]
        assert merged is not None
        before = torch.tensor(own).bfloat16().double()
        lost = (merged.detach().double() - before - scale * update.flatten().double()).norm()
        assert report.layers[0].rounding_loss == pytest.approx(
            (lost / (scale * update.double()).norm()).item(), rel=1e-3
        )


@pytest.mark.parametrize("name", ["llama", "qwen3.5-hybrid", "gpt2", "llava", "t5"])
def test_plain_lora_merges(name: str, base_of: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = save_adapter(RECIPES[name], base_of(name), tmp_path / "adapter", lora_alpha=5)
    report = check_merge(adapter, base_of(name))
    agree(report, merge_by_peft(RECIPES[name], base_of(name), adapter))
    assert report.verdict == "mergeable"
    assert all(layer.update_norm is None for layer in report.layers)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["qwen2", "opt", "bert", "llava-qwen2"])
def test_merged_beft_biases_are_pefts(
    name: str, dtype: str, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    _compare(name, dtype, base_of(name), beft_of(name), "beft_bias", 1.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("fields", "scale"), [({"lora_alpha": 5}, 2.5), ({"lora_alpha": 3, "use_rslora": True}, 3 / 2**0.5)]
)
def test_merged_lora_biases_are_pefts(
    dtype: str, fields: dict[str, int | bool], scale: float, base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = save_adapter(RECIPES["gpt2"], base_of("gpt2"), tmp_path / "adapter", lora_bias=True, **fields)
    _compare("gpt2", dtype, base_of("gpt2"), adapter, "lora_B.bias", scale)


def test_a_bfloat16_base_merges_in_bfloat16(tmp_path: Path, beft_of: Callable[[str], Path]) -> None:
    base = save_base(RECIPES["qwen2"], tmp_path / "base", torch.bfloat16)
    report = check_merge(beft_of("qwen2"), base)
    assert report.dtype == "bfloat16"
    _compare("qwen2", "bfloat16", base, beft_of("qwen2"), "beft_bias", 1.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0.1, 60000.0])
def test_a_single_bias_is_added_as_a_scalar(dtype: str, size: float) -> None:
    """PEFT squeezes what BEFT trained: a single value takes no part in torch's type promotion."""
    assert BEFT.merge is not None
    assert BEFT.merge.bias is not None
    for seed in range(20):
        torch.manual_seed(seed)
        base = torch.nn.Sequential(torch.nn.Linear(4, 1)).to(getattr(torch, dtype))
        model = get_peft_model(base, BeftConfig(target_modules=["0"]))
        stored = base.state_dict()["0.base_layer.bias"].clone()
        (trained,) = (parameter for name, parameter in model.named_parameters() if "beft_bias" in name)
        update = torch.nn.init.normal_(trained, std=size).detach().clone()
        merge = merge_bias(_values(stored), _values(update), 1.0, dtype, squeezed=BEFT.merge.bias.squeezed)
        if not merge.finite:
            assert merge.noticed
            with pytest.raises(ValueError, match="NaNs detected"):
                model.merge_and_unload(safe_merge=True)
            continue
        expected = model.merge_and_unload(safe_merge=True).state_dict()["0.bias"]
        kind = torch.int32 if dtype == "float32" else torch.int16
        assert np.array_equal(merge.merged, expected.view(kind).numpy().view(merge.merged.dtype))


def _compare(name: str, dtype: str, base: Path, adapter: Path, tensor: str, scale: float) -> None:
    outcome = merge_by_peft(RECIPES[name], base, adapter, getattr(torch, dtype))
    report = check_merge(adapter, base, dtype=dtype, threshold=10.0)
    assert report.verdict == "mergeable"
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        updates = {key: file.get_tensor(key).flatten() for key in file.keys()}  # noqa: SIM118 - no dict
    with safe_open(base / "model.safetensors", "pt") as file:
        for layer in report.layers:
            assert layer.base_tensor is not None
            stored = file.get_tensor(layer.base_tensor)
            update = updates[f"base_model.model.{layer.module}.{tensor}"]
            merge = merge_bias(_values(stored), _values(update), scale, dtype)
            expected = outcome.biases[layer.module]
            assert expected is not None
            assert expected.dtype == getattr(torch, dtype)
            kind = torch.int32 if dtype == "float32" else torch.int16
            bits = expected.detach().view(kind).numpy().view(merge.merged.dtype)
            assert np.array_equal(merge.merged, bits)
            lost = (expected.detach().double() - stored.to(expected.dtype).double()) - (
                update.double() if scale == 1 else (update * scale).double()
            )
            norm = (update.double() if scale == 1 else (update * scale).double()).norm()
            assert layer.update_norm == pytest.approx(norm.item())
            assert layer.bias_norm == pytest.approx(stored.to(expected.dtype).double().norm().item())
            assert layer.rounding_loss == pytest.approx((lost.norm() / norm).item(), rel=1e-4, abs=1e-9)


def _values(tensor: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    names = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
    return values_of(tensor.contiguous().view(torch.uint8).numpy().tobytes(), names[tensor.dtype])
