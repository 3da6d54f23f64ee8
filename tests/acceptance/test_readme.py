"""What the README shows is what the program does: every block runs, and every output is what a terminal shows today."""

from __future__ import annotations

import difflib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest
import yaml

from adaptertool.cli.program import parser
from adaptertool.errors import AdapterToolError
from adaptertool.methods import PEFT_TYPES, method_of
from tests.conftest import ROOT
from tests.tools.readme import README, Clone, blocks, without_installs
from tests.tools.refresh_readme import PICTURE, picture, refreshed

if TYPE_CHECKING:
    from collections.abc import Iterator

    import click

TEXT = README.read_text(encoding="utf-8")
RUN = {"bash", "python", "text", "console", "yaml"}
REFRESH = "run python -m tests.tools.refresh_readme, and read what it changes"


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Clone]:
    with Clone(tmp_path / "clone") as made:
        yield made


def commands() -> dict[str, click.Command]:
    program: Any = parser()
    return dict(program.commands)


def test_every_block_is_of_a_kind_that_runs() -> None:
    fences = re.findall(r"^ *```(.*)$", TEXT, re.MULTILINE)
    assert fences[1::2] == [""] * (len(fences) // 2)
    assert set(fences[::2]) <= RUN
    assert len(blocks(TEXT)) == len(fences) // 2


def test_blocks_run_and_outputs_are_what_a_terminal_shows(clone: Clone) -> None:
    """Shell, Python and console blocks, in their order; yaml blocks have tests of their own."""
    today = refreshed(TEXT, clone)
    changed = "\n".join(difflib.unified_diff(TEXT.split("\n"), today.split("\n"), "README.md", "today", lineterm=""))
    assert not changed, f"{REFRESH}\n{changed}"


def test_what_shell_blocks_leave_out_is_installation_alone() -> None:
    for block in blocks(TEXT):
        if block.language == "bash" and block.heading != "Development":
            kept = without_installs(block.body)
            assert kept or block.heading in ("Install", 'Why "it can always be regenerated" is not true')
            assert "adaptertool" not in block.body.replace(kept, "").replace("pip install", "")


def test_the_picture_is_what_a_terminal_shows(clone: Clone) -> None:
    assert picture(clone) == PICTURE.read_text(encoding="utf-8"), REFRESH
    assert f"]({PICTURE.relative_to(ROOT).as_posix()})" in TEXT
    ElementTree.parse(PICTURE)
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", PICTURE.read_text().replace("https://www.textualize.io", ""))


def test_every_command_and_option_is_named() -> None:
    for name, command in commands().items():
        assert f"`adaptertool {name}`" in TEXT
        for parameter in command.params:
            long = [option for option in parameter.opts if option.startswith("--") and option != "--help"]
            assert all(option in TEXT for option in long), (name, long)


def test_no_option_is_named_that_there_is_none_of() -> None:
    """Of what follows `adaptertool COMMAND` in any block, in the line or up to the end of its shell command."""
    known = {name: {opt for one in command.params for opt in one.opts} for name, command in commands().items()}
    named = re.findall(r"adaptertool (inspect|slim|restore|check-merge|explain)\b([^\n`|;>#]*)", TEXT)
    assert len(named) > 20
    for name, rest in named:
        assert set(re.findall(r"(?<=\s)--?[a-z][\w-]*", rest)) <= known[name] | {"--help"}, (name, rest)


def test_every_method_that_slim_knows_is_named() -> None:
    table = TEXT.split("What it knows, method by method:", 1)[1].split("\n\n", 2)[1]
    named = {name for row in table.splitlines()[2:] for name in row.split("|")[1].replace(",", " ").split()}
    assert named == {name for name in PEFT_TYPES if method_of(_config(name)).projections is not None}


def _config(peft_type: str) -> Any:
    from adaptertool.checkpoint.config import AdapterConfig

    return AdapterConfig("{}", {"peft_type": peft_type}, "adapter_config.json")


def test_links_within_lead_somewhere() -> None:
    titles = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    }
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", TEXT):
        assert target.removeprefix("#") in titles if target.startswith("#") else (ROOT / target).exists(), target


def test_files_and_folders_that_are_named_exist() -> None:
    places = (ROOT, ROOT / "adaptertool", ROOT / "tests", ROOT / "adaptertool" / "methods")
    development = TEXT.split("\n## Development", 1)[1]
    named = re.findall(r"`([\w./]+(?:\.py|/))`", development)
    assert len(named) > 20
    assert [name for name in named if not any((place / name).exists() for place in places)] == []


def test_exit_codes_are_those_of_the_program() -> None:
    rows = set(re.findall(r"^\| (\d) \| ", TEXT, re.MULTILINE))
    kinds: list[type[AdapterToolError]] = [AdapterToolError, *AdapterToolError.__subclasses__()]
    assert rows == {"0", "1"} | {str(kind.exit_code) for kind in kinds}


def test_ci_runs_the_development_block() -> None:
    assert "## Development" in (ROOT / ".ci" / "run").read_text()
    first = next(block for block in blocks(TEXT) if block.heading == "Development")
    assert first.language == "bash"
    assert "pytest" in first.body


def yaml_block(key: str) -> dict[str, Any]:
    """The one that has this key at its top."""
    documents: list[dict[str, Any]] = [yaml.safe_load(block.body) for block in blocks(TEXT) if block.language == "yaml"]
    assert len(documents) == 3
    (found,) = (document for document in documents if key in document)
    return found


def test_the_github_workflow(clone: Clone) -> None:
    (job,) = yaml_block("jobs")["jobs"].values()
    lines = [step["run"] for step in job["steps"] if "run" in step]
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("pipx run adaptertool ")
        done = clone.script(line.removeprefix("pipx run "))
        assert done.returncode == 0, (line, done.stdout, done.stderr)
    upload = next(step for step in job["steps"] if "sarif_file" in step.get("with", {}))
    assert json.loads((clone.folder / upload["with"]["sarif_file"]).read_text())["version"] == "2.1.0"


def test_the_gitlab_job(clone: Clone) -> None:
    job = yaml_block("adapter")["adapter"]
    install, line = job["script"]
    assert install == "pip install adaptertool"
    done = clone.script(line)
    assert done.returncode == 0, (line, done.stdout, done.stderr)
    assert ElementTree.parse(clone.folder / job["artifacts"]["reports"]["junit"]).getroot().get("failures") == "0"


@pytest.mark.skipif(
    not (ROOT / ".git").exists() or shutil.which("git") is None, reason="pre-commit installs from a clone"
)
def test_the_pre_commit_hooks(clone: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a repository with one adapter that is fine, one that stores copies, and one that can't be merged."""
    monkeypatch.setenv("PRE_COMMIT_HOME", str(tmp_path / "pre-commit"))
    source, repo = tmp_path / "source", clone.folder
    tracked = subprocess.check_output(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, text=True)
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("fixtures/", "tests/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    revision = commit(source)
    text = next(block.body for block in blocks(TEXT) if block.language == "yaml" and "repos:" in block.body)
    (repo / ".pre-commit-config.yaml").write_text(
        text.replace("ADAPTERTOOL", str(source)).replace("REVISION", revision)
    )
    for name in ("fixtures", "tests", "adaptertool", ".bin"):
        shutil.rmtree(repo / name)
    shutil.copytree(ROOT / "fixtures" / "randlora-llama", repo / "fat")
    shutil.copytree(ROOT / "fixtures" / "beft-llama", repo / "beft")
    commit(repo)

    code, out = pre_commit(repo)
    assert code == 1
    assert re.search(r"adaptertool slim --keep-one-copy\.+Failed", out), out
    assert "files were modified by this hook" in out
    assert re.search(r"adaptertool inspect\.+Passed", out), out
    assert re.search(r"adaptertool check-merge\.+Failed", out), out
    assert re.search(r"^not-mergeable +BEFT .*beft$", out, re.MULTILINE), out

    shutil.rmtree(repo / "beft")
    commit(repo)
    code, out = pre_commit(repo)
    assert code == 0, out
    assert out.count("Passed") == 3


def commit(folder: Path) -> str:
    for arguments in (
        ["init", "-q", "-b", "main"],
        ["add", "-A"],
        ["-c", "user.name=Reader", "-c", "user.email=reader@localhost", "commit", "-q", "--no-verify", "-m", "All"],
    ):
        subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)
    return subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=folder, text=True).strip()


def pre_commit(folder: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "pre_commit", "run", "--all-files", "--color", "never"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr
