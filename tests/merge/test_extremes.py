"""Values that make a merge overflow or divide by zero: no method is called mergeable where PEFT raises or breaks the model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import adaptertool
from tests.methods.written import UNTARGETED, Written, base, peft_types, write

if TYPE_CHECKING:
    from pathlib import Path

    from tests.merge.conftest import Bases

TYPES = [one for one in peft_types() if one not in UNTARGETED and one not in ("LILY", "POLY")]
VALUES = {torch.float32: (0.0, 3e38), torch.float16: (300.0, 1e10)}


def works(written: Written) -> bool:
    """Whether PEFT merges the adapter, and every value of the merged model is finite."""
    try:
        merged = written.loaded(written.folder).merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError):
        return False
    return all(bool(torch.isfinite(tensor).all()) for tensor in merged.state_dict().values())


def kinds(state: dict[str, torch.Tensor]) -> dict[str, list[str]]:
    """The names of the first layer's and the shared floating point tensors, by what they are in their module."""
    found: dict[str, list[str]] = {}
    for name, tensor in state.items():
        if tensor.is_floating_point() and (".layers." not in name or ".layers.0." in name):
            found.setdefault(".".join(name.split(".")[-2:]).removeprefix("q_proj."), []).append(name)
    return found


@pytest.mark.parametrize("dtype", VALUES, ids=str)
@pytest.mark.parametrize("peft_type", [*TYPES, "DoRA"])
def test_large_values_and_zeros(peft_type: str, dtype: torch.dtype, bases: Bases, tmp_path: Path) -> None:
    family = "opt" if peft_type == "BEFT" else "llama"
    dora = peft_type == "DoRA"
    written = write(
        tmp_path, "LORA" if dora else peft_type, family, dtype=dtype, **({"use_dora": True} if dora else {})
    )
    assert adaptertool.check_merge(tmp_path, bases(family, dtype)).verdict == "mergeable"
    state = load_file(tmp_path / "adapter_model.safetensors")
    broken = 0
    for names in kinds(state).values():
        for value in VALUES[dtype]:
            changed = {name: torch.full(state[name].shape, value) for name in names}
            save_file(state | changed, tmp_path / "adapter_model.safetensors", {"format": "pt"})
            verdict = adaptertool.check_merge(tmp_path, bases(family, dtype)).verdict
            fails = not works(written)
            broken += fails
            assert verdict != "mergeable" if fails else verdict != "not-mergeable", (names, value, fails, verdict)
    assert broken or dtype is torch.float32 or peft_type == "HRA", "values that break nothing prove nothing"


@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("read", [True, False])
def test_dora_and_a_row_of_zeros(zero: bool, read: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a padded vocabulary has: PEFT divides zero by zero. Only the base's weights tell."""
    bare = base("llama")
    if zero:
        with torch.no_grad():
            bare.get_submodule("model.layers.0.self_attn.v_proj").weight[3] = 0  # type: ignore[operator]
    bare.save_pretrained(tmp_path / "base")
    written = write(tmp_path / "adapter", "LORA", use_dora=True, target_modules=["v_proj"])
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    state = load_file(path)
    for name, tensor in state.items():
        if "layers.0" in name and ("lora_B" in name or "magnitude" in name):
            tensor[3] = 0
    save_file(state, path, {"format": "pt"})
    if not read:
        monkeypatch.setattr("adaptertool.merge.trial.base_values.WEIGHT_BYTES", 0)
    report = adaptertool.check_merge(tmp_path / "adapter", tmp_path / "base")
    assert report.verdict == (("not-mergeable" if zero else "mergeable") if read else "unknown")
    assert written.model is not None


@pytest.mark.parametrize(
    ("peft_type", "fields"),
    [
        ("LORA", {"lora_alpha": float("inf")}),
        ("LORA", {"lora_alpha": float("nan")}),
        ("LORA", {"alpha_pattern": {"q_proj": 1e39}}),
        ("LOHA", {"alpha": float("inf")}),
        ("RANDLORA", {"randlora_alpha": 1e39}),
        ("FOURIERFT", {"scaling": 1e39}),
    ],
)
def test_factors_of_the_config(peft_type: str, fields: dict[str, Any], bases: Bases, tmp_path: Path) -> None:
    written = write(tmp_path, peft_type)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    assert not works(written)
    assert adaptertool.check_merge(tmp_path, bases("llama", torch.float32)).verdict != "mergeable"


@pytest.mark.parametrize("value", [float("nan"), 1e10])
@pytest.mark.parametrize("beside", [{"modules_to_save": ["lm_head"]}, {"bias": "all"}], ids=str)
def test_values_beside_the_method(beside: dict[str, Any], value: float, bases: Bases, tmp_path: Path) -> None:
    """They take the base's place as they are, and not even safe_merge=True looks at them."""
    written = write(tmp_path, "LORA", "opt", dtype=torch.float16, **beside)
    assert adaptertool.check_merge(tmp_path, bases("opt", torch.float16)).verdict == "mergeable"
    path = tmp_path / "adapter_model.safetensors"
    state = {name: tensor.float() for name, tensor in load_file(path).items()}
    name = next(name for name in state if "lora_" not in name)
    state[name].view(-1)[1] = value
    save_file(state, path, {"format": "pt"})
    assert not works(written)
    report = adaptertool.check_merge(tmp_path, bases("opt", torch.float16))
    assert [one.code for one in report.findings if one.severity == "error"] == ["ADP204"]
    assert report.verdict == "not-mergeable"


@pytest.mark.parametrize(("largest", "spread"), [(2, 30.0), (4, 1.0), (4, 30.0)])
def test_shares_of_trained_logits(largest: int, spread: float, bases: Bases, tmp_path: Path) -> None:
    """VB-LoRA's `save_only_topk_weights` leaves the last share out, which is below zero where rounding took the others up."""
    verdicts = set()
    for seed in range(4):
        folder = tmp_path / f"{seed}"
        written = write(folder, "VBLORA", topk=largest, num_vectors=8, vector_length=4, save_only_topk_weights=True)
        torch.manual_seed(seed)
        for name, tensor in written.model.named_parameters():
            if "vblora_logits" in name:
                torch.nn.init.normal_(tensor, std=spread)
        written.model.save_pretrained(str(folder))
        report = adaptertool.check_merge(folder, bases("llama"))
        assert report.verdict in (("mergeable",) if works(written) else ("not-mergeable", "unknown"))
        verdicts.add(report.verdict)
    assert ("not-mergeable" in verdicts) is (largest > 2 and spread > 1)
