"""A sample of large projections says what the whole comparison says, without drawing them whole and without torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.acceptance.test_light import SEEN
from tests.checkpoints import CANONICAL_A, CANONICAL_B, CONFIG, WEIGHTS, Kind, change_config, flip_bit
from tests.conftest import Outcome, Run, spawn_python
from tests.initialisation import drawn_by_peft

RANK, OUT, INTO = 32, 1200, 1100
LAYERS = tuple(f"base_model.model.model.layers.{layer}.mlp.up_proj" for layer in range(3))


def write(folder: Path, kind: Kind, chain: tuple[torch.dtype, ...], key: int = 5) -> Path:
    """A checkpoint of one target layer three times over, in the bits that PEFT draws for it."""
    folder.mkdir()
    drawn = drawn_by_peft(kind, key, RANK, OUT, INTO)
    for dtype in chain:
        drawn = {name: tensor.to(dtype) for name, tensor in drawn.items()}
    bases = drawn["randlora_B"].shape[1]
    tensors = {f"base_model.{name}": tensor for name, tensor in drawn.items()}
    for layer in LAYERS:
        tensors |= {f"{layer}.{name}": tensor.clone() for name, tensor in drawn.items()}
        tensors[f"{layer}.randlora_lambda"] = torch.ones(RANK, bases)
        tensors[f"{layer}.randlora_gamma"] = torch.ones(bases, INTO)
    safetensors.torch.save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = {"peft_type": "RANDLORA", "r": RANK, "projection_prng_key": key, "save_projection": True}
    (folder / CONFIG).write_text(json.dumps(config | {"sparse": kind == "sparse", "target_modules": ["up_proj"]}))
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("large") / "adapter", "dense", (torch.bfloat16, torch.float32))


def inspected(run: Run, folder: Path, *options: object) -> Outcome:
    outcome = run("inspect", folder, "--format", "json", *options)
    assert outcome.code == 0
    return outcome


@pytest.mark.parametrize(
    ("kind", "chain"),
    [
        ("dense", (torch.bfloat16, torch.float32)),
        ("dense", (torch.bfloat16,)),
        ("dense", (torch.bfloat16, torch.float16)),
        ("sparse", (torch.bfloat16, torch.float32)),
        ("sparse", (torch.float32,)),
    ],
    ids=str,
)
def test_sample_and_full_agree(kind: Kind, chain: tuple[torch.dtype, ...], tmp_path: Path, run: Run) -> None:
    folder = write(tmp_path / "adapter", kind, chain)
    sample = inspected(run, folder, "--verify", "sample").document
    full = inspected(run, folder, "--verify", "full").document
    assert sample["projections"]["verdict"] == "regenerable"
    for key in ("verdict", "recipe", "loads_with", "removable_bytes", "copies"):
        assert sample["projections"][key] == full["projections"][key], key
    assert sample["findings"] == full["findings"]


def test_another_seed_is_told_by_both(large: Path, tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    for file in large.iterdir():
        (folder / file.name).hardlink_to(file)
    (folder / CONFIG).unlink()
    (folder / CONFIG).write_text((large / CONFIG).read_text())
    change_config(folder, projection_prng_key=6)
    for level in ("sample", "full"):
        found = inspected(run, folder, "--verify", level).document["projections"]
        assert found["verdict"] == "not-regenerable"


@pytest.mark.parametrize("place", [0, 30_000, 2_688_000, -30_000, -1])
@pytest.mark.parametrize("tensor", [CANONICAL_B, f"{LAYERS[0]}.randlora_B", f"{LAYERS[2]}.randlora_B"])
def test_what_differs_in_a_window_is_never_regenerable(place: int, tensor: str, tmp_path: Path, run: Run) -> None:
    folder = write(tmp_path / "adapter", "dense", (torch.bfloat16, torch.float32))
    flip_bit(folder, tensor, byte=place)
    for level in ("sample", "full"):
        found = inspected(run, folder, "--verify", level).document["projections"]
        assert found["verdict"] in ("not-regenerable", "copies-differ"), level
        assert found["removable_bytes"] < found["bytes"]


@pytest.mark.parametrize("tensor", [CANONICAL_A, f"{LAYERS[1]}.randlora_A"])
def test_what_differs_in_a_small_tensor_too(tensor: str, tmp_path: Path, run: Run) -> None:
    folder = write(tmp_path / "adapter", "dense", (torch.bfloat16, torch.float32))
    flip_bit(folder, tensor, byte=70_000)
    assert inspected(run, folder).document["projections"]["verdict"] in ("not-regenerable", "copies-differ")


def test_scaled_projections_are_not_regenerable(tmp_path: Path, run: Run) -> None:
    """A basis divided by another number than its deviation, be it the next one that the dtype has."""
    folder = write(tmp_path / "adapter", "dense", (torch.bfloat16, torch.float32))
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    for name, tensor in tensors.items():
        if name.endswith("randlora_B"):
            tensors[name] = (tensor * (1 + 2**-8)).bfloat16().float()
    safetensors.torch.save_file(tensors, folder / WEIGHTS)
    for level in ("sample", "full"):
        found = inspected(run, folder, "--verify", level).document["projections"]
        assert found["verdict"] == "not-regenerable", level


def test_a_sample_imports_no_torch(large: Path) -> None:
    outcome = spawn_python("-c", SEEN, "inspect", large, "--format", "json")
    assert outcome.document["projections"]["verdict"] == "regenerable"
    assert outcome.err == "imported: numpy\n"
    asked = spawn_python("-c", SEEN, "inspect", large, "--verify", "full", "--format", "json")
    assert "torch" in asked.err


CONCLUDED = """
import sys
from adaptertool.projection.loader import asked, loader_for
concluded = loader_for(None, ask=False)
assert concluded.concluded and "torch" not in sys.modules
itself = asked()
assert itself.draws_like(concluded), (itself, concluded)
assert itself.name == concluded.name
assert loader_for("2.13", ask=False).draws_like(loader_for("2.13"))
# Once torch is there, it is asked.
assert loader_for(None, ask=False).installed
"""


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512", "DEFAULT", ""])
def test_what_is_concluded_of_the_installed_torch_is_what_it_says(capability: str) -> None:
    outcome = spawn_python("-c", CONCLUDED, ATEN_CPU_CAPABILITY=capability)
    assert outcome.code == 0, outcome.err
