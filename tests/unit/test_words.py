"""Numbers and names as people read them, and nothing in them that steers a terminal."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptertool.words import collapsed, natural, plural, printable, shortened, size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1234, "1.23 kB"),
        (99_949, "99.9 kB"),
        (99_950, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (42_500_000_000, "42.5 GB"),
        (10**18, "1 EB"),
    ],
)
def test_sizes_in_decimal_units(count: int, text: str) -> None:
    assert size(count) == text


@given(st.integers(0, 10**15))
def test_sizes_have_at_most_three_digits(count: int) -> None:
    number, _, unit = size(count).partition(" ")
    assert len(number.replace(".", "")) <= 3
    factor = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15}[unit]
    assert float(number) * factor == pytest.approx(count, rel=0.006)


def test_plurals() -> None:
    assert [plural(count, "tensor") for count in (0, 1, 2, 12_000)] == [
        "0 tensors",
        "1 tensor",
        "2 tensors",
        "12,000 tensors",
    ]


@given(st.text(st.characters()))
def test_printable_text_steers_nothing(text: str) -> None:
    found = printable(text)
    assert all(char == " " or unicodedata.category(char)[0] not in "CZ" for char in found)
    found.encode()


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P"])))
def test_plain_text_stays(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize("text", ["Ädäpter", "模型", "a b", "model/layers.0"])
def test_names_in_any_script_stay(text: str) -> None:
    assert printable(text) == text


@given(st.text(max_size=500), st.integers(20, 200))
def test_shortened_text_keeps_both_ends(text: str, length: int) -> None:
    found, whole = shortened(text, length), printable(text)
    assert len(found) <= length + 4
    if len(whole) > length:
        assert found.startswith(whole[: length // 2])
        assert found.endswith(whole[-length // 2 :])
    else:
        assert found == whole


def test_names_that_differ_in_the_layer_become_one() -> None:
    names = [f"model.layers.{layer}.q_proj.weight" for layer in (0, 1, 2, 5, 7, 8)]
    assert collapsed(names) == ["model.layers.{0..2,5,7..8}.q_proj.weight"]
    assert collapsed(["model.layers.3.q_proj"]) == ["model.layers.3.q_proj"]
    assert collapsed(["a", "b"]) == ["a", "b"]


def test_layers_at_equal_distances_are_a_range() -> None:
    assert collapsed(f"h.{layer}.mlp" for layer in range(0, 80, 2)) == ["h.{0..78..2}.mlp"]
    assert collapsed(f"h.{layer}.mlp" for layer in (0, 1, 2, 3, 7, 11, 12)) == ["h.{0..3,7,11..12}.mlp"]


@given(st.lists(st.integers(0, 200), min_size=1))
def test_ranges_name_every_layer_and_no_other(layers: list[int]) -> None:
    (found,) = collapsed(f"h.{layer}.attn" for layer in layers)
    assert len(found) < 250
    parts = found.removeprefix("h.").removesuffix(".attn").strip("{}").split(",")
    named = set()
    for part in parts:
        if part != "...":
            first, last, step, *_ = [*part.split(".."), *([part] if ".." not in part else []), "1"]
            named |= set(range(int(first), int(last) + 1, int(step)))
    assert {min(layers), max(layers)} <= named <= set(layers)
    assert named == set(layers) or "..." in parts


def test_what_is_no_layer_number_stays() -> None:
    names = ["h.007.mlp", "h.٣.mlp", f"h.{'9' * 5000}.mlp"]
    assert collapsed(names) == names


def test_numbers_in_names_count() -> None:
    names = ["layers.0.q", "layers.2.q", "layers.10.q", f"layers.{'9' * 5000}.q", "norm"]
    assert sorted([*names[2:], *names[:2]], key=natural) == names
