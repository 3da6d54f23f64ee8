"""Checkpoints that were written before torch 2.12 changed its 16-bit sampler."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM

from tests import checkpoints
from tests.checkpoints import CANONICAL_A, CANONICAL_B, FIXTURES, copy_of, load, projections, read_config, snapshot
from tests.conftest import Run


@dataclass(frozen=True)
class Old:
    """A fixture, and how to load it as where it was made.

    The tolerance is what processors differ by in multiplying matrices in that dtype (seen at logits of up to 4.2: 8e-6 in
    float32); another basis is off by at least 20 times as much.
    """

    name: str
    base: str
    dtype: str
    autocast: bool
    tolerance: float

    @property
    def folder(self) -> Path:
        return FIXTURES / self.name

    def gives_the_expected_logits(self, folder: Path) -> bool:
        """Whether PEFT computes here with `folder` what it computed there with the original.

        It must be the very bits that the original gives here, too.
        """
        found, original = self._logits(folder), self._logits(self.folder)
        there = self._expected["logits"].float()
        return found.equal(original) and bool(torch.allclose(found, there, rtol=0, atol=self.tolerance))

    def distance_from_expected(self, folder: Path) -> float:
        return float((self._logits(folder) - self._expected["logits"].float()).abs().max())

    @property
    def _expected(self) -> checkpoints.Tensors:
        return dict(safetensors.torch.load_file(self.folder / "expected.safetensors"))

    def _logits(self, folder: Path) -> torch.Tensor:
        base = AutoModelForCausalLM.from_pretrained(FIXTURES / self.base, dtype=getattr(torch, self.dtype))
        return checkpoints.run(base, folder, autocast=self.autocast, input_ids=self._expected["input_ids"]).float()


DENSE = [
    Old("randlora-dense-bf16-torch2.11-peft0.18.1", "base-a", "bfloat16", True, 2e-2),
    Old("randlora-dense-fp32-torch2.11-peft0.18.1", "base-a", "float32", False, 3e-6),
    Old("randlora-dense-torch2.8-peft0.19.1", "base-b", "float32", True, 3e-5),
]
SPARSE = Old("randlora-sparse-bf16-torch2.11-peft0.18.1", "base-a", "bfloat16", True, 2e-2)

each_dense = pytest.mark.parametrize("old", DENSE, ids=lambda old: old.name)


@each_dense
def test_a_dense_basis_is_regenerable_elsewhere(old: Old, run: Run) -> None:
    document = run("inspect", old.folder, "--verify", "full", "--format", "json").document
    found = document["projections"]
    assert found["verdict"] == "regenerable-elsewhere"
    assert found["recipe"]["sampler"] == "torch<2.12"
    assert found["recipe"]["casts"] == ["bfloat16", "float32"]
    assert found["recipe"]["fused_multiply_add"] is None
    assert any("2.11" in sentence for sentence in found["loads_with"])
    assert {"ADP103", "ADP102"} <= {finding["code"] for finding in document["findings"]}


@each_dense
@pytest.mark.parametrize("version", ["2.0", "2.8.0", "2.11", "2.11.0+cpu"])
def test_it_is_regenerable_for_the_torch_that_drew_it(old: Old, version: str, run: Run) -> None:
    document = run("inspect", old.folder, "--for-torch", version, "--format", "json").document
    assert document["projections"]["verdict"] == "regenerable"


@each_dense
@pytest.mark.parametrize("version", ["2.12", "2.13.0", "3.1"])
def test_it_is_not_for_later_ones(old: Old, version: str, run: Run) -> None:
    document = run("inspect", old.folder, "--for-torch", version, "--format", "json").document
    assert document["projections"]["verdict"] == "regenerable-elsewhere"


@each_dense
def test_slim_refuses_and_recommends_one_copy(old: Old, tmp_path: Path, run: Run) -> None:
    folder = copy_of(old.folder, tmp_path / "adapter")
    before = snapshot(folder)
    outcome = run("slim", folder, "--in-place", "--format", "json")
    assert (outcome.code, outcome.document["action"]) == (1, "refused")
    assert "--keep-one-copy" in outcome.document["hint"]
    assert snapshot(folder) == before


@each_dense
def test_stripping_it_all_the_same_would_change_the_logits(old: Old, tmp_path: Path, run: Run) -> None:
    """The danger that the refusal is about, and that nothing else reports."""
    assert run("slim", old.folder, "--for-torch", "2.11", "-o", tmp_path / "slim").code == 0
    assert old.gives_the_expected_logits(old.folder)
    assert old.distance_from_expected(tmp_path / "slim") > 20 * old.tolerance


@each_dense
def test_one_copy_gives_the_expected_logits(old: Old, tmp_path: Path, run: Run) -> None:
    outcome = run("slim", old.folder, "--keep-one-copy", "-o", tmp_path / "one", "--format", "json")
    assert (outcome.code, outcome.document["action"]) == (0, "kept-one-copy")
    assert projections(load(tmp_path / "one")) == [CANONICAL_A, CANONICAL_B]
    assert old.gives_the_expected_logits(tmp_path / "one")


@each_dense
def test_stripped_for_the_old_torch_and_restored_here_gives_the_expected_logits(
    old: Old, tmp_path: Path, run: Run
) -> None:
    slimmed = run("slim", old.folder, "--for-torch", "2.11", "-o", tmp_path / "slim", "--format", "json")
    assert (slimmed.code, slimmed.document["action"]) == (0, "stripped")
    assert run("restore", tmp_path / "slim", "-o", tmp_path / "back").code == 0
    back, before = load(tmp_path / "back"), load(old.folder)
    assert all(back[name].equal(before[name]) for name in (CANONICAL_A, CANONICAL_B))
    assert read_config(tmp_path / "back") == read_config(old.folder)
    assert old.gives_the_expected_logits(tmp_path / "back")


@pytest.mark.parametrize(
    ("version", "contradicts"), [("2.11", False), ("2.0", False), ("2.12", True), ("2.13.0", True)]
)
def test_restore_says_that_a_fingerprint_decides(version: str, contradicts: bool, tmp_path: Path, run: Run) -> None:
    old = DENSE[0]
    assert run("slim", old.folder, "--for-torch", "2.11", "-o", tmp_path / "slim").code == 0
    text = run("restore", tmp_path / "slim", "-o", tmp_path / "back", "--for-torch", version).out
    assert (f"--for-torch {version} decides nothing" in text.replace("\n", " ")) == contradicts
    back, before = load(tmp_path / "back"), load(old.folder)
    assert all(back[name].equal(before[name]) for name in (CANONICAL_A, CANONICAL_B))


@each_dense
def test_what_was_stripped_for_the_old_torch_is_reported_under_this_one(old: Old, tmp_path: Path, run: Run) -> None:
    run("slim", old.folder, "--for-torch", "2.11", "-o", tmp_path / "slim")
    here = run("inspect", tmp_path / "slim", "--verify", "full", "--format", "json").document
    assert [finding["code"] for finding in here["findings"]] == ["ADP108"]
    assert here["findings"][0]["severity"] == "error"
    assert run("inspect", tmp_path / "slim", "--fail-on", "error").code == 1
    there = run("inspect", tmp_path / "slim", "--for-torch", "2.11", "--verify", "full", "--format", "json").document
    assert there["findings"] == []


def test_a_sparse_basis_is_regenerable_by_any_torch(tmp_path: Path, run: Run) -> None:
    document = run("inspect", SPARSE.folder, "--verify", "full", "--format", "json").document
    assert document["projections"]["verdict"] == "regenerable"
    assert document["projections"]["recipe"]["sampler"] == "any"
    assert document["projections"]["recipe"]["casts"] == ["bfloat16", "float32"]
    assert run("slim", SPARSE.folder, "-o", tmp_path / "slim").code == 0
    assert SPARSE.gives_the_expected_logits(tmp_path / "slim")
    assert run("restore", tmp_path / "slim", "-o", tmp_path / "back").code == 0
    assert SPARSE.gives_the_expected_logits(tmp_path / "back")


def test_a_sparse_basis_that_was_cast_says_which_base_it_needs(run: Run) -> None:
    found = run("inspect", SPARSE.folder, "--format", "json").document["projections"]
    assert "The base model loaded in bfloat16." in found["loads_with"]


def test_what_other_loaders_make_of_the_pair_is_said(tmp_path: Path, run: Run) -> None:
    """transformers' own loader looks for projections under the layers, where slim and restore leave none."""
    old = DENSE[1]

    def loaded(folder: Path) -> torch.Tensor:
        model: Any = AutoModelForCausalLM.from_pretrained(FIXTURES / old.base, dtype=getattr(torch, old.dtype))
        model.load_adapter(str(folder))
        with torch.no_grad():
            logits: torch.Tensor = model.eval()(torch.arange(8)[None]).logits
        return logits

    one_copy = run("slim", old.folder, "--keep-one-copy", "-o", tmp_path / "one", "--format", "json").document
    assert not torch.equal(loaded(tmp_path / "one"), loaded(old.folder))
    assert "load it with PeftModel" in one_copy["hint"]
    run("slim", old.folder, "--for-torch", "2.11", "-o", tmp_path / "slim")
    restored = run("restore", tmp_path / "slim", "-o", tmp_path / "restored", "--format", "json").document
    assert "load it with PeftModel" in restored["hint"]
