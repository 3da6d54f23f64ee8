"""The program itself: help, version, explain, exit codes, and which stream carries what."""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptertool import __version__
from adaptertool.findings import CODES
from tests.checkpoints import CANONICAL_B, Spec, flip_bit
from tests.conftest import Make, Run

COMMANDS = ["inspect", "slim", "restore", "check-merge", "explain"]


def test_python_m_is_the_same_program(spawn: Run) -> None:
    outcome = spawn("--version")
    assert (outcome.code, outcome.out, outcome.err) == (0, f"adaptertool {__version__}\n", "")


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []], ids=str)
def test_help_names_every_command(arguments: list[str], run: Run) -> None:
    outcome = run(*arguments)
    assert outcome.code == 0
    assert all(command in outcome.out for command in COMMANDS)
    assert outcome.err == ""


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_has_help(command: str, option: str, run: Run) -> None:
    outcome = run(command, option)
    assert outcome.code == 0
    assert "Usage" in outcome.out


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("inspect", ["--verify", "--fail-on", "--for-torch", "--format", "--revision", "--subfolder", "--token"]),
        (
            "slim",
            ["--output", "-o", "--in-place", "--keep-one-copy", "--for-torch", "--dry-run", "--check", "--force"],
        ),
        ("restore", ["--output", "-o", "--in-place", "--for-torch", "--base", "--dtype", "--dry-run", "--force"]),
    ],
)
def test_help_names_the_options_that_scripts_use(command: str, options: list[str], run: Run) -> None:
    text = run(command, "--help").out
    assert [option for option in options if option not in text] == []


@pytest.mark.parametrize("code", sorted(CODES))
@pytest.mark.parametrize("spelling", [str.upper, str.lower], ids=["upper", "lower"])
def test_explain_tells_meaning_reason_remedy_and_an_example(code: str, spelling: object, run: Run) -> None:
    outcome = run("explain", spelling(code))  # type: ignore[operator]
    assert outcome.code == 0
    assert CODES[code].name in outcome.out
    headings = ("What it means", "Why it matters", "What to do", "Example")
    assert [heading for heading in headings if heading not in outcome.out] == []


def test_explain_lists_all_codes(run: Run) -> None:
    outcome = run("explain")
    assert all(code in outcome.out for code in CODES)
    assert [one["code"] for one in run("explain", "--format", "json").document["codes"]] == list(CODES)


@pytest.mark.parametrize(
    "arguments", [["explain", "ADP000"], ["inspect"], ["slim", ".", "-x"], ["unknown"], ["--unknown"]], ids=str
)
def test_misuse_is_exit_code_2_and_a_line_on_stderr(arguments: list[str], run: Run) -> None:
    outcome = run(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: ")


def test_results_are_on_stdout_and_nothing_on_stderr(stored: Make, spawn: Run) -> None:
    outcome = spawn("inspect", stored(Spec()))
    assert outcome.code == 0
    assert outcome.err == ""
    assert "regenerable" in outcome.out
    assert "\x1b" not in outcome.out


@pytest.mark.parametrize(
    ("least", "code"),
    [("error", 0), ("warning", 1), ("info", 1), ("never", 0)],
    ids=["error", "warning", "info", "never"],
)
def test_fail_on_warnings(least: str, code: int, stored: Make, run: Run) -> None:
    assert run("inspect", stored(Spec()), "--fail-on", least).code == code


@pytest.mark.parametrize("least", ["error", "warning", "info"])
def test_fail_on_errors(least: str, made: Make, run: Run) -> None:
    folder = made(Spec())
    flip_bit(folder, CANONICAL_B)
    assert run("inspect", folder).code == 0
    assert run("inspect", folder, "--fail-on", least).code == 1


@pytest.mark.parametrize("least", ["error", "warning", "info"])
def test_nothing_found_fails_on_nothing(least: str, lora: Path, run: Run) -> None:
    assert run("inspect", lora, "--fail-on", least).code == 0


@pytest.mark.parametrize("version", ["", "new", "2", "1.13", "0.4", "2.x", "2.11\n2.13", "-1.0", "2.11;rm"], ids=repr)
@pytest.mark.parametrize("command", [["inspect"], ["slim", "--dry-run"]], ids=["inspect", "slim"])
def test_for_torch_wants_a_version_from_2_0_on(version: str, command: list[str], lora: Path, run: Run) -> None:
    outcome = run(command[0], lora, *command[1:], f"--for-torch={version}")
    assert outcome.code == 2
    assert outcome.out == ""


@pytest.mark.parametrize("version", ["2.0", "2.11.0", "v2.12", "2.12.1+cu130", "2.14.0.dev20261101", "2.13.0rc1"])
def test_for_torch_takes_versions_as_torch_spells_them(version: str, lora: Path, run: Run) -> None:
    assert run("inspect", lora, f"--for-torch={version}").code == 0


def test_inspect_shows_what_a_person_needs(stored: Make, run: Run) -> None:
    text = run("inspect", stored(Spec()), "--verify", "full").out
    for word in (
        "RANDLORA adapter",
        "rank 8",
        "5 copies of",
        "trainable",
        "projection-copy",
        "drawn from seed 0: dense",
        "torch>=2.12",
        "ADP101",
        "ADP102",
        "adaptertool slim",
    ):
        assert word in text
