"""Where slim and restore write, and what of a folder they carry along."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import safetensors

from tests.checkpoints import CONFIG, PICKLE, WEIGHTS, Spec, load, metadata, projections, snapshot
from tests.conftest import Make, Run

COMMANDS = ["slim", "restore"]


@pytest.fixture
def source(command: str, adapter: Path, run: Run) -> Path:
    """What the command has something to do on."""
    if command == "restore":
        assert run("slim", adapter, "--in-place").code == 0
    return adapter


every_command = pytest.mark.parametrize("command", COMMANDS)


@every_command
def test_without_a_place_it_says_so(command: str, source: Path, run: Run) -> None:
    before = snapshot(source)
    outcome = run(command, source)
    assert outcome.code == 2
    assert "--in-place" in outcome.err
    assert snapshot(source) == before


@every_command
def test_two_places_contradict_each_other(command: str, source: Path, tmp_path: Path, run: Run) -> None:
    assert run(command, source, "-o", tmp_path / "out", "--in-place").code == 2
    assert not (tmp_path / "out").exists()


@every_command
@pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "force"])
@pytest.mark.parametrize("spelling", ["{}", "{}/", "{}/../adapter", "{}/.", "{}-link"])
def test_the_source_is_no_output(command: str, spelling: str, force: list[str], source: Path, run: Run) -> None:
    Path(f"{source}-link").symlink_to(source)
    before = snapshot(source)
    outcome = run(command, source, "-o", spelling.format(source), *force)
    assert outcome.code == 2
    assert "--in-place" in outcome.err
    assert snapshot(source) == before


@every_command
def test_an_existing_output_is_not_overwritten_unasked(command: str, source: Path, tmp_path: Path, run: Run) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / WEIGHTS).write_bytes(b"precious")
    before = snapshot(output)
    for options in ([], ["--dry-run"]):
        assert run(command, source, "-o", output, *options).code == 2
    assert snapshot(output) == before
    assert run(command, source, "-o", output, "--force").code == 0
    assert load(output)


@every_command
def test_force_leaves_files_of_other_names(command: str, source: Path, tmp_path: Path, run: Run) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    assert run(command, source, "-o", output, "--force").code == 0
    assert {path.name for path in output.iterdir()} == {"notes.txt", WEIGHTS, CONFIG, "README.md"}
    assert (output / "notes.txt").read_text() == "mine"


@every_command
def test_a_stale_pickle_does_not_survive_in_a_forced_output(
    command: str, source: Path, tmp_path: Path, run: Run
) -> None:
    """PEFT would not load it beside safetensors weights, but other loaders might."""
    output = tmp_path / "out"
    output.mkdir()
    (output / PICKLE).write_bytes(b"an older adapter")
    assert run(command, source, "-o", output, "--force").code == 0
    assert not (output / PICKLE).exists()


@every_command
def test_an_empty_folder_and_missing_parents_are_fine(command: str, source: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "empty").mkdir()
    assert run(command, source, "-o", tmp_path / "empty").code == 0
    assert run(command, source, "-o", tmp_path / "deep" / "deeper" / "out").code == 0
    assert snapshot(tmp_path / "empty").keys() == snapshot(tmp_path / "deep" / "deeper" / "out").keys()


@every_command
def test_a_file_is_no_output(command: str, source: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "out").write_text("mine")
    for force in ([], ["--force"]):
        assert run(command, source, "-o", tmp_path / "out", *force).code == 2
    assert (tmp_path / "out").read_text() == "mine"


@every_command
def test_siblings_are_carried_along(command: str, source: Path, tmp_path: Path, run: Run) -> None:
    (source / "tokenizer.json").write_text('{"a": 1}')
    (source / "checkpoint-5").mkdir()
    (source / "checkpoint-5" / "optimizer.pt").write_bytes(b"\0\1")
    (source / "run.sh").write_text("#!/bin/sh\n")
    (source / "run.sh").chmod(0o750)
    os.utime(source / "tokenizer.json", (1_000_000_000, 1_000_000_000))
    before = snapshot(source)
    assert run(command, source, "-o", tmp_path / "out").code == 0
    after = snapshot(tmp_path / "out")
    assert snapshot(source) == before
    assert after.keys() == before.keys()
    same = before.keys() - {WEIGHTS, CONFIG}
    assert {name: after[name] for name in same} == {name: before[name] for name in same}


@every_command
def test_in_place_touches_nothing_but_weights_and_config(command: str, source: Path, run: Run) -> None:
    (source / "tokenizer.json").write_text("{}")
    before = snapshot(source)
    assert run(command, source, "--in-place").code == 0
    after = snapshot(source)
    assert {name for name in after if after[name] != before.get(name)} == {WEIGHTS, CONFIG}
    assert after.keys() == before.keys()


@every_command
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o664])
def test_modes_are_kept(command: str, mode: int, source: Path, tmp_path: Path, run: Run) -> None:
    for name in (WEIGHTS, CONFIG):
        (source / name).chmod(mode)
    assert run(command, source, "-o", tmp_path / "out").code == 0
    assert run(command, source, "--in-place").code == 0
    for folder in (source, tmp_path / "out"):
        assert [(folder / name).stat().st_mode & 0o777 for name in (WEIGHTS, CONFIG)] == [mode, mode]


@every_command
def test_symlinked_files_are_not_changed_in_place(command: str, source: Path, tmp_path: Path, run: Run) -> None:
    """A snapshot in the Hub's cache looks like this."""
    blobs = tmp_path / "blobs"
    source.rename(blobs)
    source.mkdir()
    for path in blobs.iterdir():
        (source / path.name).symlink_to(path)
    before = snapshot(blobs)
    assert run(command, source, "--in-place").code == 2
    assert run(command, source, "-o", tmp_path / "out").code == 0
    assert snapshot(blobs) == before
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


def test_slimming_twice_is_a_no_op_that_says_so(adapter: Path, tmp_path: Path, run: Run) -> None:
    assert run("slim", adapter, "--in-place").code == 0
    before = snapshot(adapter)
    again = run("slim", adapter, "--in-place")
    assert again.code == 0
    assert "nothing to do" in again.out
    assert run("slim", adapter, "--check").code == 0
    assert run("slim", adapter, "-o", tmp_path / "out", "--format", "json").document["action"] == "nothing-to-do"
    assert not (tmp_path / "out").exists()
    assert snapshot(adapter) == before


def test_keeping_one_copy_twice_is_too(adapter: Path, run: Run) -> None:
    assert run("slim", adapter, "--keep-one-copy", "--in-place").code == 0
    before = snapshot(adapter)
    assert run("slim", adapter, "--keep-one-copy", "--check").code == 0
    assert snapshot(adapter) == before
    assert run("slim", adapter, "--check").code == 1


def test_check_and_dry_run_change_nothing(adapter: Path, tmp_path: Path, run: Run) -> None:
    before = snapshot(tmp_path)
    assert run("slim", adapter, "--check").code == 1
    assert run("slim", adapter, "--dry-run").code == 0
    assert run("slim", adapter, "-o", tmp_path / "out", "--dry-run").code == 0
    assert run("slim", adapter, "--in-place", "--dry-run").code == 0
    assert snapshot(tmp_path) == before


def test_unknown_config_keys_and_formatting_survive(adapter: Path, tmp_path: Path, run: Run) -> None:
    text = '{"new_field": [1,  2.50, {"save_projection": true}],\n\t"save_projection" : true , "é": "\\u00e9", '
    text += (adapter / CONFIG).read_text().replace('"save_projection": true,', "").lstrip("{ \n")
    (adapter / CONFIG).write_text(text)
    assert run("slim", adapter, "-o", tmp_path / "slim").code == 0
    assert (tmp_path / "slim" / CONFIG).read_text() == text.replace(
        '"save_projection" : true', '"save_projection" : false'
    )
    assert run("restore", tmp_path / "slim", "-o", tmp_path / "back").code == 0
    assert (tmp_path / "back" / CONFIG).read_text() == text


def test_what_stays_keeps_its_bytes_and_metadata(adapter: Path, tmp_path: Path, run: Run) -> None:
    content = (adapter / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = {"format": "pt", "note": "trained on Ω", "empty": ""}
    new = json.dumps(header).encode()
    (adapter / WEIGHTS).write_bytes(len(new).to_bytes(8, "little") + new + content[8 + length :])
    assert run("slim", adapter, "-o", tmp_path / "slim").code == 0
    kept = {key: value for key, value in metadata(tmp_path / "slim").items() if key != "adaptertool"}
    assert kept == header["__metadata__"]
    before = deserialized(adapter)
    after = deserialized(tmp_path / "slim")
    assert after == {name: one for name, one in before.items() if name not in projections(before)}


def deserialized(folder: Path) -> dict[str, object]:
    return dict(safetensors.deserialize((folder / WEIGHTS).read_bytes()))  # type: ignore[no-untyped-call]


def test_a_weights_file_is_a_target_too(made: Make, tmp_path: Path, run: Run) -> None:
    folder = made(Spec())
    (folder / WEIGHTS).rename(folder / "step-100.safetensors")
    assert run("inspect", folder).code == 3
    assert run("slim", folder / "step-100.safetensors", "-o", tmp_path / "out").code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"step-100.safetensors", CONFIG, "README.md"}


def test_a_pickle_becomes_safetensors(made: Make, run: Run) -> None:
    folder = made(Spec(layout="pickle"))
    codes = [one["code"] for one in run("inspect", folder, "--format", "json").document["findings"]]
    assert "ADP302" in codes
    assert run("slim", folder, "--in-place").code == 0
    assert not (folder / PICKLE).exists()
    assert load(folder)
    assert metadata(folder)["format"] == "pt"
