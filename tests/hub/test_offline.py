"""Offline mode: what the cache holds is read, by every command, and never changed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from adaptertool.checkpoint.hub import cached
from adaptertool.cli import main
from tests.hub.conftest import files_of
from tests.hub.test_reading import download

if TYPE_CHECKING:
    from pathlib import Path

    from tests.hub.server import HubServer

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main([*arguments, "--format", "json"])
    return code, json.loads(capsys.readouterr().out)


def state(folder: Path) -> dict[str, tuple[Any, ...]]:
    """All that could change of a folder: content, links, times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else None
        found[path.relative_to(folder).as_posix()] = status.st_mode, status.st_ino, status.st_mtime_ns, content
    return found


def test_every_command_works_from_the_cache_and_leaves_it(
    hub: HubServer,
    randlora: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    from huggingface_hub import snapshot_download

    fixtures = request.config.rootpath / "fixtures"
    hub.add("org/name", {**files_of(randlora), "README.md": b"# mine"})
    hub.add("org/beft", files_of(fixtures / "beft-llama"))
    hub.add("org/base", files_of(fixtures / "base-llama"))
    assert run(capsys, "slim", str(randlora), "-o", str(tmp_path / "here"))[0] == 0
    hub.add("org/slim", files_of(tmp_path / "here"))
    for name in hub.repos:
        snapshot_download(name)
    cache = tmp_path / "hf" / "hub"
    request.getfixturevalue("offline")
    before, asked = state(cache), len(hub.requests())

    code, document = run(capsys, "inspect", "org/name", "--verify", "full")
    assert (code, document["projections"]["verdict"], document["target"]["requests"]) == (0, "regenerable", 0)
    code, document = run(capsys, "slim", "org/name", "-o", str(tmp_path / "there"))
    assert (code, document["action"]) == (0, "stripped")
    assert files_of(tmp_path / "there") == {**files_of(tmp_path / "here"), "README.md": b"# mine"}
    code, document = run(capsys, "restore", "org/slim", "-o", str(tmp_path / "restored"))
    assert (code, document["action"]) == (0, "restored")
    code, document = run(capsys, "check-merge", "org/beft", "--base", "org/base")
    assert (code, document["verdict"]) == (1, "not-mergeable")
    for command, name in (("slim", "org/name"), ("restore", "org/slim")):
        code, document = run(capsys, command, name, "--push")
        assert (code, document["error"]["kind"]) == (3, "offline")
        assert "cannot open a pull request" in document["error"]["message"]
        assert "download" not in document["error"]["hint"]
    code, document = run(capsys, "slim", "org/name", "--in-place")
    assert code == 2

    assert state(cache) == before
    assert len(hub.requests()) == asked


def test_what_the_cache_holds_is_held_against_its_digest(
    hub: HubServer,
    randlora: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Large files that a disk damaged are told, small ones fetched again."""
    monkeypatch.setattr(cached, "SMALL", 8 << 10)
    files = files_of(randlora)
    hub.add("org/name", files)
    download("org/name", WEIGHTS, CONFIG)
    blobs = {path.stat().st_size: path for path in (tmp_path / "hf" / "hub").rglob("blobs/*")}

    def damage(name: str, at: int) -> None:
        blob = blobs[len(files[name])]
        data = bytearray(files[name])
        data[at] ^= 1
        blob.write_bytes(data)

    damage(CONFIG, 5)
    code, document = run(capsys, "slim", "org/name", "-o", str(tmp_path / "out"))
    assert (code, document["action"]) == (0, "stripped")
    assert json.loads((tmp_path / "out" / CONFIG).read_text()) == {
        **json.loads(files[CONFIG]),
        "save_projection": False,
    }
    for at in (len(files[WEIGHTS]) - 1, len(files[WEIGHTS]) // 2):
        damage(WEIGHTS, at)
        for arguments in (
            ["slim", "org/name", "-o", str(tmp_path / "other")],
            ["inspect", "org/name", "--verify", "full"],
        ):
            code, document = run(capsys, *arguments)
            assert (code, document["error"]["kind"]) == (3, "corrupt")
            assert str(blobs[len(files[WEIGHTS])]) in document["error"]["hint"]
        assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("others", [{}, {"README.md": b"# mine"}], ids=["alone", "beside others"])
def test_offline_a_small_file_is_held_against_its_name(
    hub: HubServer,
    randlora: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    others: dict[str, bytes],
) -> None:
    files = {WEIGHTS: (randlora / WEIGHTS).read_bytes(), CONFIG: (randlora / CONFIG).read_bytes(), **others}
    hub.add("org/name", files)
    download("org/name", *files)
    request.getfixturevalue("offline")
    for name in (CONFIG, WEIGHTS):
        (snapshot,) = (tmp_path / "hf" / "hub").rglob(name)
        data = bytearray(files[name])
        data[-100] ^= 1
        snapshot.resolve().write_bytes(data)
        for arguments in (["inspect", "org/name"], ["slim", "org/name", "-o", str(tmp_path / "out")]):
            code, document = run(capsys, *arguments)
            assert (code, document["error"]["kind"]) == (3, "corrupt"), document
            assert str(snapshot.resolve()) in document["error"]["hint"]
        snapshot.resolve().write_bytes(files[name])
    assert not (tmp_path / "out").exists()
    assert run(capsys, "inspect", "org/name")[0] == 0


def test_offline_the_names_in_a_mirrors_cache_prove_nothing(
    hub: HubServer, randlora: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    hub.etag = lambda file: hashlib.sha1(b"salt" + file.part(0, file.size)).hexdigest()
    files = {**files_of(randlora), "README.md": b"# mine"}
    hub.add("org/name", files)
    download("org/name", *files)
    request.getfixturevalue("offline")
    assert run(capsys, "inspect", "org/name")[0] == 0


@pytest.mark.parametrize(
    ("cached", "missing"), [([CONFIG], WEIGHTS), ([WEIGHTS], CONFIG), (["README.md"], CONFIG)], ids=str
)
def test_a_cache_that_holds_a_part(
    hub: HubServer,
    randlora: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    cached: list[str],
    missing: str,
) -> None:
    hub.add("org/name", {**files_of(randlora), "README.md": b"# mine"})
    download("org/name", *cached)
    request.getfixturevalue("offline")
    code, document = run(capsys, "inspect", "org/name")
    assert (code, document["error"]["kind"]) == (3, "offline")
    assert missing in document["error"]["message"]
    assert "not in the cache" in document["error"]["message"]


def test_an_output_of_which_files_may_be_missing(
    hub: HubServer, randlora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    hub.add("org/name", {**files_of(randlora), "README.md": b"# mine"})
    code, document = run(capsys, "slim", "org/name", "-o", str(tmp_path / "online"))
    assert (code, document["hint"]) == (0, None)
    download("org/name", WEIGHTS, CONFIG)
    request.getfixturevalue("offline")
    code, document = run(capsys, "slim", "org/name", "-o", str(tmp_path / "offline"))
    assert (code, document["action"]) == (0, "stripped")
    assert not (tmp_path / "offline" / "README.md").exists()
    assert "its cache lacks are missing" in document["hint"]
    assert main(["slim", "org/name", "-o", str(tmp_path / "text")]) == 0
    assert "note: huggingface_hub is in offline mode" in capsys.readouterr().out


def test_a_link_to_what_is_gone_stands_for_a_file(
    hub: HubServer, randlora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    files = {**files_of(randlora), "README.md": b"# mine"}
    hub.add("org/name", files)
    download("org/name", *files)
    (link,) = (tmp_path / "hf" / "hub").rglob("README.md")
    link.resolve().unlink()
    request.getfixturevalue("offline")
    code, document = run(capsys, "slim", "org/name", "-o", str(tmp_path / "out"))
    assert (code, document["error"]["kind"]) == (3, "offline")
    assert "org/name/README.md is not in the cache" in document["error"]["message"]
    assert not (tmp_path / "out").exists()
    assert run(capsys, "inspect", "org/name")[0] == 0


@pytest.mark.parametrize("gone", [False, True], ids=["never there", "gone"])
@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_base_of_which_a_part_is_cached(
    hub: HubServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    missing: str,
    gone: bool,
) -> None:
    fixtures = request.config.rootpath / "fixtures"
    files = files_of(fixtures / "base-llama")
    hub.add("org/base", files)
    download("org/base", *(name for name in files if gone or name != missing))
    if gone:
        (link,) = (tmp_path / "hf" / "hub").rglob(missing)
        link.resolve().unlink()
    request.getfixturevalue("offline")
    code, document = run(capsys, "check-merge", str(fixtures / "beft-llama"), "--base", "org/base")
    assert (code, document["error"]["kind"]) == (3, "offline")
    assert f"org/base/{missing} is not in the cache" in document["error"]["message"]


def test_the_environment_is_huggingface_hubs(hub: HubServer, randlora: Path, tmp_path: Path) -> None:
    """HF_ENDPOINT, HF_TOKEN_PATH, HF_HUB_CACHE and HF_HUB_OFFLINE, as a process of its own reads them."""
    hub.tokens.add("hf_from_a_file")
    hub.add("org/private", files_of(randlora), access="private", readers={"hf_from_a_file"})
    (tmp_path / "my-token").write_text("hf_from_a_file\n")
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN_PATH": str(tmp_path / "my-token"),
        "HF_HUB_CACHE": str(tmp_path / "my-cache"),
    }

    def inspect(**more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "adaptertool", "inspect", "org/private", "--verify", "none"]
        return subprocess.run(command, env={**environment, **more}, capture_output=True, text=True, check=False)

    assert inspect().returncode == 0
    assert {entry.authorization for entry in hub.requests("resolve")} == {"Bearer hf_from_a_file"}
    refused = inspect(HF_TOKEN="hf_of_nobody", HF_DEBUG="1")
    assert refused.returncode == 3
    assert "does not know the token" in refused.stderr
    assert "hf_of_nobody" not in refused.stdout + refused.stderr
    assert "not in the cache" in inspect(HF_HUB_OFFLINE="1").stderr.replace("holds no revision", "not in the cache")
    code = "from huggingface_hub import snapshot_download; snapshot_download('org/private')"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
    assert (tmp_path / "my-cache").is_dir()
    assert inspect(HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9").returncode == 0
