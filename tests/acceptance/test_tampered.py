"""What is not bit for bit what the config draws is refused with exit 1, and the source stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model

from tests.checkpoints import (
    CANONICAL_A,
    CANONICAL_B,
    Spec,
    Tensors,
    change_config,
    flip_bit,
    load,
    make_base,
    projections,
    randomise_trained,
    rewrite,
    save,
    snapshot,
)
from tests.conftest import Make, Outcome, Run

LAYER = "base_model.model.model.layers.1.self_attn.v_proj"
EVERY_STORED = [
    CANONICAL_A,
    CANONICAL_B,
    *(
        f"base_model.model.model.layers.{layer}.self_attn.{module}.randlora_{kind}"
        for layer in (0, 1)
        for module in ("q_proj", "v_proj")
        for kind in "AB"
    ),
]


def refused(folder: Path, run: Run, *options: object) -> Outcome:
    """Slim must refuse, in every way of calling it, and leave everything as it was."""
    before = snapshot(folder)
    output = folder.parent / "refused"
    outcome = run("slim", folder, "-o", output, "--format", "json", *options)
    assert outcome.code == 1
    assert outcome.document["action"] == "refused"
    assert outcome.document["bytes_after"] == outcome.document["bytes_before"]
    assert outcome.document["removed"] == {"tensors": 0, "bytes": 0}
    assert not output.exists()
    for place in ("--in-place", "--check", "--dry-run"):
        assert run("slim", folder, place, *options).code == 1
    assert snapshot(folder) == before
    return outcome


@pytest.mark.parametrize("tensor", EVERY_STORED)
@pytest.mark.parametrize("byte", [0, -1], ids=["first", "last"])
def test_one_flipped_bit_in_any_stored_tensor(tensor: str, byte: int, adapter: Path, run: Run) -> None:
    flip_bit(adapter, tensor, byte=byte)
    document = refused(adapter, run).document
    assert document["projections"]["verdict"] == "copies-differ"
    assert [finding["code"] for finding in document["findings"]] == ["ADP105"]


@pytest.mark.parametrize("tensor", [CANONICAL_A, CANONICAL_B])
@pytest.mark.parametrize("bit", range(8))
def test_one_flipped_bit_in_the_only_copy(tensor: str, bit: int, made: Make, run: Run) -> None:
    folder = made(Spec(layout="canonical"))
    flip_bit(folder, tensor, bit=bit, byte=4 * 11 + 2)
    document = refused(folder, run).document
    assert document["projections"]["verdict"] == "not-regenerable"
    assert [finding["code"] for finding in document["findings"]] == ["ADP104"]
    assert tensor in document["reason"]
    assert "[0, 0, 11]" in document["reason"] or "[0, 1, 3]" in document["reason"]


def test_the_reason_names_tensor_element_and_both_values(adapter: Path, run: Run) -> None:
    due = load(adapter)[f"{LAYER}.randlora_B"][0, 0, 5].item()
    flip_bit(adapter, f"{LAYER}.randlora_B", byte=5 * 4 + 3, bit=7)
    reason = refused(adapter, run).document["reason"]
    assert reason == f"{LAYER}.randlora_B differs first at element [0, 0, 5]: {-due!r} is stored, {due!r} is due"


@pytest.mark.parametrize("same", [0.0, float("nan")], ids=["zero-sign", "nan-payload"])
def test_bits_count_not_values(same: float, made: Make, run: Run) -> None:
    """-0 equals 0 and no NaN equals itself, but a flipped sign of zero is another bit and an equal NaN is none."""
    folder = made(Spec(kind="sparse", layout="canonical"))
    zero = int((load(folder)[CANONICAL_B].reshape(-1) == 0).nonzero()[0].item())
    if same == 0.0:
        flip_bit(folder, CANONICAL_B, byte=4 * zero + 3, bit=7)
        refused(folder, run)
    else:
        rewrite(folder, lambda tensors: tensors | {CANONICAL_B: torch.full_like(tensors[CANONICAL_B], same)})
        refused(folder, run)


@pytest.mark.parametrize(
    "change",
    [
        {"projection_prng_key": 1},
        {"projection_prng_key": -1},
        {"r": 4},
        {"r": 16},
        {"r": 7},
        {"sparse": True},
        {"very_sparse": True},
    ],
    ids=str,
)
def test_a_config_that_draws_something_else(change: dict[str, object], adapter: Path, run: Run) -> None:
    change_config(adapter, **change)
    document = refused(adapter, run).document
    assert document["projections"]["verdict"] == "not-regenerable"
    assert "ADP104" in [finding["code"] for finding in document["findings"]]


def test_a_seed_that_differs_above_32_bits_draws_the_same(adapter: Path, run: Run) -> None:
    """The generator keeps the low 32 bits of a seed."""
    change_config(adapter, projection_prng_key=2**32)
    assert run("slim", adapter, "--in-place").code == 0


def test_a_basis_borrowed_from_a_first_adapter_of_another_kind(tmp_path: Path, run: Run) -> None:
    folder = borrowed(Spec(), Spec(kind="sparse"), tmp_path)
    document = refused(folder, run).document
    assert document["projections"]["verdict"] == "not-regenerable"


def test_a_basis_borrowed_from_an_adapter_with_wider_targets(tmp_path: Path, run: Run) -> None:
    """Its values are those of the seed, in shapes that the second adapter alone would not make PEFT draw."""
    wide = Spec(targets=("q_proj", "gate_proj", "down_proj"))
    folder = borrowed(wide, Spec(targets=("q_proj",)), tmp_path)
    document = refused(folder, run).document
    assert document["projections"]["verdict"] == "not-regenerable"


def borrowed(first: Spec, second: Spec, place: Path) -> Path:
    """What PEFT writes for the second adapter on a model."""
    model = get_peft_model(make_base("llama"), first.config)
    assert isinstance(model, PeftModel)
    model.add_adapter("second", second.config)
    model.set_adapter("second")
    randomise_trained(model)
    save(model, place, selected_adapters=["second"])
    return place / "second"


@pytest.mark.parametrize("kind", ["A", "B"])
def test_half_a_pair(kind: str, made: Make, run: Run) -> None:
    folder = made(Spec(layout="canonical"))
    rewrite(folder, lambda tensors: without(tensors, f"base_model.randlora_{kind}"))
    assert refused(folder, run).document["projections"]["verdict"] == "not-regenerable"


def without(tensors: Tensors, name: str) -> Tensors:
    return {one: tensor for one, tensor in tensors.items() if one != name}


@pytest.mark.parametrize(
    "reshape",
    [
        lambda one: one.reshape(-1),
        lambda one: one.transpose(0, 2),
        lambda one: one[..., :-1],
        lambda one: one.to(torch.float64) + 1e-12,
        lambda one: one.to(torch.int32),
        lambda one: one[:0],
    ],
    ids=["flat", "transposed", "cut", "float64", "int32", "empty"],
)
@pytest.mark.parametrize("kind", ["A", "B"])
def test_projections_of_another_shape_or_dtype(kind: str, reshape: object, made: Make, run: Run) -> None:
    folder = made(Spec(layout="canonical"))
    name = f"base_model.randlora_{kind}"
    rewrite(folder, lambda tensors: tensors | {name: reshape(tensors[name])})  # type: ignore[operator]
    assert refused(folder, run).document["projections"]["verdict"] == "not-regenerable"


def test_copies_that_contradict_the_canonical_pair_are_not_merged_silently(adapter: Path, run: Run) -> None:
    flip_bit(adapter, f"{LAYER}.randlora_A", byte=40)
    outcome = refused(adapter, run, "--keep-one-copy")
    assert outcome.document["findings"][0]["code"] == "ADP105"
    assert f"{LAYER}.randlora_A" in outcome.document["reason"]


def test_force_keeps_the_pair_that_peft_loads(adapter: Path, tmp_path: Path, run: Run) -> None:
    flip_bit(adapter, CANONICAL_B, byte=40)
    outcome = run("slim", adapter, "--keep-one-copy", "--force", "-o", tmp_path / "one", "--format", "json")
    assert (outcome.code, outcome.document["action"]) == (0, "kept-one-copy")
    kept = load(tmp_path / "one")
    assert projections(kept) == [CANONICAL_A, CANONICAL_B]
    assert kept[CANONICAL_B].equal(load(adapter)[CANONICAL_B])


def test_force_does_not_make_slim_strip_what_does_not_verify(made: Make, run: Run) -> None:
    folder = made(Spec(layout="canonical"))
    flip_bit(folder, CANONICAL_B)
    refused(folder, run, "--force")


def test_a_trained_tensor_is_no_projection(adapter: Path, tmp_path: Path, run: Run) -> None:
    """A flipped bit in what was trained is the user's affair, and is carried over as it is."""
    flip_bit(adapter, f"{LAYER}.randlora_lambda")
    assert run("slim", adapter, "-o", tmp_path / "slim").code == 0
    before, after = load(adapter), load(tmp_path / "slim")
    assert set(before) - set(after) == set(projections(before))
    assert all(tensor.equal(before[name]) for name, tensor in after.items())
