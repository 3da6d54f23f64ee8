"""Projections that all layers share: what PEFT does with a stored pair of another shape, or one that is not finite."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import pytest
import torch
from peft import PeftModel, get_peft_model

import adaptertool
from tests.checkpoints import change_config
from tests.methods.rewriting import changed, tensors
from tests.methods.written import base, configured, shake, write

if TYPE_CHECKING:
    from pathlib import Path

TYPES = ("VERA", "PVERA", "RANDLORA")
LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


def merges(folder: Path) -> bool:
    """Whether PEFT loads the adapter onto its base and merges it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            PeftModel.from_pretrained(base("llama"), str(folder)).merge_and_unload(safe_merge=True)
        except (RuntimeError, ValueError):
            return False
    return True


def assert_as_peft(folder: Path, bare: Path, code: str | None) -> None:
    report = adaptertool.check_merge(folder, bare)
    assert {finding.code for finding in report.findings} == ({code} if code is not None else set())
    assert (report.verdict == "mergeable") == merges(folder) == (code is None)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    base("llama").save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("peft_type", "first", "second", "code"),
    [
        ("VERA", ["down_proj"], ["q_proj"], "ADP203"),
        ("PVERA", ["down_proj"], ["q_proj"], "ADP203"),
        ("VERA", ["gate_proj", "down_proj"], ["q_proj"], "ADP203"),
        ("VERA", ["v_proj"], ["k_proj"], None),
        ("RANDLORA", ["down_proj"], ["gate_proj", "down_proj"], "ADP203"),
        ("RANDLORA", ["down_proj"], ["q_proj"], "ADP203"),
        ("RANDLORA", ["down_proj"], ["gate_proj"], None),
    ],
)
def test_a_second_adapters_pair(
    peft_type: str, first: list[str], second: list[str], code: str | None, bare: Path, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base("llama"), configured(peft_type, "llama", target_modules=first))
        model.add_adapter("second", configured(peft_type, "llama", target_modules=second))
        model.set_adapter("second")
        shake(model)
        model.save_pretrained(str(tmp_path), selected_adapters=["second"])
    assert_as_peft(tmp_path / "second", bare, code)


@pytest.mark.parametrize("kind", "AB")
@pytest.mark.parametrize("peft_type", TYPES)
def test_another_shape_and_what_is_not_finite(peft_type: str, kind: str, bare: Path, tmp_path: Path) -> None:
    name = f"base_model.{peft_type.lower()}_{kind}"
    folder = write(tmp_path / "adapter", peft_type).folder

    def longer(state: dict[str, torch.Tensor]) -> None:
        state[name] = torch.zeros([size + 1 for size in state[name].shape])

    def not_finite(state: dict[str, torch.Tensor]) -> None:
        state[name].view(-1)[3] = math.inf

    assert_as_peft(changed(folder, tmp_path / "longer", longer), bare, "ADP203")
    broken = changed(folder, tmp_path / "broken", not_finite)
    assert_as_peft(broken, bare, "ADP204")
    change_config(broken, save_projection=False)
    assert_as_peft(broken, bare, None)


@pytest.mark.parametrize(("layer", "code"), [(LAYER, "ADP203"), (f"{LAYER}x", None)])
def test_copies_of_another_shape_count_where_peft_attaches(
    layer: str, code: str | None, bare: Path, tmp_path: Path
) -> None:
    folder = write(tmp_path / "adapter", "RANDLORA").folder

    def add(state: dict[str, torch.Tensor]) -> None:
        state[f"{layer}.randlora_B"] = torch.zeros(3, 2, 1)

    assert_as_peft(changed(folder, tmp_path / "other", add), bare, code)


def test_copies_that_are_not_finite_are_ignored(bare: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "adapter", "RANDLORA").folder

    def spoil(state: dict[str, torch.Tensor]) -> None:
        state[f"{LAYER}.randlora_B"] = torch.full_like(state[f"{LAYER}.randlora_B"], math.nan)

    assert_as_peft(changed(folder, tmp_path / "other", spoil), bare, None)


@pytest.mark.parametrize("side", "AB")
def test_unilora_scales_of_another_shape(side: str, bare: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "adapter", "UNILORA").folder

    def turn(state: dict[str, torch.Tensor]) -> None:
        name = f"{LAYER}.unilora_scales_{side}"
        state[name] = state[name].T.contiguous()

    assert_as_peft(changed(folder, tmp_path / "other", turn), bare, "ADP203")


def test_gpt2s_layers_are_turned(tmp_path: Path) -> None:
    base("gpt2").save_pretrained(tmp_path / "base")
    for peft_type in TYPES:
        folder = write(tmp_path / peft_type, peft_type, "gpt2").folder
        assert adaptertool.check_merge(folder, tmp_path / "base").verdict == "mergeable"
        assert any(name.endswith("_A") for name in tensors(folder))
