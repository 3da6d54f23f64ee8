"""Recipes and fingerprints as they are written, and read back; and the torch that loads an adapter."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptertool.checkpoint.records import RemovedTensor
from adaptertool.errors import UsageError
from adaptertool.projection.dtypes import STORED_NAMES
from adaptertool.projection.fingerprint import METADATA_KEY, Fingerprint
from adaptertool.projection.generation import Generation
from adaptertool.projection.loader import loader_for, parse_version
from adaptertool.projection.recipe import Recipe, conditions, draws

FLOATS = ("bfloat16", "float16", "float32", "float64")
CASTS = st.lists(st.sampled_from(FLOATS), min_size=1, max_size=3).map(tuple)
RECIPES = st.builds(
    lambda casts, **fields: Recipe(casts=casts, stored_dtype=casts[-1], **fields),
    casts=CASTS,
    key=st.integers(-(2**63), 2**64 - 1),
    basis=st.sampled_from(["dense", "sparse", "very-sparse"]),
    sampler=st.sampled_from(["torch<2.12", "torch>=2.12", "any"]),
    fused_multiply_add=st.none() | st.booleans(),
    generated_dtype=st.sampled_from(FLOATS),
)
DIGEST = st.binary(min_size=32, max_size=32).map(bytes.hex)
SHAPES = st.lists(st.integers(1, 2**40 - 1), min_size=1, max_size=3).map(tuple)


@given(RECIPES)
def test_a_recipe_reads_back_as_it_was(recipe: Recipe) -> None:
    assert Recipe.from_json(json.loads(json.dumps(recipe.as_json()))) == recipe


@given(RECIPES, st.dictionaries(st.sampled_from(["randlora_A", "randlora_B"]), st.tuples(SHAPES, DIGEST), min_size=1))
def test_a_fingerprint_reads_back_as_it_was(recipe: Recipe, tensors: dict[str, tuple[Any, str]]) -> None:
    dtype = STORED_NAMES[recipe.stored_dtype]
    written = Fingerprint(
        recipe, {kind: RemovedTensor(shape, dtype, digest) for kind, (shape, digest) in tensors.items()}, ("Any.",)
    )
    assert Fingerprint.from_metadata({METADATA_KEY: written.to_metadata("1.0")}) == written


@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=4).map(json.dumps))
def test_anything_else_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the message is free
        Fingerprint.from_metadata({METADATA_KEY: text})


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}], ids=str)
def test_no_fingerprint(metadata: dict[str, str] | None) -> None:
    assert Fingerprint.from_metadata(metadata) is None


@given(RECIPES, st.data())
def test_a_recipe_with_a_field_of_another_kind_is_refused(recipe: Recipe, data: st.DataObject) -> None:
    document = recipe.as_json()
    field = data.draw(st.sampled_from(["key", "basis", "sampler", "generated_dtype", "casts", "stored_dtype"]))
    document[field] = data.draw(st.sampled_from([1.5, [], {}, "new", True]).filter(lambda one: one != document[field]))
    if field != "basis" or document[field] != "new":
        with pytest.raises(ValueError, match="recipe"):
            Recipe.from_json(document)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("2.0", (2, 0)),
        ("2.11", (2, 11)),
        ("v2.12.1", (2, 12)),
        (" 2.13.0+cu130 ", (2, 13)),
        ("2.12.0a0+git1", (2, 12)),
        ("10.0", (10, 0)),
    ],
)
def test_versions(text: str, numbers: tuple[int, int]) -> None:
    assert parse_version(text) == numbers


@pytest.mark.parametrize("text", ["", "2", "two", "1.13.1", "2.11.x", "2.11 2.12", "٢.١١x"])
def test_what_is_no_version_or_too_old_is_misuse(text: str) -> None:
    with pytest.raises(UsageError):
        parse_version(text)


def test_the_installed_torch_is_found_out_by_asking_it() -> None:
    loader = loader_for(None)
    assert loader is not None
    assert loader.installed
    assert loader.name == f"torch {torch.__version__}"
    assert (loader.sampler, loader.dtype) == ("torch>=2.12", "bfloat16")


@pytest.mark.parametrize(("version", "sampler"), [("2.11", "torch<2.12"), ("2.12", "torch>=2.12")])
def test_a_named_torch_is_told_by_its_version(version: str, sampler: str) -> None:
    loader, here = loader_for(version), loader_for(None)
    assert loader is not None
    assert here is not None
    assert (loader.sampler, loader.installed) == (sampler, False)
    assert loader.fused_multiply_add == here.fused_multiply_add


def test_a_torch_draws_what_its_generation_draws() -> None:
    old, new = loader_for("2.11"), loader_for("2.13")
    assert old is not None
    assert new is not None
    fused = new.fused_multiply_add
    assert draws(old, Generation("torch<2.12", None, "bfloat16"))
    assert not draws(new, Generation("torch<2.12", None, "bfloat16"))
    assert draws(new, Generation("torch>=2.12", fused, "bfloat16"))
    assert draws(new, Generation("torch>=2.12", None, "bfloat16"))
    assert not draws(new, Generation("torch>=2.12", not fused, "bfloat16"))
    assert not draws(new, Generation("torch>=2.12", fused, "float16"))
    assert draws(new, Generation("any", None, "float32"))
    assert draws(old, Generation("any", None, "float32"))


@given(RECIPES, st.lists(st.sampled_from(["float32", "bfloat16", "float16"]), unique=True).map(tuple))
def test_conditions_are_plain_sentences(recipe: Recipe, bases: tuple[str, ...]) -> None:
    found = conditions(recipe, bases)
    assert all(sentence.endswith(".") and sentence.startswith(("torch ", sentence[0].upper())) for sentence in found)
    assert any("multiply-add" in sentence for sentence in found) is (recipe.fused_multiply_add is not None)
    assert all(any(base in sentence for sentence in found) for base in bases)
