"""What slim and restore leave as it was: links, modes, owners, times, attributes, other files, and the files' own form."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors

from tests.checkpoints import CONFIG, WEIGHTS, Spec, copy_of, logits, snapshot
from tests.conftest import Make, Run
from tests.faults.conftest import OLDER, SPEC, contents, staged_in

SLIM = ("--for-torch", "2.13")


def cached(adapter: Path, place: Path) -> Path:
    """A snapshot as huggingface_hub lays it out: links into blobs."""
    blobs, commit = place / "blobs", place / "snapshots" / ("0" * 40)
    blobs.mkdir(parents=True)
    commit.mkdir(parents=True)
    for number, path in enumerate(sorted(adapter.iterdir())):
        shutil.copy(path, blobs / f"{number:064x}")
        (commit / path.name).symlink_to(Path("../../blobs") / f"{number:064x}")
    return commit


@pytest.mark.parametrize("command", ["slim", "restore"])
def test_a_snapshot_of_the_hub_s_cache(command: str, adapter: Path, run: Run, tmp_path: Path) -> None:
    if command == "restore":
        assert run("slim", adapter, "--in-place", *SLIM).code == 0
    commit = cached(adapter, tmp_path / "models--org--name")
    before = snapshot(tmp_path / "models--org--name")
    links = {path.name: path.readlink() for path in commit.iterdir()}
    for force in ([], ["--force"]):
        outcome = run(command, commit, "--in-place", *force)
        assert outcome.code == 2
        assert "is a symlink to" in outcome.err
        assert "Hub's cache" in outcome.err
    assert run(command, commit, "-o", tmp_path / "out").code == 0
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    assert snapshot(tmp_path / "models--org--name") == before
    assert {path.name: path.readlink() for path in commit.iterdir()} == links


def test_a_folder_that_is_a_symlink_stays_one(adapter: Path, run: Run, tmp_path: Path) -> None:
    link = tmp_path / "latest"
    link.symlink_to("adapter")
    assert run("slim", link, "--in-place", *SLIM).code == 0
    assert link.readlink() == Path("adapter")
    assert run("slim", adapter, "--check", *SLIM).code == 0


def test_an_output_that_is_a_symlink(adapter: Path, run: Run, tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    link.symlink_to("real")
    assert run("slim", adapter, "-o", link, *SLIM).code == 2  # it leads nowhere
    assert not real.exists()
    real.mkdir()
    assert run("slim", adapter, "-o", link, *SLIM).code == 0
    assert link.is_symlink()
    assert (real / WEIGHTS).is_file()
    assert run("slim", adapter, "-o", link, *SLIM).code == 2
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    assert run("slim", adapter, "-o", loop, *SLIM).code in (2, 3)
    assert staged_in(tmp_path) == []


def test_links_among_the_other_files(adapter: Path, run: Run, tmp_path: Path) -> None:
    outside = tmp_path / "shared"
    (outside / "vocabulary").mkdir(parents=True)
    (outside / "tokenizer.json").write_text("{}")
    (adapter / "checkpoint-5").mkdir()
    (adapter / "checkpoint-5" / "state.txt").write_text("5")
    (adapter / "checkpoint-5" / "up").symlink_to("../README.md")
    (adapter / "latest").symlink_to("checkpoint-5")
    (adapter / "model.safetensors").symlink_to(WEIGHTS)
    (adapter / "tokenizer.json").symlink_to(outside / "tokenizer.json")
    (adapter / "vocabulary").symlink_to("../shared/vocabulary")
    (adapter / "gone").symlink_to("nowhere")
    (adapter / "loop").symlink_to("loop")
    outcome = run("slim", adapter, "-o", tmp_path / "deep" / "out", *SLIM)
    assert outcome.code == 0, outcome.err
    output = tmp_path / "deep" / "out"
    # Links to what is copied too are the same links; files from elsewhere are files; other links lead where they led.
    assert (output / "latest").readlink() == Path("checkpoint-5")
    assert (output / "latest" / "state.txt").read_text() == "5"
    assert (output / "checkpoint-5" / "up").readlink() == Path("../README.md")
    assert (output / "model.safetensors").readlink() == Path(WEIGHTS)
    assert (output / "model.safetensors").stat().st_size == (output / WEIGHTS).stat().st_size
    assert not (output / "tokenizer.json").is_symlink()
    assert (output / "tokenizer.json").read_text() == "{}"
    assert (output / "vocabulary").resolve() == outside / "vocabulary"
    assert (output / "gone").is_symlink()
    assert (output / "loop").is_symlink()


def test_a_second_name_of_the_weights_keeps_the_old_ones(adapter: Path, run: Run, tmp_path: Path) -> None:
    """A hard link elsewhere, as backups make them, is not written through."""
    before = (adapter / WEIGHTS).read_bytes()
    os.link(adapter / WEIGHTS, tmp_path / "backup")
    assert run("slim", adapter, "--in-place", *SLIM).code == 0
    assert (tmp_path / "backup").read_bytes() == before
    assert (adapter / WEIGHTS).stat().st_size < len(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize("where", ["-o", "--in-place", "--force"])
def test_owners_and_modes(where: str, adapter: Path, run: Run, tmp_path: Path) -> None:
    (adapter / "notes").mkdir()
    (adapter / "notes" / "run.sh").write_text("#!/bin/sh\n")
    for number, path in enumerate([adapter, *sorted(adapter.rglob("*"))]):
        os.chown(path, 12340 + number, 23450 + number)
        path.chmod((0o2750 if path.is_dir() else 0o640) + number % 3)
    output = adapter if where == "--in-place" else tmp_path / "out"
    due = {path.relative_to(adapter): path.stat() for path in adapter.rglob("*")}
    top = adapter.stat()
    if where == "--force":
        output.mkdir()
    arguments = ["--in-place"] if where == "--in-place" else ["--force", "-o", output]
    assert run("slim", adapter, *arguments, *SLIM).code == 0
    for path, status in due.items():
        new = (output / path).stat()
        assert (new.st_uid, new.st_gid, new.st_mode) == (status.st_uid, status.st_gid, status.st_mode), path
    if where == "-o":
        assert (output.stat().st_uid, output.stat().st_mode) == (top.st_uid, top.st_mode)


def test_times_and_attributes(adapter: Path, run: Run, tmp_path: Path) -> None:
    notes = adapter / "notes.txt"
    notes.write_text("mine")
    (adapter / "sub").mkdir()
    try:
        for path in (notes, adapter / WEIGHTS, adapter / CONFIG):
            os.setxattr(path, "user.origin", b"run 5")
    except OSError as error:
        pytest.skip(f"the file system has no extended attributes: {error}")
    for path in (notes, adapter / "README.md", adapter / "sub", adapter / CONFIG):
        os.utime(path, (1_000_000_000, 1_000_000_001))
    assert run("slim", adapter, "--keep-one-copy", "-o", tmp_path / "one", *SLIM).code == 0
    assert run("slim", adapter, "-o", tmp_path / "slim", *SLIM).code == 0
    for output in (tmp_path / "one", tmp_path / "slim"):
        for name in ("notes.txt", "README.md", "sub"):
            assert (output / name).stat().st_mtime == 1_000_000_001
        for name in ("notes.txt", WEIGHTS, CONFIG):
            assert os.getxattr(output / name, "user.origin") == b"run 5"
    # The config that did not change is the file that it was; the other one is new.
    assert (tmp_path / "one" / CONFIG).stat().st_mtime == 1_000_000_001
    assert (tmp_path / "slim" / CONFIG).stat().st_mtime > 1_700_000_000
    assert run("slim", adapter, "--in-place", *SLIM).code == 0
    assert os.getxattr(adapter / WEIGHTS, "user.origin") == b"run 5"
    assert os.getxattr(adapter / CONFIG, "user.origin") == b"run 5"


def test_other_adapters_in_folders_below(adapter: Path, stored: Make, run: Run, tmp_path: Path) -> None:
    copy_of(stored(OLDER), adapter / "second")
    (adapter / ".git").mkdir()
    (adapter / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (adapter / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    before = snapshot(adapter / "second")
    assert run("slim", adapter, "-o", tmp_path / "out", *SLIM).code == 0
    assert snapshot(tmp_path / "out" / "second") == before
    assert (tmp_path / "out" / ".gitattributes").is_file()
    assert not (tmp_path / "out" / ".git").exists()  # the copy is no clone of the repo
    assert run("slim", adapter, "--in-place", *SLIM).code == 0
    assert snapshot(adapter / "second") == before


def test_an_output_in_the_source(adapter: Path, run: Run) -> None:
    (adapter / "notes.txt").write_text("mine")
    due = logits(adapter, SPEC)
    assert run("slim", adapter, "-o", adapter / "deep" / "slim", *SLIM).code == 0
    assert set(contents(adapter / "deep" / "slim")) == {"README.md", CONFIG, WEIGHTS, "notes.txt"}
    assert logits(adapter / "deep" / "slim", SPEC) == due
    (adapter / "empty").mkdir()
    assert run("slim", adapter, "-o", adapter / "empty", *SLIM).code == 0
    assert "empty/empty" not in {path.relative_to(adapter).as_posix() for path in adapter.rglob("*")}


def test_the_source_in_the_output(adapter: Path, run: Run, tmp_path: Path) -> None:
    before = snapshot(adapter)
    assert run("slim", adapter, "-o", tmp_path, "--force", *SLIM).code == 0
    assert snapshot(adapter) == before
    assert (tmp_path / WEIGHTS).is_file()


def test_kinds_that_do_not_fit(adapter: Path, run: Run, tmp_path: Path) -> None:
    """A folder does not become a file, nor the other way round, not even with --force."""
    (adapter / "notes").write_text("mine")
    output = tmp_path / "out"
    (output / "notes").mkdir(parents=True)
    (output / "notes" / "old.txt").write_text("old")
    (output / WEIGHTS).write_bytes(b"old")
    before = snapshot(output)
    outcome = run("slim", adapter, "-o", output, "--force", *SLIM)
    assert outcome.code == 2
    assert f"{output / 'notes'} is a folder" in outcome.err
    assert snapshot(output) == before
    shutil.rmtree(output / "notes")
    (adapter / "notes").unlink()
    (adapter / "notes").mkdir()
    (output / "notes").write_text("old")
    assert f"{output / 'notes'} is a file" in run("slim", adapter, "-o", output, "--force", *SLIM).err


SPELLINGS: dict[str, Callable[[str], str]] = {
    "compact": lambda text: json.dumps(json.loads(text), separators=(",", ":")),
    "tabs": lambda text: json.dumps(json.loads(text), indent="\t"),
    "sorted backwards": lambda text: json.dumps(dict(sorted(json.loads(text).items(), reverse=True)), indent=4),
    "windows": lambda text: text.replace("\n", "\r\n"),
    "without the flag": lambda text: json.dumps(
        {key: value for key, value in json.loads(text).items() if key != "save_projection"}, indent=2
    ),
    "unknown keys": lambda text: text.replace(
        "{", '{\n  "ours": {"save_projection": true, "é": "\\u00e9\\n"}, "nan": NaN, "big": 1e999,', 1
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_config_keeps_its_form(spelling: str, adapter: Path, run: Run, tmp_path: Path) -> None:
    """One value changes, and no other byte."""
    text = SPELLINGS[spelling]((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_bytes(text.encode())
    assert run("slim", adapter, "-o", tmp_path / "slim", *SLIM).code == 0
    new = (tmp_path / "slim" / CONFIG).read_bytes().decode()
    assert json.loads(new)["save_projection"] is False
    if spelling == "without the flag":
        assert new.replace('"save_projection": false', "").split() != new.split()
        assert json.loads(new) == json.loads(text) | {"save_projection": False}
        return
    at = next(index for index in range(len(text)) if text[index] != new[index])
    assert text[at:].removeprefix("true") == new[at:].removeprefix("false")
    assert run("restore", tmp_path / "slim", "--in-place").code == 0
    assert (tmp_path / "slim" / CONFIG).read_bytes().decode() == text


def test_the_weights_keep_their_form(adapter: Path, run: Run, tmp_path: Path) -> None:
    """Metadata with all keys in their order, tensors in theirs, and each at a place that its dtype can be read from."""
    content = (adapter / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = {
        "z": "last first",
        "format": "pt",
        "a": "\u0000é\u202e",
        "": "no name",
        "long": "x" * 100_000,
    }
    new = json.dumps(header).encode()
    (adapter / WEIGHTS).write_bytes(len(new).to_bytes(8, "little") + new + content[8 + length :])
    order = sorted((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"])
    assert run("slim", adapter, "-o", tmp_path / "slim", *SLIM).code == 0
    assert run("restore", tmp_path / "slim", "-o", tmp_path / "back").code == 0
    for folder in (tmp_path / "slim", tmp_path / "back"):
        written = (folder / WEIGHTS).read_bytes()
        length = int.from_bytes(written[:8], "little")
        assert length % 8 == 0
        document = json.loads(written[8 : 8 + length])
        kept = {key: value for key, value in document.pop("__metadata__").items() if key != "adaptertool"}
        assert list(kept.items()) == list(header["__metadata__"].items())
        names = sorted(document, key=lambda name: document[name]["data_offsets"])
        assert [name for name in names if "randlora_A" not in name and "randlora_B" not in name] == [
            name for name in order if "randlora_A" not in name and "randlora_B" not in name
        ]
        assert all(one["data_offsets"][0] % 4 == 0 for one in document.values())
        assert safetensors.deserialize(written)  # type: ignore[no-untyped-call]
    assert logits(tmp_path / "slim", SPEC) == logits(adapter, SPEC) == logits(tmp_path / "back", SPEC)


def test_staged_files_are_nobody_else_s_to_read(stored: Make, run: Run, tmp_path: Path) -> None:
    """While it is being made, a copy of a private checkpoint is private."""
    adapter = copy_of(stored(Spec()), tmp_path / "adapter")
    (adapter / WEIGHTS).chmod(0o600)
    adapter.chmod(0o700)
    before = os.umask(0)
    try:
        assert run("slim", adapter, "-o", tmp_path / "out", *SLIM).code == 0
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "out" / WEIGHTS).stat().st_mode & 0o777 == 0o600
