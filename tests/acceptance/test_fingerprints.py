"""A stripped file remembers what was removed; whoever changes that, or the config, is found out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM

from tests.checkpoints import (
    CANONICAL_A,
    CANONICAL_B,
    FIXTURES,
    WEIGHTS,
    Spec,
    change_config,
    load,
    make_base,
    metadata,
    snapshot,
    write,
)
from tests.conftest import Make, Run

SPEC = Spec(targets=("gate_proj", "down_proj"), rank=7)


@pytest.fixture
def slim(stored: Make, tmp_path: Path, run: Run) -> Path:
    assert run("slim", stored(SPEC), "-o", tmp_path / "slim").code == 0
    return tmp_path / "slim"


def fingerprint_of(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(metadata(folder)["adaptertool"])
    return document


def change_fingerprint(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document, known, tensors = fingerprint_of(folder), metadata(folder), load(folder)
    change(document)
    safetensors.torch.save_file(tensors, folder / WEIGHTS, known | {"adaptertool": json.dumps(document)})


def codes(folder: Path, run: Run, *options: str) -> list[str]:
    document = run("inspect", folder, "--verify", "full", "--format", "json", *options).document
    return [finding["code"] for finding in document["findings"]]


def test_it_holds_recipe_shapes_dtypes_and_digests(slim: Path, stored: Make) -> None:
    before, found = load(stored(SPEC)), fingerprint_of(slim)
    assert found["recipe"] | {"fused_multiply_add": None} == {
        "key": 0,
        "basis": "dense",
        "sampler": "torch>=2.12",
        "fused_multiply_add": None,
        "generated_dtype": "bfloat16",
        "casts": ["bfloat16", "float32"],
        "stored_dtype": "float32",
    }
    for kind, name in (("randlora_A", CANONICAL_A), ("randlora_B", CANONICAL_B)):
        assert found["tensors"][kind] == {
            "shape": list(before[name].shape),
            "dtype": "F32",
            "sha256": hashlib.sha256(before[name].numpy().tobytes()).hexdigest(),
        }


def test_the_metadata_that_was_there_stays(slim: Path, stored: Make) -> None:
    kept = {key: value for key, value in metadata(slim).items() if key != "adaptertool"}
    assert kept == metadata(stored(SPEC)) == {"format": "pt"}


@pytest.mark.parametrize("level", ["sample", "full"])
def test_inspect_proves_that_this_torch_draws_what_was_stripped(level: str, slim: Path, run: Run) -> None:
    document = run("inspect", slim, "--verify", level, "--format", "json").document
    assert document["projections"]["verdict"] == "absent"
    assert document["projections"]["reproduced"] is True
    assert document["projections"]["fingerprint"].keys() == {"randlora_A", "randlora_B"}
    assert document["findings"] == []


def test_peft_and_transformers_load_it(slim: Path) -> None:
    model = make_base("llama")
    model.save_pretrained(slim.parent / "base")
    loaded = AutoModelForCausalLM.from_pretrained(slim.parent / "base")
    loaded.load_adapter(str(slim))
    with torch.no_grad():
        adapted = loaded(torch.arange(6)[None]).logits
        assert not adapted.equal(model(torch.arange(6)[None]).logits)


@pytest.mark.parametrize("kind", ["randlora_A", "randlora_B"])
@pytest.mark.parametrize("digit", [0, 31, 63])
def test_one_flipped_hex_digit_is_caught(kind: str, digit: int, slim: Path, tmp_path: Path, run: Run) -> None:
    def flip(document: dict[str, Any]) -> None:
        digest = document["tensors"][kind]["sha256"]
        other = format(int(digest[digit], 16) ^ 1, "x")
        document["tensors"][kind]["sha256"] = digest[:digit] + other + digest[digit + 1 :]

    change_fingerprint(slim, flip)
    assert codes(slim, run) == ["ADP108"]
    before = snapshot(slim)
    outcome = run("restore", slim, "-o", tmp_path / "back", "--format", "json")
    assert (outcome.code, outcome.document["action"]) == (1, "refused")
    assert kind in outcome.document["reason"]
    assert run("restore", slim, "--in-place").code == 1
    assert snapshot(slim) == before
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document["recipe"].update(key=1),
        lambda document: document["recipe"].update(sampler="torch<2.12"),
        lambda document: document["recipe"].update(basis="sparse"),
        lambda document: document["recipe"].update(generated_dtype="float16"),
        lambda document: document["recipe"].update(casts=["float16", "float32"], generated_dtype="float16"),
        lambda document: document["tensors"]["randlora_B"].update(dtype="BF16"),
        lambda document: document["tensors"].pop("randlora_A"),
        lambda document: document["tensors"]["randlora_A"].update(shape=[7, 1, 72]),
    ],
    ids=["key", "sampler", "basis", "generated", "casts", "dtype", "missing", "shape"],
)
def test_a_fingerprint_that_contradicts_itself_restores_nothing(
    change: Callable[[dict[str, Any]], object], slim: Path, tmp_path: Path, run: Run
) -> None:
    change_fingerprint(slim, change)
    outcome = run("restore", slim, "-o", tmp_path / "back", "--format", "json")
    assert outcome.code in (1, 3)
    assert not (tmp_path / "back").exists()
    assert codes(slim, run) != []


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{", "{}", '{"schema": "adaptertool/fingerprint/9"}', "[" * 100_000], ids=range(7)
)
def test_a_fingerprint_that_can_not_be_read(text: str, slim: Path, tmp_path: Path, run: Run) -> None:
    safetensors.torch.save_file(load(slim), slim / WEIGHTS, {"format": "pt", "adaptertool": text})
    assert codes(slim, run) == ["ADP107"]
    outcome = run("restore", slim, "-o", tmp_path / "back", "--format", "json")
    assert outcome.code == 3
    assert outcome.document["error"]["kind"] == "corrupt"


def test_huge_shapes_in_a_fingerprint_are_not_drawn(slim: Path, tmp_path: Path, run: Run) -> None:
    def inflate(document: dict[str, Any]) -> None:
        document["tensors"]["randlora_A"]["shape"] = [7, 1, 2**30]
        document["tensors"]["randlora_B"]["shape"] = [2**30, -(-(2**30) // 7), 7]

    change_fingerprint(slim, inflate)
    assert run("restore", slim, "-o", tmp_path / "back", "--format", "json").code in (1, 3)


@pytest.mark.parametrize("change", [{"projection_prng_key": 3}, {"r": 9}, {"sparse": True}], ids=str)
def test_a_config_that_was_changed_after_stripping(change: dict[str, object], slim: Path, run: Run) -> None:
    change_config(slim, **change)
    assert codes(slim, run) == ["ADP108"]


def test_a_torch_that_draws_otherwise(slim: Path, run: Run) -> None:
    document = run("inspect", slim, "--for-torch", "2.11", "--format", "json").document
    assert document["projections"]["reproduced"] is False
    assert codes(slim, run, "--for-torch", "2.11") == ["ADP108"]
    assert codes(slim, run, "--for-torch", "2.13") == []


def test_a_dense_file_that_peft_wrote_without_projections_proves_nothing(tmp_path: Path, run: Run) -> None:
    folder = write(Spec(save_projection=False), tmp_path / "adapter")
    outcome = run("inspect", folder, "--format", "json")
    assert outcome.document["projections"]["verdict"] == "absent"
    assert outcome.document["projections"]["reproduced"] is None
    assert [finding["code"] for finding in outcome.document["findings"]] == ["ADP107"]


def test_a_sparse_one_needs_no_proof(tmp_path: Path, run: Run) -> None:
    folder = write(Spec(save_projection=False, kind="sparse"), tmp_path / "adapter")
    assert codes(folder, run) == []


def test_stored_projections_under_a_false_flag_are_reported(made: Make, tmp_path: Path, run: Run) -> None:
    folder = made(SPEC)
    change_config(folder, save_projection=False)
    assert "ADP106" in codes(folder, run)
    assert run("slim", folder, "-o", tmp_path / "slim").code == 0
    assert run("restore", folder, "--in-place").code == 0
    assert "ADP106" not in codes(folder, run)


def test_missing_projections_under_a_true_flag_are_reported(slim: Path, run: Run) -> None:
    change_config(slim, save_projection=True)
    assert codes(slim, run) == ["ADP106"]


def test_the_fixture_of_the_quick_start_ends_below_a_tenth(tmp_path: Path, run: Run) -> None:
    outcome = run("slim", FIXTURES / "randlora-llama", "-o", tmp_path / "slim", "--format", "json")
    assert outcome.document["bytes_after"] < outcome.document["bytes_before"] / 10
    assert outcome.document["projections"]["recipe"]["fused_multiply_add"] is None
