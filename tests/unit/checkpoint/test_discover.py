"""Which folders of a tree are checkpoints: nested, linked, hidden and unreadable ones among others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adaptertool.checkpoint.discover import discover, find, is_organisation
from adaptertool.errors import NotFoundError
from tests.checkpoints import CONFIG, PICKLE, WEIGHTS


def checkpoint(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or (CONFIG, WEIGHTS):
        (folder / name).write_bytes(b"")
    return folder


def found_in(root: Path) -> list[str]:
    return [Path(target).relative_to(root).as_posix() for target in find(root)]


def test_a_training_run(tmp_path: Path) -> None:
    for step in (1000, 500, 1500):
        folder = checkpoint(tmp_path / f"checkpoint-{step}")
        (folder / "optimizer.pt").write_bytes(b"state")
        (folder / "trainer_state.json").write_text("{}")
    checkpoint(tmp_path)
    assert found_in(tmp_path) == [".", "checkpoint-500", "checkpoint-1000", "checkpoint-1500"]


def test_second_adapters_and_deeper_runs(tmp_path: Path) -> None:
    checkpoint(tmp_path / "run" / "a" / "checkpoint-1")
    checkpoint(tmp_path / "run" / "a" / "checkpoint-1" / "second")
    checkpoint(tmp_path / "run" / "b", CONFIG, PICKLE)
    assert found_in(tmp_path) == ["run/a/checkpoint-1", "run/a/checkpoint-1/second", "run/b"]


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, PICKLE])
def test_half_a_checkpoint_is_one_to_report(tmp_path: Path, name: str) -> None:
    checkpoint(tmp_path / "half", name)
    assert found_in(tmp_path) == ["half"]


def test_base_models_and_hidden_folders_are_none(tmp_path: Path) -> None:
    checkpoint(tmp_path / "base", "config.json", "model.safetensors")
    checkpoint(tmp_path / ".git" / "adapter")
    checkpoint(tmp_path / ".cache")
    checkpoint(tmp_path / "__pycache__")
    checkpoint(tmp_path / "adapter")
    assert found_in(tmp_path) == ["adapter"]
    assert found_in(tmp_path / ".git") == ["adapter"]


def test_symlinks_give_nothing_twice_and_loops_end(tmp_path: Path) -> None:
    checkpoint(tmp_path / "runs" / "checkpoint-1")
    (tmp_path / "runs" / "best").symlink_to("checkpoint-1")
    (tmp_path / "runs" / "checkpoint-1" / "self").symlink_to(".")
    checkpoint(tmp_path / "beside")
    (tmp_path / "runs" / "up").symlink_to("..")
    (tmp_path / "runs" / "nowhere").symlink_to("missing")
    (tmp_path / "runs" / "loop").symlink_to("loop")
    assert found_in(tmp_path / "runs") == ["checkpoint-1"]


def test_a_symlink_out_of_the_tree_is_followed_once_and_told(tmp_path: Path) -> None:
    checkpoint(tmp_path / "elsewhere" / "adapter")
    (tmp_path / "runs").mkdir()
    for name in ("one", "two"):
        (tmp_path / "runs" / name).symlink_to(tmp_path / "elsewhere")
    found = list(discover([tmp_path / "runs"], recursive=True))
    assert [(one.place, one.linked) for one in found] == [("one/adapter", True)]


def test_symlinks_in_the_hubs_cache_are_files(tmp_path: Path) -> None:
    blobs = checkpoint(tmp_path / "models--org--name" / "blobs", "1", "2")
    snapshot = tmp_path / "models--org--name" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / CONFIG).symlink_to(blobs / "1")
    (snapshot / WEIGHTS).symlink_to(blobs / "2")
    (tmp_path / "models--org--name" / ".no_exist").mkdir()
    assert found_in(tmp_path) == [f"models--org--name/snapshots/{'a' * 40}"]


def test_a_folder_that_can_not_be_listed_is_one_to_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening it says why; tests may run as a user who may read everything, so the refusal is the test's."""
    checkpoint(tmp_path / "fine")
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refusing(path: Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert found_in(tmp_path) == ["fine", "locked"]


def test_what_overlaps_is_given_once(tmp_path: Path) -> None:
    one, two = checkpoint(tmp_path / "a" / "one"), checkpoint(tmp_path / "a" / "two")
    assert list(find(one, tmp_path / "a", f"{two}/", two / WEIGHTS)) == [str(one), str(two)]
    assert list(find(two / WEIGHTS, two)) == [str(two / WEIGHTS)]


def test_an_empty_tree_is_no_answer(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="holds no PEFT adapter"):
        list(find(tmp_path / "empty"))


def test_places_are_paths_below_what_the_targets_share(tmp_path: Path) -> None:
    for path in ("a/run/checkpoint-1", "a/run", "b/checkpoint-1"):
        checkpoint(tmp_path / path)
    places = [one.place for one in discover([tmp_path / "a", tmp_path / "b"], recursive=True)]
    assert places == ["a/run", "a/run/checkpoint-1", "b/checkpoint-1"]
    assert [one.place for one in discover([tmp_path / "a"], recursive=True)] == ["run", "run/checkpoint-1"]
    assert [one.place for one in discover([tmp_path / "a" / "run"], recursive=True)] == [".", "checkpoint-1"]
    several = [tmp_path / "a" / "run" / "checkpoint-1", tmp_path / "b" / "checkpoint-1" / WEIGHTS]
    assert [one.place for one in discover(several, recursive=False)] == ["a/run/checkpoint-1", "b/checkpoint-1"]


def test_the_folder_of_outputs_is_not_looked_into(tmp_path: Path) -> None:
    checkpoint(tmp_path / "adapter")
    checkpoint(tmp_path / "slim" / "adapter")
    found = discover([tmp_path], recursive=True, exclude=tmp_path / "slim")
    assert [one.place for one in found] == ["adapter"]


@pytest.mark.parametrize(
    ("target", "is_one"),
    [
        ("hf://org", True),
        ("hf://org/", True),
        ("hf://org/name", False),
        ("org", False),
        ("org/", False),
        ("hf://", False),
    ],
)
def test_what_names_an_organisation(target: str, is_one: bool) -> None:
    assert is_organisation(target) is is_one
