"""The Python API: the same results as the reports, typed, as values that go anywhere."""

from __future__ import annotations

import ast
import importlib
import json
import pickle
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import adaptertool
from adaptertool.checkpoint.writing.writer import Change, write_changes
from adaptertool.errors import AdapterToolError
from adaptertool.operations.result import Result
from tests.checkpoints import CONFIG, FIXTURES, WEIGHTS, change_config, copy_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Run

RANDLORA, BEFT, BASE = FIXTURES / "randlora-llama", FIXTURES / "beft-llama", FIXTURES / "base-llama"

CALLS: dict[str, tuple[Callable[[Path], Result], list[object]]] = {
    "inspect": (
        lambda _: adaptertool.inspect(RANDLORA, verify="full"),
        ["inspect", RANDLORA, "--verify", "full"],
    ),
    "inspect-nothing-stored": (
        lambda _: adaptertool.inspect(BEFT),
        ["inspect", BEFT],
    ),
    "slim": (
        lambda out: adaptertool.slim(RANDLORA, output=out, dry_run=True),
        ["slim", RANDLORA, "-o", "OUT", "--dry-run"],
    ),
    "slim-refused": (
        lambda _: adaptertool.slim(RANDLORA, for_torch="2.11", dry_run=True),
        ["slim", RANDLORA, "--for-torch", "2.11", "--dry-run"],
    ),
    "restore": (
        lambda _: adaptertool.restore(RANDLORA, dry_run=True),
        ["restore", RANDLORA, "--dry-run"],
    ),
    "check-merge": (
        lambda _: adaptertool.check_merge(BEFT, BASE),
        ["check-merge", BEFT, "--base", BASE],
    ),
}
each_call = pytest.mark.parametrize("name", CALLS)


class Page(HTMLParser):
    """The text of a page, and its elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.elements = "", set[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@each_call
def test_to_dict_is_the_document_of_the_command_line(name: str, tmp_path: Path, run: Run) -> None:
    call, arguments = CALLS[name]
    out = tmp_path / "out"
    printed = run(*(out if one == "OUT" else one for one in arguments), "--format", "json").document
    assert json.loads(json.dumps(call(out).to_dict())) == printed


@each_call
def test_a_result_survives_pickling(name: str, tmp_path: Path) -> None:
    result = CALLS[name][0](tmp_path / "out")
    back = pickle.loads(pickle.dumps(result))
    assert back == result
    assert back.to_dict() == result.to_dict()


@each_call
def test_a_notebook_shows_the_text_report(name: str, tmp_path: Path, run: Run) -> None:
    call, arguments = CALLS[name]
    out = tmp_path / "out"
    text = run(*(out if one == "OUT" else one for one in arguments)).out
    page = Page(call(out)._repr_html_())
    assert page.elements <= {"pre", "span"}
    words = [word for word in text.split() if not (len(word) == 60 and word.isalpha())]  # the bar has other cells there
    assert words
    assert all(word in page.text.split() or word in "".join(page.text.split()) for word in words)


def test_a_notebook_is_shown_no_markup_of_the_checkpoint(tmp_path: Path) -> None:
    folder = copy_of(BEFT, tmp_path / "adapter")
    change_config(folder, base_model_name_or_path="<script>alert(1)</script>[bold]x[/bold]")
    page = adaptertool.inspect(folder)._repr_html_()
    assert "<script" not in page
    assert "<script>alert(1)</script>[bold]x[/bold]" in Page(page).text


def test_an_error_survives_pickling(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(AdapterToolError) as caught:
        adaptertool.inspect(tmp_path)
    back = pickle.loads(pickle.dumps(caught.value))
    assert type(back) is type(caught.value)
    assert (back.message, back.hint, back.code, back.kind) == (
        caught.value.message,
        caught.value.hint,
        caught.value.code,
        caught.value.kind,
    )


def test_every_public_name_is_there_and_documented() -> None:
    for name in adaptertool.__all__:
        value = getattr(adaptertool, name)
        assert name in {"__version__", "CODES"} or value.__doc__
    assert set(adaptertool.__all__) <= set(dir(adaptertool))
    assert not hasattr(adaptertool, "no_such_name")


def test_type_checkers_see_what_is_imported_when_asked_for() -> None:
    """The imports under TYPE_CHECKING, which type checkers read, and the table, which Python reads, say the same."""
    tree = ast.parse(Path(adaptertool.__file__).read_text())
    typed = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("adaptertool.")
        for alias in node.names
    }
    assert set(typed) == set(adaptertool.__all__) - {"__version__"}
    for name, module in typed.items():
        assert getattr(importlib.import_module(module), name) is getattr(adaptertool, name)
    assert (Path(adaptertool.__file__).parent / "py.typed").exists()


def test_values_that_make_no_sense() -> None:
    folder = FIXTURES / "lora-llama"
    with pytest.raises(adaptertool.AdapterToolError, match="verify"):
        adaptertool.inspect(folder, verify="some")  # type: ignore[arg-type]
    with pytest.raises(adaptertool.AdapterToolError, match="dtype"):
        adaptertool.restore(folder, dtype="int8", dry_run=True)
    for jobs in (0, -1):
        with pytest.raises(adaptertool.AdapterToolError, match="jobs"):
            adaptertool.each(adaptertool.inspect, [folder], jobs=jobs)


def test_what_the_operating_system_says_of_a_path_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that no file can have; for whoever is not root, a folder that may not be entered is alike."""
    long = tmp_path / ("x" * 300)
    for call in (
        lambda: adaptertool.inspect(long),
        lambda: adaptertool.slim(long, dry_run=True),
        lambda: adaptertool.check_merge(BEFT, long),
        lambda: adaptertool.slim(RANDLORA, output=long, for_torch="2.13"),
    ):
        with pytest.raises(adaptertool.AdapterToolError, match="File name too long"):
            call()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with (
        pytest.raises(adaptertool.AdapterToolError, match="File name too long"),
        write_changes(Change(None, WEIGHTS, "{}", config_first=True)),
    ):
        pass
