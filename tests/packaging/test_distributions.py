"""What is published: both distributions, installed where nothing else is, with the newest and with the oldest dependencies.

Needs the package registry, as an installation does; `uv` keeps what it fetched.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from adaptertool import __version__
from adaptertool.checkpoint.config import read_config
from adaptertool.checkpoint.folder import LocalFolder
from adaptertool.methods import method_of
from tests.checkpoints import CONFIG, FIXTURES, WEIGHTS
from tests.conftest import ROOT, Run
from tests.hub.server import HubServer

if TYPE_CHECKING:
    from collections.abc import Iterator

NEWEST, LOWEST = "highest", "lowest-direct"
"""How `uv` chooses the versions of direct dependencies."""


@dataclass(frozen=True)
class Installed:
    """An environment that holds the program and what it depends on, and nothing else."""

    folder: Path

    def run(self, *arguments: object, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        program = self.folder / ("Scripts" if os.name == "nt" else "bin") / "adaptertool"
        return command(program, *arguments, cwd=cwd, **variables)

    def document(self, *arguments: object, **variables: str) -> dict[str, Any]:
        done = self.run(*arguments, "--format", "json", cwd=None, **variables)
        assert "Traceback" not in done.stderr, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document


def command(*arguments: object, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program, without the variables of this one's environment that point Python at this source."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return subprocess.run(
        [str(argument) for argument in arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=environment | variables,
    )


def interpreter(version: str) -> str | None:
    """A Python of this version: on the path, or one that pyenv holds and does not offer at the moment."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [f"python{version}", *map(str, pyenv.glob(f"versions/{version}.*/bin/python{version}"))]
    for candidate in candidates:
        found = shutil.which(candidate)
        if found is not None and command(found, "-c", "import venv").returncode == 0:
            return found
    return None


def uv(*arguments: object) -> str:
    done = command(sys.executable, "-m", "uv", "--no-progress", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel that is made from it."""
    out = tmp_path_factory.mktemp("dist")
    done = command(sys.executable, "-m", "build", "--installer", "uv", "--outdir", out, ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="session")
def wheel(distributions: Path) -> Path:
    (found,) = distributions.glob("*.whl")
    return found


@pytest.fixture(scope="session", params=[NEWEST, LOWEST])
def installed(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in an environment of its own, without torch."""
    return install(wheel, tmp_path_factory.mktemp(request.param) / "venv", sys.executable, request.param)


def install(wheel: Path, folder: Path, python: str, resolution: str) -> Installed:
    uv("venv", "--python", python, folder)
    uv("pip", "install", "--python", folder, "--resolution", resolution, wheel)
    return Installed(folder)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    server = HubServer()
    yield server
    server.close()


def test_both_are_what_the_index_accepts(distributions: Path) -> None:
    done = command(sys.executable, "-m", "twine", "check", "--strict", *sorted(distributions.iterdir()))
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == f"adaptertool-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = Parser().parsestr(archive.read(f"adaptertool-{__version__}.dist-info/METADATA").decode())
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"adaptertool", f"adaptertool-{__version__}.dist-info"}
    kept = (path for path in (ROOT / "adaptertool").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert {path.relative_to(ROOT).as_posix() for path in kept} <= names
    assert "adaptertool/py.typed" in names
    assert f"adaptertool-{__version__}.dist-info/licenses/LICENSE" in names
    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert not any(line.startswith("torch") for line in required)
    assert metadata["Description-Content-Type"] == "text/markdown"
    described = str(metadata.get_payload())
    assert described.startswith("# adaptertool")
    assert not re.findall(r"\]\((?!https?:|#)", described), "an index has no files to link to"


def test_the_sdist_holds_what_a_clone_holds(distributions: Path) -> None:
    (found,) = distributions.glob("*.tar.gz")
    with tarfile.open(found) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "pyproject.toml", "PKG-INFO"} <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no clone to compare it with")
    tracked = command("git", "ls-files", "adaptertool", "tests", "fixtures", cwd=ROOT).stdout.split("\n")
    assert {name for name in tracked if name and (ROOT / name).exists()} <= names


def test_it_runs(installed: Installed, tmp_path: Path) -> None:
    assert installed.run("--version").stdout == f"adaptertool {__version__}\n"
    for name in ((), ("inspect",), ("slim",), ("restore",), ("check-merge",), ("explain",)):
        done = installed.run(*name, "--help")
        assert (done.returncode, done.stderr) == (0, "")
        assert "Usage" in done.stdout
    assert installed.run().returncode in (0, 2)
    for wrong in (["bogus"], ["inspect"], ["inspect", "--format=json"], ["inspect", tmp_path, "--bogus"]):
        done = installed.run(*wrong)
        assert done.returncode == 2, (wrong, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
    absent = installed.run("inspect", tmp_path / "absent")
    assert (absent.returncode, absent.stdout) == (3, "")


def test_it_answers_as_here(installed: Installed, tmp_path: Path, run: Run) -> None:
    """The same documents with these versions of its dependencies as with those of the tests."""
    torch = ["--for-torch", "2.13"]
    for folder in sorted(path.parent for path in FIXTURES.glob(f"*/{CONFIG}")):
        rule = method_of(read_config(LocalFolder(folder))).projections
        if rule is not None and rule.needs_torch:
            continue  # there is none in that environment
        arguments: list[object] = ["inspect", folder, "--verify", "full", *torch]
        assert installed.document(*arguments) == run(*arguments, "--format", "json").document
    for name in ("beft-llama", "lora-llama"):
        arguments = ["check-merge", FIXTURES / name, "--base", FIXTURES / "base-llama"]
        assert installed.document(*arguments) == run(*arguments, "--format", "json").document
    for form in ("text", "github", "sarif", "junit"):
        arguments = ["check-merge", FIXTURES / "beft-llama", "--base", FIXTURES / "base-llama", "--format", form]
        assert installed.run(*arguments).stdout.split() == run(*arguments).out.split()
    source = FIXTURES / "randlora-llama"
    slim, back = tmp_path / "slim", tmp_path / "back"
    assert installed.document("slim", source, *torch, "-o", slim)["action"] == "stripped"
    assert run("slim", source, *torch, "-o", tmp_path / "slim-here").code == 0
    assert (slim / WEIGHTS).read_bytes() == (tmp_path / "slim-here" / WEIGHTS).read_bytes()
    assert installed.document("restore", slim, "-o", back)["action"] == "restored"
    assert run("inspect", back, "--verify", "full", "--format", "json").document["projections"]["copies"] == 1


def test_it_reads_from_the_hub(installed: Installed, hub: HubServer, tmp_path: Path) -> None:
    source = FIXTURES / "randlora-llama"
    hub.add("org/name", {path.name: path.read_bytes() for path in source.iterdir() if path.is_file()})
    variables = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    document = installed.document("inspect", "org/name", "--for-torch", "2.13", **variables)
    assert document["target"]["kind"] == "hub"
    assert document["projections"]["verdict"] == "regenerable"
    out = tmp_path / "slim"
    done = installed.document("slim", "org/name", "--for-torch", "2.13", "-o", out, **variables)
    assert done["action"] == "stripped"
    assert (out / WEIGHTS).exists()
    missing = installed.document("inspect", "org/absent", **variables)
    assert missing["error"]["kind"] in ("not-found", "unauthorized")


@pytest.mark.parametrize("version", ["3.10", "3.12", "3.13", "3.14"])
def test_every_supported_python(version: str, wheel: Path, tmp_path: Path, run: Run) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    there = install(wheel, tmp_path / "venv", python, NEWEST)
    arguments = ["inspect", FIXTURES / "randlora-llama", "--verify", "full", "--for-torch", "2.13"]
    assert there.document(*arguments) == run(*arguments, "--format", "json").document
    assert there.run("--help").returncode == 0


def test_it_runs_without_being_installed(wheel: Path) -> None:
    """As `uvx adaptertool` and `pipx run adaptertool` do it, in an environment of the moment."""
    assert uv("tool", "run", "--from", wheel, "adaptertool", "--version") == f"adaptertool {__version__}\n"
