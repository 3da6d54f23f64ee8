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
from tests.tools.make_broken import (
    BASE_CONFIG,
    BASES,
    FOLDER,
    all_cases,
    base_cases,
    base_weights,
    expected,
    expected_of_bases,
    for_the_base,
    table,
    table_of_bases,
)

EXPECTED: dict[str, dict[str, Any]] = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
EXPECTED_BASES: dict[str, dict[str, Any]] = json.loads((FOLDER / BASES / "expected.json").read_text(encoding="utf-8"))
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
    ("check-merge", "--base", "{base}"),
)
IN_JSON = (
    ("inspect",),
    ("slim", "-o", "out"),
    ("slim", "--in-place"),
    ("restore", "-o", "out"),
    ("check-merge", "--base", "{base}"),
)
PIPELINE_FORMATS = ("github", "sarif", "junit")


LONGEST_LINE = 1000
"""Characters of a line on stderr that a person may still read."""


@pytest.fixture(autouse=True)
def parser_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building the parser takes longer than all that these tests do."""
    monkeypatch.setattr(typer.main, "get_command", PARSER)


@pytest.fixture(scope="session")
def good_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model with nothing wrong."""
    return laid(
        tmp_path_factory.mktemp("base"),
        {"config.json": json.dumps(BASE_CONFIG).encode(), "model.safetensors": base_weights()},
    )


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters for it with nothing wrong."""
    place = tmp_path_factory.mktemp("adapters")
    return {name: laid(place / name, files) for name, files in for_the_base().items()}


def laid(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


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
    bases = list(base_cases())
    assert expected(cases) == EXPECTED
    assert expected_of_bases(bases) == EXPECTED_BASES
    assert table_of_bases(bases) == (FOLDER / BASES / "README.md").read_text(encoding="utf-8")
    for base in bases:
        assert contents(FOLDER / BASES / base.name) == dict(base.files)
    assert table(cases) == (FOLDER / "README.md").read_text(encoding="utf-8")
    for case in cases:
        if not case.name.startswith("pickle-"):  # torch.save's bytes differ between torch versions
            assert contents(FOLDER / case.name) == dict(case.files)


@pytest.mark.parametrize(("adapter", "name"), [(name, name) for name in UNREADABLE], indirect=["adapter"])
def test_what_cannot_be_read(adapter: Path, name: str, good_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    due = EXPECTED[name]
    before = contents(adapter.parent)
    for command in COMMANDS:
        arguments = (command[0], str(adapter), *(one.format(base=good_base) for one in command[1:]))
        expected_code = due["exits"][command[0]]
        if name.startswith(("config-seed", "config-sparse")) and command[1:] == ("--verify", "none"):
            expected_code = 0  # what would be drawn is not asked
        if command[0] == "slim" and "--keep-one-copy" in command and expected_code == 1:
            continue  # what can't be stripped can still be kept once
        code, out, err = run(capsys, *arguments)
        assert code == expected_code
        if command[0] == "check-merge" and name.startswith("config-") and out:
            assert "unknown: " in out  # the value is none that merging depends on
            continue
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
    for form in PIPELINE_FORMATS:
        for command in (("inspect",), ("check-merge", "--base", str(good_base))):
            code, out, err = run(capsys, command[0], str(adapter), *command[1:], "--format", form)
            assert code == 3
            if command[0] == "check-merge" and name.startswith("config-") and not err:
                continue
            assert ('errors="1"' if form == "junit" else "could not find out") in out
            error_lines(err)


@pytest.mark.parametrize(("adapter", "name"), [(name, name) for name in READABLE], indirect=["adapter"])
def test_what_can_be_read(adapter: Path, name: str, good_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    for form in ("text", "json", *PIPELINE_FORMATS):
        code, out, err = run(capsys, "check-merge", str(adapter), "--base", str(good_base), "--format", form)
        assert code == due["exits"]["check-merge"]
        if code == 1:
            assert "ADP204" in out or "ADP203" in out
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


@pytest.mark.parametrize("name", EXPECTED_BASES)
def test_broken_base_models(
    name: str,
    adapters: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    due = EXPECTED_BASES[name]
    base = shutil.copytree(FOLDER / BASES / name, tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    for_torch = ("--for-torch", "2.13")
    for adapter, command in (
        ("biased", ("check-merge", "--base", str(base))),
        ("with-projections", ("slim", "--base", str(base), "--dry-run", *for_torch)),
        ("stripped", ("restore", "--base", str(base), "-o", "out", *for_torch)),
    ):
        arguments = (command[0], str(adapters[adapter]), *command[1:])
        # What the configs say of layers is not asked where shapes are.
        expected_code = due["check-merge"] if command[0] == "check-merge" else 3
        if due["kind"] is None and command[0] != "check-merge":
            expected_code = {"slim": 1, "restore": 0}[command[0]]
        for form in ("text", "json", *(PIPELINE_FORMATS if command[0] == "check-merge" else ())):
            shutil.rmtree("out", ignore_errors=True)
            code, out, err = run(capsys, *arguments, "--format", form)
            assert code == expected_code
            if code == 3 and due["kind"] is not None:
                if form == "json":
                    assert one_document(out)["error"]["kind"] == due["kind"]
                else:
                    assert bool(out) == (form != "text")
                    error_lines(err)
        shutil.rmtree("out", ignore_errors=True)
        assert contents(tmp_path) == before


def test_no_code_ran() -> None:
    """Pickles and configs with code in them would leave a file in the working directory, whichever that was."""
    for name in ("the-pickle-ran", "the-code-ran"):
        assert not list(FOLDER.rglob(name))
        assert not Path(name).exists()
