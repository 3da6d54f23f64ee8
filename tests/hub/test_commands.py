"""The command line on a repo of the loopback Hub does what it does on that repo's download."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from adaptertool.checkpoint.hub import file
from adaptertool.cli import main
from tests.hub.conftest import files_of, many_tensors
from tests.hub.server import Plain
from tests.methods.rewriting import assert_same_bytes
from tests.methods.written import base, write

if TYPE_CHECKING:
    from pathlib import Path

    from tests.hub.server import HubServer

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
TOKEN = "hf_secret_of_mine"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main([*arguments, "--format", "json"])
    return code, json.loads(capsys.readouterr().out)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def repo(hub: HubServer, randlora: Path) -> dict[str, bytes]:
    """`org/name` and what is in it."""
    files = {**files_of(randlora), "README.md": b"# mine", "runs/events.txt": b"1 2 3"}
    hub.tokens.add(TOKEN)
    hub.add("org/name", files)
    return files


@pytest.mark.parametrize("level", ["none", "sample", "full"])
def test_inspect_says_the_same(
    hub: HubServer, repo: dict[str, bytes], randlora: Path, capsys: pytest.CaptureFixture[str], level: str
) -> None:
    code, there = run(capsys, "inspect", "org/name", "--verify", level)
    _, here = run(capsys, "inspect", str(randlora), "--verify", level)
    assert code == 0
    assert there["target"]["kind"] == "hub"
    assert there["target"]["revision"] == hub.repos["org/name"].refs["main"]
    assert there["target"]["requests"] == len(hub.requests())
    for key in ("adapter", "size", "projections"):
        assert there[key] == here[key]
    assert [finding["code"] for finding in there["findings"]] == [finding["code"] for finding in here["findings"]]


@pytest.mark.parametrize("copies", [0, 250])
def test_inspect_costs_four_requests(hub: HubServer, capsys: pytest.CaptureFixture[str], copies: int) -> None:
    weights = many_tensors(1000 - copies, [8, 8], copies)
    config = json.dumps({"peft_type": "RANDLORA", "r": 32}).encode()
    hub.add("org/large", {CONFIG: config, WEIGHTS: weights})
    code, document = run(capsys, "inspect", "org/large", "--verify", "none")
    assert code == 0
    assert document["size"]["file_bytes"] == weights.size
    assert document["target"]["requests"] <= 4
    assert sum(entry.body_bytes for entry in hub.requests()) <= len(weights.head) + len(config) + 150_000
    assert document["target"]["bytes_read"] <= len(weights.head) + len(config) + 150_000


def test_slim_writes_what_it_writes_for_the_download(
    hub: HubServer, repo: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    download = tmp_path / "download"
    for name, data in repo.items():
        (download / name).parent.mkdir(parents=True, exist_ok=True)
        (download / name).write_bytes(data)
    assert run(capsys, "slim", str(download), "-o", str(tmp_path / "here"))[0] == 0
    code, document = run(capsys, "slim", "org/name", "-o", str(tmp_path / "there"))
    assert (code, document["action"]) == (0, "stripped")
    assert tree(tmp_path / "there") == tree(tmp_path / "here")


def test_all_that_is_written_is_flushed(
    hub: HubServer,
    repo: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Files and the folders that name them, before the rename that puts them in their place."""
    flushed: set[int] = set()
    flush = os.fsync

    def noted(handle: int) -> None:
        flushed.add(os.fstat(handle).st_ino)
        flush(handle)

    monkeypatch.setattr(os, "fsync", noted)
    output = tmp_path / "out"
    assert run(capsys, "slim", "org/name", "-o", str(output))[0] == 0
    written = [output, *output.rglob("*")]
    assert output / "runs" in written
    assert [path for path in written if path.stat().st_ino not in flushed] == []


def test_push_opens_a_pull_request_with_the_files_that_slim_writes(
    hub: HubServer, repo: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "slim", "org/name", "-o", str(tmp_path / "slim"))[0] == 0
    code, document = run(capsys, "slim", "org/name", "--push", "--token", TOKEN)
    assert code == 0
    assert document["pull_request"] == f"{hub.endpoint}/org/name/discussions/1"
    (pull,) = hub.repos["org/name"].pulls
    held = {name: content.part(0, content.size) for name, content in hub.repos["org/name"].commits[pull.commit].items()}
    assert held == tree(tmp_path / "slim")
    assert "compared bit for bit" in pull.description


def test_restore_pushes_the_inverse(
    hub: HubServer, repo: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "slim", "org/name", "-o", str(tmp_path / "slim"))[0] == 0
    hub.add("org/slim", {**tree(tmp_path / "slim")})
    code, document = run(capsys, "restore", "org/slim", "--push", "--token", TOKEN)
    assert (code, document["action"]) == (0, "restored")
    (pull,) = hub.repos["org/slim"].pulls
    assert hub.repos["org/slim"].commits[pull.commit][CONFIG] == Plain(repo[CONFIG])


@pytest.mark.parametrize("command", ["slim", "restore"])
def test_a_pull_request_is_opened_once(
    hub: HubServer, repo: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert run(capsys, "slim", "org/name", "-o", str(tmp_path / "slim"))[0] == 0
    hub.add("org/slim", tree(tmp_path / "slim"))
    name = "org/name" if command == "slim" else "org/slim"
    pulls, page = hub.repos[name].pulls, f"{hub.endpoint}/{name}/discussions"
    code, document = run(capsys, command, name, "--push", "--token", TOKEN)
    assert (code, document["pull_request"]) == (0, f"{page}/1")
    code, document = run(capsys, command, name, "--push", "--token", TOKEN)
    assert (code, document["action"], document["pull_request"]) == (0, "nothing-to-do", f"{page}/1")
    assert len(pulls) == 1
    assert main([command, name, "--push", "--token", TOKEN]) == 0
    assert f"{page}/1" in capsys.readouterr().out.replace("\n", "")
    # On the second page, behind others of the same title.
    hub.page = 2
    for number in range(3):
        hub.repos[name].commit({CONFIG: b"%d" % number}, f"refs/pr/{number + 2}")
        commit = hub.repos[name].refs[f"refs/pr/{number + 2}"]
        pulls.append(dataclasses.replace(pulls[0], commit=commit))
    code, document = run(capsys, command, name, "--push", "--token", TOKEN)
    assert (code, document["pull_request"], len(pulls)) == (0, f"{page}/1", 4)
    # One against another branch, and one that was closed, are none.
    pulls[0] = dataclasses.replace(pulls[0], target="dev")
    code, document = run(capsys, command, name, "--push", "--token", TOKEN)
    assert (code, document["pull_request"], len(pulls)) == (0, f"{page}/5", 5)
    hub.repos[name].closed.add(5)
    code, document = run(capsys, command, name, "--push", "--token", TOKEN)
    assert (code, document["pull_request"], len(pulls)) == (0, f"{page}/6", 6)


@pytest.mark.parametrize("fault", [{"status": 500}, {"body": b"{}"}, {"body": b'{"discussions": null}'}])
def test_no_pull_request_where_their_list_is_broken(
    hub: HubServer, repo: dict[str, bytes], capsys: pytest.CaptureFixture[str], fault: dict[str, Any]
) -> None:
    hub.fail("discussions", **fault)
    code, document = run(capsys, "slim", "org/name", "--push", "--token", TOKEN)
    assert (code, document["error"]["kind"]) == (3, "network")
    assert not hub.repos["org/name"].pulls


def test_what_can_not_be_pushed_is_refused_before_any_work(
    hub: HubServer, repo: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    code, document = run(capsys, "slim", "org/name", "--push")
    assert (code, document["error"]["kind"]) == (3, "unauthorized")
    assert len(hub.requests("storage")) == 1


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("org/many@dev", "org/many@dev"),
        ("hf://org/many@dev/sub", "hf://org/many@dev/sub"),
        ("hf://org/many@a%2Fb/sub", "hf://org/many@a%2Fb/sub"),
        ("org/many@a/b", "hf://org/many@a%2Fb"),
    ],
)
def test_what_is_recommended_names_the_same_checkpoint(
    hub: HubServer, randlora: Path, capsys: pytest.CaptureFixture[str], target: str, named: str
) -> None:
    files = files_of(randlora)
    hub.add("org/many", {**files, **{f"sub/{name}": data for name, data in files.items()}})
    hub.repos["org/many"].refs |= {"dev": hub.repos["org/many"].refs["main"], "a/b": hub.repos["org/many"].refs["main"]}
    code, document = run(capsys, "inspect", target)
    assert code == 0
    fix = document["findings"][0]["fix"]
    assert fix == f"adaptertool slim {named} -o DIR"
    assert run(capsys, "slim", named, "--check")[1]["action"] == "stripped"


def test_copies_of_trained_tensors_go_and_come_back(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add("org/lily", files_of(write(tmp_path / "adapter", "LILY", stride_A=2).folder))
    code, document = run(capsys, "slim", "org/lily", "-o", str(tmp_path / "slim"))
    assert (code, document["action"]) == (0, "kept-one-copy")
    hub.add("org/slim", files_of(tmp_path / "slim"))
    code, document = run(capsys, "restore", "org/slim", "-o", str(tmp_path / "restored"))
    assert (code, document["action"]) == (0, "restored")
    assert_same_bytes(tmp_path / "restored", tmp_path / "adapter")


def test_nothing_to_do_opens_no_pull_request(
    hub: HubServer, repo: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "slim", "org/name", "-o", str(tmp_path / "slim"))[0] == 0
    hub.add("org/slim", tree(tmp_path / "slim"))
    code, document = run(capsys, "slim", "org/slim", "--push", "--token", TOKEN)
    assert (code, document["action"], document["pull_request"]) == (0, "nothing-to-do", None)
    assert not hub.repos["org/slim"].pulls


def test_what_a_repo_can_not_do(hub: HubServer, repo: dict[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    code, document = run(capsys, "slim", "org/name", "--in-place")
    assert (code, document["error"]["kind"]) == (2, "usage")
    code, document = run(capsys, "slim", "org/name", "--push")
    assert (code, document["error"]["kind"]) == (3, "unauthorized")
    code, document = run(capsys, "inspect", "org/nothing")
    assert (code, document["error"]["kind"]) == (3, "not-found")


@pytest.mark.parametrize("kind", ["status", "cut", "shift", "ignore", "length"])
def test_no_output_is_left_by_a_fault(
    hub: HubServer, repo: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    faults: dict[str, dict[str, Any]] = {
        "status": {"status": 500},
        "cut": {"cut": 1000},
        "shift": {"shift": 8},
        "ignore": {"ignore_range": True},
        "length": {"claim": 7},
    }
    hub.fail("storage", **faults[kind])
    code, document = run(capsys, "slim", "org/name", "-o", str(tmp_path / "slim"))
    assert code in (0, 3), document
    if code == 3:
        assert not list(tmp_path.glob("slim*"))
        assert not list(tmp_path.glob(".slim*"))


def test_a_base_on_the_hub_is_compared_by_range(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy of its embedding goes, and comes back, with nothing else of the base read than its headers and that tensor."""

    adapter, model = tmp_path / "adapter", tmp_path / "base"
    write(adapter, "LORA", target_modules=["embed_tokens", "q_proj"])
    base("llama").save_pretrained(model)
    hub.add("org/base", files_of(model))
    hub.add("org/adapter", files_of(adapter))
    slimmed, restored = tmp_path / "slim", tmp_path / "restored"
    code, result = run(capsys, "slim", "org/adapter", "--base", "org/base", "-o", str(slimmed))
    assert code == 0
    assert result["action"] == "stripped"
    assert result["removed"] == {"tensors": 1, "bytes": 64 * 16 * 4}
    assert result["base_copies"]["base"] == "org/base"
    assert result["base_copies"]["revision"] == hub.repos["org/base"].refs["main"]
    code, result = run(capsys, "restore", str(slimmed), "--base", "org/base", "-o", str(restored))
    assert code == 0
    assert_same_bytes(restored, adapter)


def test_a_base_that_is_damaged_on_its_way_is_no_other_base(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a base that is too large to be read as a whole."""
    monkeypatch.setattr("adaptertool.merge.base.files.WHOLE", 0)
    monkeypatch.setattr(file, "PREFETCH", 1 << 10)
    adapter, model = tmp_path / "adapter", tmp_path / "base"
    write(adapter, "LORA", target_modules=["embed_tokens", "q_proj"])
    base("llama").save_pretrained(model)
    hub.add("org/base", files_of(model))
    arguments = ("slim", str(adapter), "--base", "org/base", "--dry-run")
    assert run(capsys, *arguments)[1]["action"] == "stripped"
    (place,) = (entry.range for entry in hub.requests("storage")[-1:])
    start = int((place or "").removeprefix("bytes=").split("-")[0])
    hub.fail("storage", skip=len(hub.requests("storage")) - 1, times=1, damage=(start, 1))
    code, document = run(capsys, *arguments)
    assert (code, document["error"]["kind"]) == (3, "corrupt"), document
    assert "two readings of model.embed_tokens.weight" in document["error"]["message"]
