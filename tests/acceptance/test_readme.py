"""What the README shows is what the program does."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from adaptertool.cli import main
from adaptertool.findings import CODES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like a clone, in which the README's commands may write."""
    (tmp_path / "fixtures").symlink_to(ROOT / "fixtures")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shown(text: str) -> re.Pattern[str]:
    """The output as the README shows it, where a line of three dots stands for the rest."""
    lines = [".*" if line == "..." else re.escape(line) for line in text.rstrip("\n").split("\n")]
    return re.compile("\n".join(lines), re.DOTALL)


def test_every_console_block(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples = [block.split("\n", 1) for block in blocks("console")]
    assert examples
    for command, output in examples:
        program, *arguments = shlex.split(command.removeprefix("$ "))
        assert program == "adaptertool"
        main(arguments)
        printed = "\n".join(line.rstrip() for line in capsys.readouterr().out.rstrip("\n").split("\n"))
        assert shown(output).fullmatch(printed), f"{command}\n{printed}"


def test_every_python_block(clone: Path) -> None:
    for block in blocks("python"):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", block]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr


def test_every_command_is_named() -> None:
    for command in ("inspect", "slim", "restore", "check-merge", "explain"):
        assert f"`adaptertool {command}`" in README


def test_ci_runs_the_development_block() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "## Development" in script
    after = README.split("## Development", 1)[1]
    first = re.search(r"^```bash\n(.*?)^```", after, re.DOTALL | re.MULTILINE)
    assert first is not None
    assert "pytest" in first[1]


def test_the_table_of_codes() -> None:
    rows = [f"| {code.code} | {code.name} | {code.severity} | {code.meaning} |" for code in CODES.values()]
    assert "\n".join(rows) in README


def test_the_pipelines_run(clone: Path, tmp_path: Path) -> None:
    """Every command of the pipelines, in a repo that holds an adapter that merges and its base."""
    (clone / "adapter").symlink_to(ROOT / "fixtures" / "lora-llama")
    (clone / "base").symlink_to(ROOT / "fixtures" / "base-llama")
    commands = [
        found[1]
        for block in blocks("yaml")
        for found in re.finditer(r"^ *- (?:run: )?(adaptertool .*)$", block, re.MULTILINE)
    ]
    assert len(commands) == 3
    shim = tmp_path / "bin" / "adaptertool"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m adaptertool "$@"\n')
    shim.chmod(0o755)
    environment = {**os.environ, "PATH": f"{shim.parent}:{os.environ['PATH']}"}
    for command in commands:
        done = subprocess.run(["bash", "-ec", command], capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert json.loads((clone / "adapter.sarif").read_text())["version"] == "2.1.0"
    assert ElementTree.parse(clone / "merge.xml").getroot().get("failures") == "0"
