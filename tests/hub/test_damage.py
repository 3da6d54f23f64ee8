"""Bytes that are damaged in the same way at every reading, with the right status, length and range: the digest tells."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from adaptertool.checkpoint.header import parse_header
from adaptertool.checkpoint.hub import ahead, file
from adaptertool.cli import main
from tests.hub import server
from tests.hub.conftest import files_of
from tests.hub.large import WEIGHTS
from tests.hub.server import Fault
from tests.merge.models import RECIPES, save_adapter, save_base

if TYPE_CHECKING:
    from pathlib import Path

    from tests.hub.server import HubServer

TOKEN = "hf_secret_of_mine"

COMMANDS = {
    "slim -o": ["slim", "org/name", "-o", "OUT"],
    "slim --push": ["slim", "org/name", "--push", "--token", TOKEN],
    "slim --dry-run": ["slim", "org/name", "--dry-run"],
    "slim --check": ["slim", "org/name", "--check"],
    "slim --keep-one-copy": ["slim", "org/name", "-o", "OUT", "--keep-one-copy"],
    "slim --keep-one-copy --force": ["slim", "org/name", "-o", "OUT", "--keep-one-copy", "--force"],
    "inspect full": ["inspect", "org/name", "--verify", "full"],
    "inspect full, stripped": ["inspect", "org/slim", "--verify", "full"],
    "restore": ["restore", "org/slim", "-o", "OUT"],
    "restore --dry-run": ["restore", "org/slim", "--dry-run"],
    "restore --push": ["restore", "org/slim", "--push", "--token", TOKEN],
}


@pytest.fixture(autouse=True)
def little_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first request does not bring the whole file."""
    monkeypatch.setattr(file, "PREFETCH", 4 << 10)


def places(weights: bytes) -> dict[str, tuple[int, int]]:
    """Where something may be damaged without the header telling."""
    length = int.from_bytes(weights[:8], "little")
    header = parse_header(weights[8 : 8 + length], len(weights) - 8 - length, WEIGHTS)
    begin = {name: header.data_start + tensor.start for name, tensor in header.tensors.items()}
    found = {"the metadata": (weights.index(b'"format":"pt"') + 10, 1)}
    for what, ending in (("what stays", "1.mlp.up_proj.randlora_lambda"), ("a copy", "1.mlp.up_proj.randlora_B")):
        for name, tensor in header.tensors.items():
            if name.endswith(ending):
                found[f"the beginning of {what}"] = begin[name], 1
                found[f"the middle of {what}"] = begin[name] + tensor.nbytes // 2, 5
                found[f"the end of {what}"] = begin[name] + tensor.nbytes - 1, 1
    if "base_model.randlora_B" in begin:
        found["the pair that PEFT loads"] = begin["base_model.randlora_B"] + 4096, 2
        found["the end of the file"] = len(weights) - 1, 1
    return found


def run(capsys: pytest.CaptureFixture[str], output: Path, command: str) -> tuple[int, dict[str, Any]]:
    arguments = [str(output) if argument == "OUT" else argument for argument in COMMANDS[command]]
    code = main([*arguments, "--format", "json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("command", COMMANDS)
def test_damage_that_is_the_same_at_every_reading(
    hub: HubServer,
    adapter: dict[str, bytes],
    slimmed: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    hub.tokens.add(TOKEN)
    hub.add("org/name", adapter)
    hub.add("org/slim", slimmed)
    weights = (slimmed if "org/slim" in COMMANDS[command] else adapter)[WEIGHTS]
    for what, place in places(weights).items():
        hub.faults.clear()
        hub.fail("storage", damage=place)
        code, document = run(capsys, tmp_path / "out", command)
        assert code == 3, f"{what}: {document}"
        error = document["error"]
        assert error["kind"] == "corrupt", f"{what}: {error}"
        assert "digest" in error["message"], f"{what}: {error}"
        assert error["hint"], f"{what}: {error}"
        assert [path.name for path in tmp_path.iterdir() if path.name != "hf"] == [], what
    assert not hub.repos["org/name"].pulls
    assert not hub.repos["org/slim"].pulls
    assert not hub.requests("commit", "upload")
    hub.faults.clear()
    assert "error" not in run(capsys, tmp_path / "out", command)[1]


@pytest.mark.parametrize("shards", ["1GB", "10KB"], ids=["one file", "shards"])
def test_damage_of_a_base(hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], shards: str) -> None:
    base = save_base(RECIPES["qwen2"], tmp_path / "base", max_shard_size=shards)
    adapter = save_adapter(RECIPES["qwen2"], base, tmp_path / "adapter")
    hub.add("org/base", files_of(base))
    files = [path for path in base.glob("*.safetensors") if b"v_proj.bias" in path.read_bytes()]
    assert (len(list(base.glob("*.safetensors"))) > 1) == (shards == "10KB")
    command = ["check-merge", str(adapter), "--base", "org/base", "--format", "json"]

    def answer() -> tuple[int, dict[str, Any]]:
        code = main(command)
        return code, json.loads(capsys.readouterr().out)

    whole = answer()
    assert "error" not in whole[1]
    for path in files:
        weights = path.read_bytes()
        length = int.from_bytes(weights[:8], "little")
        header = parse_header(weights[8 : 8 + length], len(weights) - 8 - length, path.name)
        bias = next(tensor for name, tensor in header.tensors.items() if name.endswith("v_proj.bias"))
        for place in (header.data_start + bias.start + 3, weights.index(b"v_proj.bias") + 10, len(weights) - 1):
            hub.faults[:] = [Fault("storage", path.name, damage=(place, 1))]
            code, document = answer()
            assert (code, document.get("error", {}).get("kind")) == (3, "corrupt"), (path.name, place, document)
            assert "digest" in document["error"]["message"]
            hub.faults[:] = [Fault("storage", path.name, times=1, damage=(place, 1))]
            assert answer()[1]["layers"] == whole[1]["layers"]


@pytest.mark.parametrize("first", [4 << 10, 64 << 20], ids=["in parts", "at once"])
def test_damage_of_weights_in_git(
    hub: HubServer,
    adapter: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    first: int,
) -> None:
    """Where no rule puts them into large file storage, git's hash tells."""
    monkeypatch.setattr(server, "is_lfs", lambda path, file: False)
    monkeypatch.setattr(file, "PREFETCH", first)
    hub.add("org/name", adapter)
    assert run(capsys, tmp_path / "right", "slim -o")[0] == 0
    hub.fail("resolve", skip=1, damage=places(adapter[WEIGHTS])["the middle of what stays"])
    code, document = run(capsys, tmp_path / "out", "slim -o")
    assert (code, document["error"]["kind"]) == (3, "corrupt"), document
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["slim -o", "restore"])
def test_a_server_that_names_no_digest_is_asked_twice(
    hub: HubServer,
    adapter: dict[str, bytes],
    slimmed: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    monkeypatch.setattr(ahead, "CONNECTIONS", 1)  # the same order of requests each time
    hub.add("org/name", adapter)
    hub.add("org/slim", slimmed)
    hub.fail("resolve", headers={"X-Linked-Etag": "", "ETag": ""})
    here = tmp_path / "here"
    (files := tmp_path / "files").mkdir()
    for name, data in (adapter if command == "slim -o" else slimmed).items():
        (files / name).write_bytes(data)
    assert main([command.split(maxsplit=1)[0], str(files), "-o", str(here), "--format", "json"]) == 0
    capsys.readouterr()
    assert run(capsys, tmp_path / "out", command)[0] == 0
    assert files_of(tmp_path / "out") == files_of(here)
    hub.log.clear()
    shutil.rmtree(tmp_path / "out")
    # Damage at one of the two readings.
    place = places((adapter if command == "slim -o" else slimmed)[WEIGHTS])["the middle of what stays"]
    assert run(capsys, tmp_path / "out", command)[0] == 0
    start = next(index for index, entry in enumerate(hub.requests("storage")) if holds(entry.range, place[0]))
    shutil.rmtree(tmp_path / "out")
    hub.fail("storage", skip=start, times=1, damage=place)
    code, document = run(capsys, tmp_path / "out", command)
    assert (code, document["error"]["kind"]) == (3, "corrupt"), document
    assert not (tmp_path / "out").exists()


def holds(wanted: str | None, place: int) -> bool:
    """Whether a range that was asked for holds that byte."""
    first, last = (wanted or "bytes=0-0").removeprefix("bytes=").split("-")
    return int(first) <= place <= int(last)


def test_a_name_that_is_none_of_the_files(
    hub: HubServer, adapter: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a file with one pair, damage to a name leaves half of it."""
    import adaptertool

    for name, data in adapter.items():
        (tmp_path / "stored").mkdir(exist_ok=True)
        (tmp_path / "stored" / name).write_bytes(data)
    adaptertool.slim(tmp_path / "stored", output=tmp_path / "one", keep_one_copy=True)
    files = files_of(tmp_path / "one")
    # Both names, with what is between them.
    first, last = (files[WEIGHTS].index(kind) for kind in (b"randlora_A", b"randlora_B"))
    for place in ((first, last + 10 - first), (first, 10), (last, 10)):
        hub.add("org/name", files)
        hub.faults.clear()
        hub.fail("storage", damage=place)
        code, document = run(capsys, tmp_path / "out", "slim -o")
        assert (code, document["error"]["kind"]) == (3, "corrupt"), document


def test_infinity_that_is_none_of_the_files(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finding about values is held against the digest as well, also where nothing can be drawn again."""
    import torch
    from safetensors.torch import load_file, save_file

    from tests.methods.written import write

    monkeypatch.setattr(file, "PREFETCH", 256)
    folder = tmp_path / "adapter"
    write(folder, "LORA")
    tensors = load_file(folder / WEIGHTS)
    name = min(tensors)
    # Stored 7E 7F: the exponent lacks one bit of infinity's, which the damage sets.
    tensors[name].view(torch.int32)[0, 0] = 0x7E800000
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    place = (folder / WEIGHTS).read_bytes().index(b"\x00\x00\x80\x7e") + 3
    hub.add("org/name", files_of(folder))
    code, document = run(capsys, tmp_path / "out", "inspect full")
    assert (code, document["findings"]) == (0, [])
    hub.fail("storage", damage=(place, 1))
    code, document = run(capsys, tmp_path / "out", "inspect full")
    assert (code, document["error"]["kind"]) == (3, "corrupt"), document
