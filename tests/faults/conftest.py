"""Checkpoints and processes for the tests of faults."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from adaptertool.checkpoint.writing.staging import is_staging
from adaptertool.errors import AdapterToolError
from tests.checkpoints import Spec, logits, make_base
from tests.conftest import Make
from tests.faults.steps import Stepper, why_not

SPEC = Spec()
PICKLED = Spec(layout="pickle")
OLDER = Spec(key=5)
"""What lies at an output that is overwritten: the same base, another adapter."""

Logits = Callable[[Path], bytes]
Lay = Callable[[], tuple[Path, list[str]]]


@pytest.fixture(scope="session")
def stepper(stored: Make, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stepper]:
    """Runs the command line one file-system call after the other."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    place = tmp_path_factory.mktemp("stepper")
    warm_up = [
        ["slim", stored(SPEC), "-o", place / "slim", "--for-torch", "2.13"],
        ["slim", stored(PICKLED), "-o", place / "slim-pickled", "--for-torch", "2.13"],
        ["restore", place / "slim", "-o", place / "restored"],
        ["inspect", place / "slim", "--format", "json"],
        ["inspect", place / "missing"],
    ]
    stepper = Stepper(place, *warm_up)
    yield stepper
    stepper.close()


@pytest.fixture(scope="session")
def peft() -> Logits:
    """The bits of what PEFT computes with the adapter in a folder; the same files are loaded once."""
    known: dict[str, bytes] = {}

    def compute(folder: Path) -> bytes:
        state = digest(folder)
        if state not in known:
            known[state] = logits(folder, SPEC, base=make_base("llama"))
        return known[state]

    return compute


def refusal(question: Callable[[], object]) -> AdapterToolError | None:
    """The error of ours that something ends in; any other one is a failure of the test."""
    try:
        question()
    except AdapterToolError as error:
        return error
    return None


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but what is in staging folders."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(is_staging(part) for part in path.relative_to(folder).parts)
    }


def digest(folder: Path) -> str:
    """One hash of them all."""
    total = hashlib.sha256()
    for name, content in contents(folder).items():
        total.update(f"{name} {len(content)} ".encode() + content)
    return total.hexdigest()


def staged_in(folder: Path) -> list[Path]:
    """All staging folders below a folder."""
    return [path for path in sorted(folder.rglob("*")) if is_staging(path.name)]


def fresh(folder: Path) -> Path:
    """An empty folder, whatever is there now."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


@dataclass(frozen=True)
class Scene:
    """A command and what it works on.

    Attributes:
        arguments: The command line; `-o` is followed by the output.
        source: What the source is: `copies`, `pickle` or `stripped`.
        existing: Whether another adapter lies at the output.
    """

    arguments: tuple[str, ...]
    source: str = "copies"
    existing: bool = False

    def __str__(self) -> str:
        return " ".join((*self.arguments, self.source))


SCENES = (
    Scene(("slim", "-o")),
    Scene(("slim", "-o"), "pickle"),
    Scene(("slim", "--force", "-o"), existing=True),
    Scene(("slim", "--in-place")),
    Scene(("slim", "--in-place"), "pickle"),
    Scene(("slim", "--keep-one-copy", "--in-place")),
    Scene(("slim", "--keep-one-copy", "--in-place"), "pickle"),
    Scene(("restore", "-o"), "stripped"),
    Scene(("restore", "--force", "-o"), "stripped", existing=True),
    Scene(("restore", "--in-place"), "stripped"),
)


@pytest.fixture(scope="session")
def stripped(stored: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What slim leaves of the checkpoint."""
    from adaptertool import slim

    output = tmp_path_factory.mktemp("stripped") / "adapter"
    slim(stored(SPEC), output=output, for_torch="2.13")
    return output


@pytest.fixture(params=SCENES, ids=str)
def scene(request: pytest.FixtureRequest) -> Scene:
    scene: Scene = request.param
    return scene


@pytest.fixture
def lay(scene: Scene, stored: Make, stripped: Path, tmp_path: Path) -> Lay:
    """Lay the scene anew: the source, and the command line."""
    sources = {"copies": stored(SPEC), "pickle": stored(PICKLED), "stripped": stripped}

    def laid() -> tuple[Path, list[str]]:
        place = fresh(tmp_path / "place")
        source = shutil.copytree(sources[scene.source], place / "adapter")
        (source / "tokenizer").mkdir()
        (source / "tokenizer" / "vocab.json").write_text("{}")
        command = [scene.arguments[0], str(source), *scene.arguments[1:]]
        if command[-1] == "-o":
            command.append(str(place / "out"))
        if command[0] == "slim":
            command += ["--for-torch", "2.13"]
        if scene.existing:
            shutil.copytree(stored(OLDER), place / "out")
            (place / "out" / "notes.txt").write_text("mine")
        return source, command

    return laid
