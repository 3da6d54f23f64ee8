"""Every fault, at the first, a middle or the last request of every command, once and for good.

Which of the places it is goes round with command and fault, and so do the faults that one small file alone has; with
ADAPTERTOOL_TEST_EVERY_PLACE=1 it is all of them.
The outcome is that of a Hub without faults, or exit 3 with one clear line. Never a wrong answer, a traceback, a hang, a secret
in a message, a partial output folder, or a pull request that holds something else than it should.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from adaptertool.checkpoint.hub import patience
from adaptertool.cli import main
from tests.hub.conftest import files_of
from tests.hub.large import WEIGHTS
from tests.hub.server import Plain
from tests.hub.test_faults import FAULTS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.hub.server import HubServer

TOKEN = "hf_secret_of_mine"
SECONDS = 30.0
"""How long a command may take with the patience of these tests, on a busy machine."""

EVERY_PLACE = os.environ.get("ADAPTERTOOL_TEST_EVERY_PLACE") == "1"

MORE_FAULTS: dict[str, dict[str, Any]] = {
    "TLS where HTTP is due": {"raw": b"\x15\x03\x01\x00\x02\x02\x28"},
    "closed without a word": {"raw": b""},
    "half a head": {"raw": b"HTTP/1.1 200 OK\r\nContent-Le"},
    "no HTTP": {"raw": b"220 smtp.example.com ESMTP\r\n"},
    "really compressed": {"body": gzip.compress(b"{}"), "headers": {"Content-Encoding": "gzip"}},
    "ETag that changes": {"headers": {"ETag": '"0123456789abcdef"'}},
    "an endless config": {"claim": 1 << 40, "cut": 300_000},
    "repo gone": {"status": 404, "headers": {"X-Error-Code": "RepoNotFound"}},
    "login at another place": {"status": 302, "headers": {"Location": "http://127.0.0.1:9/login?token=hf_sso"}},
    "JSON of an error": {"status": 200, "body": b'{"error": "try later"}'},
    "nulls": {"status": 200, "body": b"null"},
    "range of another file": {"headers": {"Content-Range": "bytes 0-4/5"}},
    "negative length": {"headers": {"X-Linked-Size": "-5"}},
    "commit of nonsense": {"headers": {"X-Repo-Commit": "main"}},
}
ALL_FAULTS = {**FAULTS, **MORE_FAULTS}


@dataclass(frozen=True)
class Run:
    """What a command did: its exit code, its JSON, and what it left."""

    code: int
    document: dict[str, Any]
    left: dict[str, bytes]
    pulls: list[dict[str, bytes]]


COMMANDS: dict[str, list[str]] = {
    "inspect none": ["inspect", "org/name", "--verify", "none"],
    "inspect sample": ["inspect", "org/name", "--verify", "sample"],
    "inspect full": ["inspect", "org/name", "--verify", "full"],
    "slim -o": ["slim", "org/name", "-o", "OUT"],
    "slim --push": ["slim", "org/name", "--push", "--token", TOKEN],
    "restore -o": ["restore", "org/slim", "-o", "OUT"],
    "check-merge": ["check-merge", "org/beft", "--base", "org/base"],
}


@pytest.fixture
def runner(
    hub: HubServer,
    adapter: dict[str, bytes],
    slimmed: dict[str, bytes],
    beft: tuple[dict[str, bytes], dict[str, bytes]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], Run]:
    """Runs a command on a fresh Hub, in a fresh place."""
    monkeypatch.setattr(patience, "SILENCE", 0.5)
    monkeypatch.setenv(patience.TIMEOUT_VARIABLE, "1.5")
    hub.tokens.add(TOKEN)

    def run(command: str) -> Run:
        hub.log.clear()
        hub.uploads.clear()
        for name, files in (("name", adapter), ("slim", slimmed), ("beft", beft[0]), ("base", beft[1])):
            hub.add(f"org/{name}", files)
        output = tmp_path / "out"
        arguments = [str(output) if argument == "OUT" else argument for argument in COMMANDS[command]]
        begin = time.monotonic()
        code = main([*arguments, "--format", "json"])
        took = time.monotonic() - begin
        assert took < SECONDS
        printed = capsys.readouterr()
        assert TOKEN not in printed.out + printed.err
        assert "signature" not in printed.out + printed.err
        left = {
            path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()
        }
        left = {name: data for name, data in left.items() if not name.startswith("hf/")}
        folders = [path.name for path in tmp_path.iterdir() if path.name != "hf"]
        assert folders in ([], ["out"])
        shutil.rmtree(output, ignore_errors=True)
        commits = hub.repos["org/name"].commits
        pulls = [
            {name: file.part(0, file.size) for name, file in commits[pull.commit].items()}
            for pull in hub.repos["org/name"].pulls
        ]
        return Run(code, json.loads(printed.out), left, pulls)

    return run


@pytest.fixture(scope="session")
def beft(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """A BEFT adapter that merges, and its base, a Qwen2 with biases."""
    import torch
    from peft import BeftConfig, get_peft_model
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    base = Qwen2ForCausalLM(config)
    for name, parameter in base.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    there, here = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("beft")
    base.save_pretrained(there)
    model = get_peft_model(base, BeftConfig(target_modules=["v_proj"]))
    for name, parameter in model.named_parameters():
        if "beft" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(str(here))
    return files_of(here), files_of(there)


def answer(document: dict[str, Any]) -> dict[str, Any]:
    """A document without what a retry may change: how much was asked for."""
    kept: dict[str, Any] = json.loads(json.dumps(document))
    for part in ("target", "base"):
        for cost in ("requests", "bytes_read"):
            (kept.get(part) or {}).pop(cost, None)
        (kept.get(part) or {}).pop("revision", None)
    return kept


def check(outcome: Run, right: Run, what: str) -> None:
    """It is the right one, or one that says that it could not find out."""
    if outcome.code == right.code and "error" not in outcome.document:
        assert answer(outcome.document) == answer(right.document), what
        assert outcome.left == right.left, what
        assert outcome.pulls == right.pulls, what
        return
    assert outcome.code == 3, f"{what}: {outcome.document}"
    error = outcome.document["error"]
    assert error["message"], what
    assert "\n" not in error["message"], what
    assert len(error["message"]) < 500, what
    assert error["hint"], f"{what}: {error}"
    assert not outcome.left, what
    # An answer that is lost after the Hub did its work leaves the pull request that was asked for.
    assert outcome.pulls in ([], right.pulls), what


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("command", COMMANDS)
def test_a_fault_at_every_place(hub: HubServer, runner: Callable[[str], Run], command: str, part: int) -> None:
    right = runner(command)
    count = len(hub.requests())
    assert right.code == 0
    places = [0, 1, count // 2, count - 1]
    for number, fault in enumerate(list(ALL_FAULTS)[part::4], start=part):
        for place in sorted(set(places)) if EVERY_PLACE else [places[number % 4]]:
            hub.faults.clear()
            hub.fail("any", skip=place, times=1, **ALL_FAULTS[fault])
            check(runner(command), right, f"{fault} at request {place} of {count}")
        hub.faults.clear()
        hub.fail("any", skip=places[(number + 1) % 4], **ALL_FAULTS[fault])
        check(runner(command), right, f"{fault} from request {places[(number + 1) % 4]} on")


@pytest.mark.parametrize(
    ("command", "path"),
    [("inspect none", "adapter_config.json"), ("slim -o", "adapter_config.json"), ("check-merge", "/config.json")],
)
def test_a_fault_of_one_small_file(hub: HubServer, runner: Callable[[str], Run], command: str, path: str) -> None:
    """All else of the repo comes as it should."""
    right = runner(command)
    for number, fault in enumerate(ALL_FAULTS):
        if not EVERY_PLACE and number % 3 != len(command) % 3:
            continue
        for times in (1, 1_000_000) if EVERY_PLACE else ((1, 1_000_000)[number % 2],):
            hub.faults.clear()
            hub.fail("resolve", path=path, times=times, **ALL_FAULTS[fault])
            check(runner(command), right, f"{fault} of {path}, {times} times")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_branch_that_moves_at_any_time(hub: HubServer, runner: Callable[[str], Run], command: str) -> None:
    right = runner(command)
    for place in range(min(4, len(hub.requests()))):
        hub.faults.clear()
        hub.fail("any", skip=place, times=1, then=lambda: hub.repos["org/name"].commit({"README.md": b"all gone"}))
        check(runner(command), right, f"at request {place}")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_repo_that_is_deleted_at_any_time(hub: HubServer, runner: Callable[[str], Run], command: str) -> None:
    right = runner(command)
    for place in range(min(4, len(hub.requests()))):
        hub.faults.clear()
        hub.fail("any", skip=place, times=1, then=lambda: setattr(hub.repos["org/name"], "access", "private"))
        check(runner(command), right, f"at request {place}")


def test_a_weights_file_of_another_content(hub: HubServer, runner: Callable[[str], Run]) -> None:
    """The storage host holds something else than the Hub says."""
    right = runner("slim -o")
    other = Plain(
        bytes(len(hub.repos["org/name"].commits[hub.repos["org/name"].refs["main"]][WEIGHTS].part(0, 1 << 30)))
    )
    hub.fail("storage", body=other.data)
    check(runner("slim -o"), right, "zeros")
