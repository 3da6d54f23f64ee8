"""Every broken checkpoint, through every command and format: the expected code, one clear line, nothing changed."""

from __future__ import annotations

import functools
import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import typer

from adaptertool.cli import main
from tests.tools.make_broken import FOLDER, all_cases, expected, table

EXPECTED: dict[str, dict[str, Any]] = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
UNREADABLE = [name for name, due in EXPECTED.items() if "kind" in due]
READABLE = [name for name, due in EXPECTED.items() if "kind" not in due]

PARSER = functools.cache(typer.main.get_command)

COMMANDS = (
    ("inspect",),
    ("inspect", "--verify", "none"),
    ("inspect", "--verify", "full"),
    ("slim", "--dry-run"),
    ("slim", "--check"),
    ("slim", "-o", "out"),
    ("slim", "--in-place"),
    ("slim", "--keep-one-copy", "-o", "out"),
    ("restore", "--dry-run"),
    ("restore", "-o", "out"),
    ("restore", "--in-place"),
)
IN_JSON = (("inspect",), ("slim", "-o", "out"), ("slim", "--in-place"), ("restore", "-o", "out"))


LONGEST_LINE = 1000
"""Characters of a line on stderr that a person may still read."""


@pytest.fixture(autouse=True)
def parser_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building the parser takes longer than all that these tests do."""
    monkeypatch.setattr(typer.main, "get_command", PARSER)


@pytest.fixture
def adapter(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the case that the test is about; the working directory holds nothing else."""
    copy = tmp_path / "adapter"
    shutil.copytree(FOLDER / request.param, copy)
    monkeypatch.chdir(tmp_path)
    return copy


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    for text in (out, err):
        assert "Traceback" not in text
        for char in text:
            assert char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf", "Cs"), (
                f"{char!r} reaches a terminal"
            )
    return code, out, err


def one_document(text: str) -> dict[str, Any]:
    document = json.loads(text)
    assert isinstance(document, dict)
    assert document["schema"].startswith("adaptertool/")
    return document


def error_lines(text: str) -> list[str]:
    """The lines of an error message: one that says what happened, and perhaps one with a hint."""
    assert text.endswith("\n")
    lines = text.splitlines()
    assert lines[0].startswith("error: ")
    assert len(lines[0]) > len("error: ")
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: "))
    assert all(len(line) <= LONGEST_LINE for line in lines)
    return lines


def test_the_corpus_is_what_the_script_makes() -> None:
    cases = all_cases()
    assert expected(cases) == EXPECTED
    assert table(cases) == (FOLDER / "README.md").read_text(encoding="utf-8")
    for case in cases:
        if not case.name.startswith("pickle-"):  # torch.save's bytes differ between torch versions
            assert contents(FOLDER / case.name) == dict(case.files)


@pytest.mark.parametrize(("adapter", "name"), [(name, name) for name in UNREADABLE], indirect=["adapter"])
def test_what_cannot_be_read(adapter: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    due = EXPECTED[name]
    before = contents(adapter.parent)
    for command in COMMANDS:
        arguments = (command[0], str(adapter), *command[1:])
        expected_code = due["exits"][command[0]]
        if name.startswith(("config-seed", "config-sparse")) and command[1:] == ("--verify", "none"):
            expected_code = 0  # what would be drawn is not asked
        if command[0] == "slim" and "--keep-one-copy" in command and expected_code == 1:
            continue  # what can't be stripped can still be kept once
        code, out, err = run(capsys, *arguments)
        assert code == expected_code
        if code == 3:
            assert out == ""
            assert f"[{due['code']}]" in error_lines(err)[0] or due["code"] is None
        if command not in IN_JSON:
            continue
        code, out, err = run(capsys, *arguments, "--format", "json")
        assert (code, err) == (expected_code, "")
        document = one_document(out)
        if code == 3:
            assert document["schema"] == "adaptertool/error/1"
            assert (document["error"]["kind"], document["error"]["code"]) == (due["kind"], due["code"])
            assert len(document["error"]["message"]) <= LONGEST_LINE
        assert contents(adapter.parent) == before
    for form in ("github", "sarif", "junit"):
        code, _, _ = run(capsys, "inspect", str(adapter), "--format", form)
        assert code == 3


@pytest.mark.parametrize(("adapter", "name"), [(name, name) for name in READABLE], indirect=["adapter"])
def test_what_can_be_read(adapter: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    due = EXPECTED[name]
    before = contents(adapter)
    for level in ("none", "sample", "full"):
        code, out, err = run(capsys, "inspect", str(adapter), "--verify", level, "--format", "json")
        assert (code, err) == (0, "")
        codes = sorted(finding["code"] for finding in one_document(out)["findings"])
        if level == "full":
            assert codes == due["findings"]
        for form in ("text", "github", "sarif", "junit"):
            code, out, err = run(capsys, "inspect", str(adapter), "--verify", level, "--format", form)
            assert (code, err) == (0, "")
            if form == "text" and level == "full":
                assert all(finding in out for finding in due["findings"])
    severe = run(capsys, "inspect", str(adapter), "--verify", "full", "--fail-on", "warning")[0]
    assert severe == (1 if due["findings"] else 0)
    for command in ("slim", "restore"):
        for where in (("--dry-run",), ("-o", "out"), ("--in-place",)):
            code, out, err = run(capsys, command, str(adapter), *where, "--format", "json")
            assert code == due["exits"][command]
            assert err == ""
            one_document(out)
            code, out, err = run(capsys, command, str(adapter), *where)
            assert code == due["exits"][command]
            if code == 3:
                assert out == ""
                error_lines(err)
            else:
                assert err == ""
            # A refusal and nothing to do leave everything as it was; no case here has anything else.
            assert contents(adapter) == before
            assert sorted(path.name for path in adapter.parent.iterdir()) == ["adapter"]


def test_no_pickle_ran() -> None:
    """The pickles with code in them would leave this file in the working directory, whichever that was."""
    assert not list(FOLDER.rglob("the-pickle-ran"))
    assert not Path("the-pickle-ran").exists()
