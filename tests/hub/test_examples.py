"""The examples that the help shows, run as they stand there, on checkpoints of the names that they use."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

import pytest

from adaptertool.cli import main
from adaptertool.findings import CODES
from tests.checkpoints import FIXTURES, copy_of
from tests.hub.conftest import files_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.hub.server import HubServer

COMMANDS = ("inspect", "slim", "restore", "check-merge", "explain")
TOKEN = "hf_secret_of_mine"


@pytest.fixture
def place(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that examples name; `org/…` is on the Hub."""
    work = tmp_path / "work"
    adapter, base, beft = FIXTURES / "randlora-llama", FIXTURES / "base-llama", FIXTURES / "beft-llama"
    for name, source in {
        "adapter": adapter,
        "runs/checkpoint-500": adapter,
        "runs/checkpoint-1000": FIXTURES / "lora-llama",
        "base": base,
        "base-model": base,
        "base-llama": base,
        "beft": beft,
    }.items():
        copy_of(source, work / name)
    hub.tokens.add(TOKEN)
    for name, folder in {"name": adapter, "adapter": adapter, "base-model": base, "base": base}.items():
        hub.add(f"org/{name}", files_of(folder))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(work)
    assert main(["slim", "adapter", "-o", "adapter-slim", "--format", "json"]) == 0
    return work


def run_example(line: str, place: Path) -> int:
    """Run a line as it stands there; where it writes to must be free, as it is for whoever tries it first."""
    program, *arguments = shlex.split(line)
    assert program == "adaptertool"
    if "-o" in arguments:
        output = place / arguments[arguments.index("-o") + 1]
        if output.exists():
            output.rename(place / "other")
    return main(arguments)


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_of_the_help_work(command: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    examples = [line.strip() for line in shown.partition("Examples")[2].splitlines() if "adaptertool" in line]
    assert len(examples) >= 2
    for example in examples:
        assert run_example(example, place) in (0, 1), example
        captured = capsys.readouterr()
        assert captured.out
        assert captured.err == "", example


@pytest.mark.parametrize("code", sorted(CODES))
def test_examples_of_codes_work(code: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for example in CODES[code].example.splitlines():
        if re.match(r"adaptertool\b", example):
            assert run_example(example, place) in (0, 1), (example, capsys.readouterr().err)
