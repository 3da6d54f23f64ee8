"""Each recipe draws the very bits of the torch that it stands for, and of PEFT's own initialisation."""

from __future__ import annotations

import hashlib
import json
import math

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.randlora import model as randlora

from adaptertool.projection.basis import RandLoraBasis, kaiming_bound
from adaptertool.projection.drawn import stored_bits
from adaptertool.projection.generation import Generation
from adaptertool.projection.loader import loader_for
from tests.checkpoints import CANONICAL_A, CANONICAL_B, FIXTURES, Kind
from tests.conftest import spawn_python
from tests.initialisation import CASES, KINDS, bits_of, drawn_by_peft

KEYS = st.integers(-(2**63), 2**64 - 1) | st.integers(0, 100)
SIZES = st.integers(2, 60)


def here(kind: Kind, dtype: str = "bfloat16") -> Generation:
    """The generation of the installed torch."""
    if kind != "dense":
        return Generation("any", None, "float32")
    loader = loader_for(None)
    assert loader is not None
    return Generation(loader.sampler, loader.fused_multiply_add, dtype)


def assert_same(kind: Kind, key: int, rank: int, out: int, into: int, dtype: str) -> None:
    due = drawn_by_peft(kind, key, rank, out, into)
    basis = RandLoraBasis(key, kind, rank, max(out, into), min(out, into))
    assert {name: tuple(one.shape) for name, one in due.items()} == basis.shapes
    generated = dtype if kind == "dense" else "float32"
    for drawing in (basis.draw(here(kind, dtype)), basis.draw_with_torch(generated)):
        for name, projection in drawing:
            assert stored_bits(projection, (generated,)).tobytes() == bits_of(due[name]), name


@settings(max_examples=150)
@given(st.sampled_from(KINDS), KEYS, st.integers(1, 40), SIZES, SIZES)
def test_random_configurations_are_what_peft_draws(kind: Kind, key: int, rank: int, out: int, into: int) -> None:
    assert_same(kind, key, rank, out, into, "bfloat16")


@settings(max_examples=60)
@given(KEYS, st.integers(1, 40), SIZES, SIZES)
def test_float16_is_what_peft_draws_without_bfloat16_support(key: int, rank: int, out: int, into: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        name = next(name for name in vars(randlora) if "bf16" in name)
        patch.setattr(randlora, name, lambda *_, **__: False)
        assert drawn_by_peft("dense", 0, 1, 2, 2)["randlora_A"].dtype == torch.float16
        assert_same("dense", key, rank, out, into, "float16")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", [0, -1, 2**32, 2**63, 2**64 - 1, -(2**63)])
def test_extreme_seeds(kind: Kind, key: int) -> None:
    assert_same(kind, key, 7, 48, 80, "bfloat16")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(32, 700, 1100), (3, 1500, 900), (1, 64, 64), (64, 64, 64), (100, 64, 80)])
def test_larger_and_lopsided_shapes(kind: Kind, sizes: tuple[int, int, int]) -> None:
    """Beyond one chunk of words, ranks of 1, and ranks above the smaller dimension."""
    assert_same(kind, 5, *sizes, "bfloat16")


@pytest.mark.parametrize("kind", KINDS)
def test_the_std_of_a_single_element_is_nan_here_as_in_peft(kind: Kind) -> None:
    basis = RandLoraBasis(0, kind, 1, 1, 1)
    due = drawn_by_peft(kind, 0, 1, 1, 1)
    for name, projection in basis.draw(here(kind)):
        found = stored_bits(projection, ("float32",)).view(np.float32)
        assert np.array_equal(found, due[name].float().numpy().reshape(-1), equal_nan=True)


DIGESTS = """
import hashlib, json
import torch
from tests.initialisation import CASES, bits_of, drawn_by_peft
assert torch.backends.cpu.get_cpu_capability() == "DEFAULT"
found = [[hashlib.sha256(bits_of(one)).hexdigest() for one in drawn_by_peft(*case).values()] for case in CASES]
print(json.dumps(found))
"""


def test_without_fused_multiply_add_it_is_what_such_a_torch_draws() -> None:
    outcome = spawn_python("-c", DIGESTS, ATEN_CPU_CAPABILITY="default")
    assert outcome.code == 0, outcome.err
    different = 0
    for (kind, key, rank, out, into), digests in zip(CASES, json.loads(outcome.out), strict=True):
        basis = RandLoraBasis(key, kind, rank, max(out, into), min(out, into))
        ways = [Generation("torch>=2.12", fused, "bfloat16") for fused in (False, True)]
        ways = ways if kind == "dense" else [here(kind)] * 2
        apart, fused = (
            [hashlib.sha256(stored_bits(one, (way.dtype,)).tobytes()).hexdigest() for _, one in basis.draw(way)]
            for way in ways
        )
        assert apart == digests
        assert basis.fusing_matters(ways[0]) is (apart != fused)
        different += apart != fused
    assert different >= 4


@pytest.mark.parametrize("fixture", sorted(path.name for path in FIXTURES.glob("randlora-[!w]*-torch2.*")))
def test_the_old_sampler_is_that_of_the_torch_that_wrote_the_fixtures(fixture: str) -> None:
    stored = safetensors.torch.load_file(FIXTURES / fixture / "adapter_model.safetensors")
    config = json.loads((FIXTURES / fixture / "adapter_config.json").read_text())
    a, b = stored[CANONICAL_A], stored[CANONICAL_B]
    kind: Kind = "sparse" if config["sparse"] else "dense"
    basis = RandLoraBasis(config["projection_prng_key"], kind, a.shape[0], b.shape[0], a.shape[2])
    generation = Generation("torch<2.12", None, "bfloat16") if kind == "dense" else here(kind)
    for (_, projection), due in zip(basis.draw(generation), (a, b), strict=True):
        assert stored_bits(projection, ("bfloat16", "float32")).tobytes() == bits_of(due)


@given(st.integers(1, 20_000))
def test_the_bound_is_torchs(fan_in: int) -> None:
    gain = torch.nn.init.calculate_gain("leaky_relu", math.sqrt(5))
    assert kaiming_bound(fan_in) == math.sqrt(3.0) * (gain / math.sqrt(fan_in))


@pytest.mark.parametrize("rank", [7, 16, 32, 33, 64])
@pytest.mark.parametrize("number", range(6))
def test_ranges_are_those_of_the_whole(rank: int, number: int) -> None:
    basis = RandLoraBasis(key=rank, name="dense", rank=rank, larger=1300, smaller=1210)
    generation = basis.generations[number]
    numel = math.prod(basis.shapes["randlora_B"])
    ranges = [(0, 5000), (numel // 2 - 17, numel // 2 + 3001), (numel - 4001, numel)]
    whole = dict(basis.draw(generation))
    drawn = dict(basis.draw_ranges(generation, {"randlora_A": [(0, 9)], "randlora_B": ranges}))
    casts = (generation.dtype, "float32")
    for kind, asked_for in (("randlora_A", [(0, 9)]), ("randlora_B", ranges)):
        for start, stop in asked_for:
            found = stored_bits(drawn[kind], casts, start, stop)
            assert np.array_equal(found, stored_bits(whole[kind], casts, start, stop))
    for other in (("float32",), ("bfloat16", "float32"), ("float16", "float32")):
        same = [one["randlora_B"].same_after(casts, other) for one in (drawn, whole)]
        assert same[0] == same[1]
