"""Whatever slim and restore do to a checkpoint, real PEFT computes the very same logits with it, on its base in its dtype."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from tests.checkpoints import CANONICAL_A, CANONICAL_B, Kind, Spec, load, logits, projections, read_config, variants
from tests.conftest import Make, Run

DTYPES = ("float32", "bfloat16", "float16")
KINDS: tuple[Kind, ...] = ("dense", "sparse", "very-sparse")
UP_AND_DOWN = (
    "gate_proj",
    "down_proj",
)  # (80, 48) and (48, 80): the basis is drawn for (80, 80), which is no layer's shape

CASTS = [
    Spec(dtype=dtype, kind=kind, autocast=autocast) for dtype, kind, autocast in product(DTYPES, KINDS, (True, False))
]
SEEDS = variants(Spec(), key=(1, 7, -3, 2**32 + 5, 2**63 + 11))
RANKS = variants(Spec(), rank=(1, 5, 7, 13, 48, 64))
SHAPES = [
    Spec(targets=UP_AND_DOWN, rank=7),
    Spec(targets=UP_AND_DOWN, rank=7, kind="very-sparse", dtype="bfloat16"),
    Spec(targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), rank=10),
    Spec(targets=("k_proj",), rank=5),
]
FAMILIES = [
    Spec(family="qwen2", rank=9),
    Spec(family="qwen2", dtype="bfloat16", kind="sparse", rank=9),
    Spec(family="gpt2", rank=9),
    Spec(family="gpt2", dtype="float16", kind="sparse", rank=9),
    Spec(family="gpt2", targets=("c_fc", "c_proj"), rank=11),
]
LAYOUTS = [
    *variants(Spec(), layout=("canonical", "layer", "pickle")),
    *variants(Spec(dtype="bfloat16", kind="sparse", autocast=False), layout=("canonical", "layer", "pickle")),
]
EVERYTHING = list(dict.fromkeys([*CASTS, *SEEDS, *RANKS, *SHAPES, *FAMILIES, *LAYOUTS]))


@pytest.mark.parametrize("spec", EVERYTHING, ids=str)
def test_inspect_says_regenerable_of_what_this_torch_drew(spec: Spec, stored: Make, run: Run) -> None:
    outcome = run("inspect", stored(spec), "--verify", "full", "--format", "json")
    assert outcome.code == 0
    assert outcome.document["projections"]["verdict"] == "regenerable"
    sampled = run("inspect", stored(spec), "--format", "json").document["projections"]
    assert (sampled["verdict"], sampled["verification"]) == ("regenerable", "sample")


@pytest.mark.parametrize("spec", EVERYTHING, ids=str)
def test_a_stripped_checkpoint_gives_the_same_logits(spec: Spec, stored: Make, tmp_path: Path, run: Run) -> None:
    source = stored(spec)
    outcome = run("slim", source, "-o", tmp_path / "slim", "--format", "json")
    assert (outcome.code, outcome.document["action"]) == (0, "stripped")
    assert not projections(load(tmp_path / "slim"))
    assert read_config(tmp_path / "slim")["save_projection"] is False
    assert logits(tmp_path / "slim", spec) == logits(source, spec)


@pytest.mark.parametrize("spec", EVERYTHING, ids=str)
def test_a_checkpoint_with_one_copy_gives_the_same_logits(spec: Spec, stored: Make, tmp_path: Path, run: Run) -> None:
    source = stored(spec)
    outcome = run("slim", source, "--keep-one-copy", "-o", tmp_path / "one", "--format", "json")
    assert outcome.code == 0
    if spec.layout in ("canonical", "layer"):
        assert outcome.document["action"] == "nothing-to-do"
        return
    assert outcome.document["action"] == "kept-one-copy"
    assert projections(load(tmp_path / "one")) == [CANONICAL_A, CANONICAL_B]
    assert read_config(tmp_path / "one")["save_projection"] is True
    assert logits(tmp_path / "one", spec) == logits(source, spec)


@pytest.mark.parametrize("spec", EVERYTHING, ids=str)
def test_slim_and_restore_bring_back_tensors_and_logits(spec: Spec, stored: Make, tmp_path: Path, run: Run) -> None:
    source = stored(spec)
    assert run("slim", source, "-o", tmp_path / "slim").code == 0
    outcome = run("restore", tmp_path / "slim", "-o", tmp_path / "back", "--format", "json")
    assert (outcome.code, outcome.document["action"]) == (0, "restored")
    back = load(tmp_path / "back")
    assert projections(back) == [CANONICAL_A, CANONICAL_B]
    assert logits(tmp_path / "back", spec) == logits(source, spec)
    if spec.layout == "copies":
        before = load(source)
        assert all(one.dtype == before[name].dtype and one.equal(before[name]) for name, one in back.items())
    assert read_config(tmp_path / "back") == read_config(source)


def test_a_projection_reaches_the_logits(stored: Make) -> None:
    """The comparisons above would see another basis."""
    first, second = Spec(), Spec(key=1)
    assert logits(stored(first), first) != logits(stored(second), second)
