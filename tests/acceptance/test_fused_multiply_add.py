"""Projections drawn on a processor that fuses multiply-add differ in single elements from those drawn on one that does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import CANONICAL_A, CANONICAL_B, Spec, as_argument, load, projections
from tests.conftest import Make, Run, spawn_python

# Large enough that an element or two differ, for this seed.
SPEC = Spec(targets=("gate_proj", "down_proj"), rank=7, key=8)
UNFUSED: dict[str, Any] = {"ATEN_CPU_CAPABILITY": "default"}


@pytest.fixture(scope="module")
def unfused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What PEFT writes where torch does not fuse."""
    folder = tmp_path_factory.mktemp("unfused") / "adapter"
    written = spawn_python("-m", "tests.checkpoints", as_argument(SPEC), folder, **UNFUSED)
    assert written.code == 0, written.err
    return folder


def test_they_differ_in_a_few_elements(unfused: Path, stored: Make) -> None:
    fused, apart = load(stored(SPEC)), load(unfused)
    different = sum(int((fused[name] != apart[name]).sum()) for name in (CANONICAL_A, CANONICAL_B))
    assert 0 < different < 10


def test_here_they_are_regenerable_elsewhere(unfused: Path, tmp_path: Path, run: Run) -> None:
    found = run("inspect", unfused, "--verify", "full", "--format", "json").document["projections"]
    assert found["verdict"] == "regenerable-elsewhere"
    assert (found["recipe"]["sampler"], found["recipe"]["fused_multiply_add"]) == ("torch>=2.12", False)
    assert any("does not fuse" in sentence for sentence in found["loads_with"])
    outcome = run("slim", unfused, "-o", tmp_path / "slim", "--format", "json")
    assert (outcome.code, outcome.document["action"]) == (1, "refused")


def test_a_sample_sees_it_too(unfused: Path, run: Run) -> None:
    found = run("inspect", unfused, "--format", "json").document["projections"]
    assert found["verdict"] == "regenerable-elsewhere"


def test_fused_ones_say_so(stored: Make, run: Run) -> None:
    found = run("inspect", stored(SPEC), "--verify", "full", "--format", "json").document["projections"]
    assert found["verdict"] == "regenerable"
    assert found["recipe"]["fused_multiply_add"] is True


def test_where_torch_does_not_fuse_the_answers_are_the_other_way_round(
    unfused: Path, stored: Make, tmp_path: Path, spawn: Run, run: Run
) -> None:
    stripped = spawn("slim", unfused, "-o", tmp_path / "slim", "--format", "json", **UNFUSED)
    assert (stripped.code, stripped.document["action"]) == (0, "stripped")
    assert stripped.document["projections"]["recipe"]["fused_multiply_add"] is False
    refused = spawn("slim", stored(SPEC), "-o", tmp_path / "other", "--format", "json", **UNFUSED)
    assert (refused.code, refused.document["projections"]["verdict"]) == (1, "regenerable-elsewhere")
    # The stripped file is told apart here, and restored bit for bit all the same.
    here = run("inspect", tmp_path / "slim", "--verify", "full", "--format", "json").document
    assert [finding["code"] for finding in here["findings"]] == ["ADP108"]
    assert run("restore", tmp_path / "slim", "-o", tmp_path / "back").code == 0
    back, before = load(tmp_path / "back"), load(unfused)
    assert all(back[name].equal(before[name]) for name in projections(back))
