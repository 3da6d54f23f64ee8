"""Whatever basis is stored, its recipe is found; slim and restore bring it back; one flipped bit is always seen."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import adaptertool
from adaptertool.projection.basis import RandLoraBasis
from adaptertool.projection.drawn import stored_bits
from adaptertool.projection.generation import Generation
from tests.checkpoints import CANONICAL_A, CANONICAL_B, CONFIG, WEIGHTS, Kind, flip_bit, load
from tests.initialisation import KINDS

LAYER = "base_model.model.h.0.mlp"
GENERATIONS = {
    "2.11": [Generation("torch<2.12", None, "bfloat16")],
    "2.13": [Generation("torch>=2.12", True, "bfloat16")],
    "none": [Generation("torch>=2.12", True, "float16"), Generation("torch<2.12", None, "float16")],
}
CHAINS = [
    (*base, *adapter)
    for base in (("float32",), ("bfloat16",), ("float16",))
    for adapter in ((), ("float32",))
    if base + adapter != ("float32", "float32")
]


def write(folder: Path, basis: RandLoraBasis, generation: Generation, casts: tuple[str, ...], copies: int) -> None:
    """A checkpoint with the pair drawn that way, and under that many layers."""
    tensors = {}
    for kind, projection in basis.draw(generation):
        bits = stored_bits(projection, casts)
        signed = bits.view(np.dtype(f"i{bits.itemsize}")).copy()
        tensor = torch.from_numpy(signed).view(getattr(torch, casts[-1])).reshape(basis.shapes[kind])
        tensors[f"base_model.{kind}"] = tensor
        tensors |= {f"{LAYER}.{layer}.{kind}": tensor.clone() for layer in range(copies)}
    for layer in range(max(copies, 1)):
        tensors[f"{LAYER}.{layer}.randlora_lambda"] = torch.ones(basis.rank, basis.bases)
        tensors[f"{LAYER}.{layer}.randlora_gamma"] = torch.ones(basis.bases, basis.smaller)
    safetensors.torch.save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    config = {
        "peft_type": "RANDLORA",
        "r": basis.rank,
        "projection_prng_key": basis.key,
        "sparse": basis.name == "sparse",
        "very_sparse": basis.name == "very-sparse",
        "save_projection": True,
    }
    (folder / CONFIG).write_text(json.dumps(config))


@settings(max_examples=120)
@given(
    kind=st.sampled_from(KINDS),
    key=st.integers(-(2**63), 2**64 - 1) | st.integers(0, 9),
    rank=st.integers(1, 20),
    sizes=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    version=st.sampled_from(sorted(GENERATIONS)),
    casts=st.sampled_from(CHAINS),
    copies=st.integers(0, 3),
    data=st.data(),
)
def test_found_brought_back_and_told_from_a_flipped_bit(
    kind: Kind,
    key: int,
    rank: int,
    sizes: tuple[int, int],
    version: str,
    casts: tuple[str, ...],
    copies: int,
    data: st.DataObject,
) -> None:
    basis = RandLoraBasis(key, kind, rank, max(sizes), min(sizes))
    ways = GENERATIONS[version] if kind == "dense" else [Generation("any", None, "float32")]
    generation = data.draw(st.sampled_from(ways))
    # A torch that draws in float16 can't be named on the command line: those checkpoints keep their projections.
    drawn_by_a_named_torch = kind != "dense" or version != "none"
    for_torch = "2.13" if version == "none" else version
    with tempfile.TemporaryDirectory() as place:
        folder, slim, back = (Path(place) / name for name in ("adapter", "slim", "back"))
        folder.mkdir()
        write(folder, basis, generation, casts, copies)
        report = adaptertool.inspect(folder, verify="full", for_torch=for_torch).projections
        assert report is not None
        assert report.recipe is not None
        if drawn_by_a_named_torch:
            assert report.verdict == "regenerable"
            assert adaptertool.slim(folder, output=slim, for_torch=for_torch).action == "stripped"
            assert adaptertool.restore(slim, output=back).action == "restored"
            before, after = load(folder), load(back)
            for name in (CANONICAL_A, CANONICAL_B):
                assert after[name].dtype == before[name].dtype
                assert after[name].view(torch.uint8).equal(before[name].view(torch.uint8))
        names = [name for name in load(folder) if name.endswith(("randlora_A", "randlora_B"))]
        flip_bit(
            folder,
            data.draw(st.sampled_from(names)),
            bit=data.draw(st.integers(0, 7)),
            byte=data.draw(st.integers(0, 10_000)),
        )
        report = adaptertool.inspect(folder, verify="full", for_torch=for_torch).projections
        assert report is not None
        assert report.verdict in ("copies-differ", "not-regenerable")
        assert adaptertool.slim(folder, dry_run=True, for_torch=for_torch).action == "refused"
