"""Text on terminals of every width, with and without colour, and on consoles that know few characters."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from adaptertool.cli import output
from tests.checkpoints import FIXTURES, copy_of
from tests.conftest import Outcome, Run, spawn_python

COMMANDS: dict[str, list[object]] = {
    "bloated": ["inspect", FIXTURES / "randlora-llama"],
    "old": ["inspect", FIXTURES / "randlora-dense-bf16-torch2.11-peft0.18.1"],
    "lora": ["inspect", FIXTURES / "lora-llama"],
    "strip": ["slim", FIXTURES / "randlora-llama", "--dry-run"],
    "refused": ["slim", FIXTURES / "randlora-dense-bf16-torch2.11-peft0.18.1", "--in-place"],
    "blocked": ["check-merge", FIXTURES / "beft-llama", "--base", FIXTURES / "base-llama"],
    "layers": ["check-merge", FIXTURES / "beft-llama", "--base", FIXTURES / "base-llama", "--all"],
    "codes": ["explain"],
    "code": ["explain", "ADP103"],
    "many": ["inspect", "-r", "runs"],
    "many slimmed": ["slim", "-r", "runs", "--check"],
    "many merged": ["check-merge", "-r", "runs", "--base", FIXTURES / "base-llama"],
    "missing": ["inspect", "missing"],
}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree in the working folder, so that names are short."""
    for name in ("randlora-llama", "lora-llama", "beft-llama", "randlora-dense-bf16-torch2.11-peft0.18.1"):
        copy_of(FIXTURES / name, tmp_path / "runs" / name)
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "adapter_config.json").write_text("{")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def on_terminal(width: int, command: str, run: Run, monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8") -> str:
    """What a terminal of that width shows."""
    shown = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace", newline="\n")
    terminal = Console(
        file=shown,
        width=width,
        force_terminal=True,
        color_system="truecolor",
        highlight=False,
        emoji=False,
        markup=False,
        legacy_windows=False,
    )
    monkeypatch.setattr(output, "console_for", lambda stream: terminal)
    run(*COMMANDS[command])
    shown.flush()
    buffer = shown.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode(encoding)


def without_styles(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("command", list(COMMANDS))
def test_it_fits_the_terminal(command: str, width: int, runs: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    text = without_styles(on_terminal(width, command, run, monkeypatch))
    assert text
    assert [line for line in text.splitlines() if cell_len(line) > width] == []


@pytest.mark.parametrize("command", list(COMMANDS))
def test_nothing_is_lost_in_a_narrow_one(command: str, runs: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every size, code and verdict that a wide terminal shows is there in a narrow one; methods may go from tables."""
    wide = without_styles(on_terminal(120, command, run, monkeypatch))
    narrow = "".join(without_styles(on_terminal(40, command, run, monkeypatch)).split())
    for word in re.findall(r"ADP\d{3}|\d[\d.]* [kMG]?B|\d+ %|regenerable|mergeable|refused|failed|error", wide):
        assert word.replace(" ", "") in narrow, word


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437"])
@pytest.mark.parametrize("command", list(COMMANDS))
def test_consoles_that_know_few_characters(
    command: str, encoding: str, runs: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = without_styles(on_terminal(80, command, run, monkeypatch, encoding))
    assert text.isascii()
    assert "\\u" not in text


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["slim", "--help"], ["inspect", "Ω-\u202e"], ["inspect", FIXTURES / "randlora-llama"]],
    ids=str,
)
def test_such_a_console_as_a_process_has_it(encoding: str, arguments: list[object], spawn: Run) -> None:
    outcome = spawn(*arguments, PYTHONIOENCODING=encoding)
    assert outcome.code in (0, 3)
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("width", ["40", "80"])
@pytest.mark.parametrize("command", ["inspect", "slim", "restore", "check-merge", "explain"])
def test_help_is_cut_in_no_width(command: str, width: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    shown = run(command, "--help").out
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown
    assert "Examples:" in shown


TERMINAL = """
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.executable, [sys.executable, "-m", "adaptertool", *sys.argv[1:]])
shown = b""
while True:
    try:
        data = os.read(terminal, 65536)
    except OSError:
        break
    if not data:
        break
    shown += data
_, status = os.waitpid(pid, 0)
sys.stdout.buffer.write(shown)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def in_a_terminal(*arguments: object, TERM: str = "xterm-256color", **variables: Any) -> Outcome:  # noqa: N803
    return spawn_python("-c", TERMINAL, *arguments, TERM=TERM, **variables)


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals")
def test_colour_is_for_terminals_that_want_it(spawn: Run) -> None:
    arguments = ("inspect", FIXTURES / "randlora-llama", "--verify", "none")
    colour = re.compile(r"\x1b\[[0-9;]*m")
    assert colour.search(in_a_terminal(*arguments).out)
    assert not colour.search(in_a_terminal(*arguments, NO_COLOR="1").out)
    assert not colour.search(in_a_terminal(*arguments, TERM="dumb").out)
    assert colour.search(in_a_terminal(*arguments, NO_COLOR="").out)
    assert not colour.search(spawn(*arguments).out)
    assert colour.search(spawn(*arguments, FORCE_COLOR="1").out)
    assert not colour.search(spawn(*arguments, FORCE_COLOR="1", NO_COLOR="1").out)


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals")
def test_columns_say_how_wide_it_is() -> None:
    shown = in_a_terminal("inspect", FIXTURES / "randlora-llama", COLUMNS="50", NO_COLOR="1").out
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 50


def test_where_nobody_watches_a_line_is_never_broken(spawn: Run) -> None:
    shown = spawn("inspect", FIXTURES / "randlora-llama", COLUMNS="40").out
    assert "PEFT draws the stored projections again from the seed, bit for bit." in shown
    assert [line for line in shown.splitlines() if line != line.rstrip()] == []


COMPLETE = {
    "complete_bash": {"COMP_WORDS": "adaptertool {}", "COMP_CWORD": "{}"},
    "complete_zsh": {"_TYPER_COMPLETE_ARGS": "adaptertool {}"},
    "complete_fish": {"_TYPER_COMPLETE_ARGS": "adaptertool {}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
}


@pytest.mark.parametrize("shell", list(COMPLETE))
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("insp", "inspect"),
        ("slim --keep", "--keep-one-copy"),
        ("explain ADP10", "ADP103"),
        ("inspect --verify s", "sample"),
    ],
)
def test_shells_complete(shell: str, typed: str, offered: str, spawn: Run) -> None:
    variables = {name: value.format(typed) for name, value in COMPLETE[shell].items()}
    if "COMP_CWORD" in variables:
        variables["COMP_CWORD"] = str(len(typed.split()))
    outcome = spawn(_ADAPTERTOOL_COMPLETE=shell, **variables)
    assert offered in outcome.out
    assert outcome.err == ""


def test_fish_is_told_paths_which_other_shells_know(runs: Path, spawn: Run) -> None:
    variables = {"_TYPER_COMPLETE_ARGS": "adaptertool inspect runs/ra", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    outcome = spawn(cwd=runs.parent, _ADAPTERTOOL_COMPLETE="complete_fish", **variables)
    assert "runs/randlora-llama/" in outcome.out.splitlines()
    variables["_TYPER_COMPLETE_ARGS"] = "adaptertool slim runs/lora-llama/ada"
    outcome = spawn(cwd=runs.parent, _ADAPTERTOOL_COMPLETE="complete_fish", **variables)
    assert outcome.out.splitlines() == ["runs/lora-llama/adapter_model.safetensors"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_installed(shell: str, tmp_path: Path) -> None:
    code = "import sys, shellingham; shell = sys.argv.pop(1); shellingham.detect_shell = lambda *a, **k: (shell, '')\n"
    code += "from adaptertool.cli import main; sys.exit(main())"
    outcome = spawn_python("-c", code, shell, "--install-completion", HOME=str(tmp_path))
    assert outcome.code == 0, outcome.err
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert any("_ADAPTERTOOL_COMPLETE" in text for text in written)
