"""The script makes the fixtures again, and what their README says of them is so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import CONFIG, FIXTURES, WEIGHTS, load, projections
from tests.tools import make_fixtures


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("fixtures")
    make_fixtures.main(place)
    return place


def test_the_script_makes_the_same_projections_and_trained_tensors(again: Path) -> None:
    made, kept = load(again / "randlora-llama"), load(FIXTURES / "randlora-llama")
    assert made.keys() == kept.keys()
    assert len(projections(kept)) == 26
    assert all(tensor.equal(kept[name]) for name, tensor in made.items())
    assert all(bool(tensor.count_nonzero()) for tensor in kept.values())


@pytest.mark.parametrize(
    "name", [f"randlora-llama/{CONFIG}", f"randlora-llama/{WEIGHTS}", "base-llama/model.safetensors"]
)
def test_the_files_are_the_same_bytes(name: str, again: Path) -> None:
    assert (again / name).read_bytes() == (FIXTURES / name).read_bytes()


def test_every_fixture_is_in_the_readme() -> None:
    text = (FIXTURES / "README.md").read_text()
    assert [path.name for path in sorted(FIXTURES.iterdir()) if path.is_dir() and path.name not in text] == []


def test_fixtures_are_small() -> None:
    assert max(path.stat().st_size for path in FIXTURES.rglob("*") if path.is_file()) < 500_000
