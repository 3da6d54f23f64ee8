"""What all tests share: no network, the command line in process and in a process of its own, and checkpoints made once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Set before huggingface_hub is imported anywhere, and inherited by every process that a test starts.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["COLUMNS"] = "200"
for variable in ("HF_TOKEN", "FORCE_COLOR", "NO_COLOR", "ATEN_CPU_CAPABILITY"):
    os.environ.pop(variable, None)

import torch
from hypothesis import settings

from adaptertool.cli import main
from tests.checkpoints import Spec, copy_of, write, write_lora

ROOT = Path(__file__).parents[1]

torch.set_num_threads(1)
settings.register_profile("tests", deadline=None, derandomize=True, database=None, print_blob=False)
settings.load_profile("tests")


@dataclass(frozen=True)
class Outcome:
    """What the command line answered."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout."""
        document: dict[str, Any] = json.loads(self.out)
        return document


Run = Callable[..., Outcome]
Make = Callable[[Spec], Path]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command line in this process."""

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def spawn() -> Run:
    """Run `python -m adaptertool` in a process of its own."""

    def call(*arguments: object, cwd: Path | None = None, **variables: str) -> Outcome:
        return spawn_python("-m", "adaptertool", *arguments, cwd=cwd, **variables)

    return call


def spawn_python(*arguments: object, cwd: Path | None = None, **variables: Any) -> Outcome:
    """Run this Python with the package on its path."""
    path = os.pathsep.join(part for part in (variables.pop("PYTHONPATH", ""), str(ROOT)) if part)
    done = subprocess.run(
        [sys.executable, *(str(argument) for argument in arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path} | variables,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Checkpoints that PEFT wrote, each written once; tests only read them."""
    written: dict[Spec, Path] = {}

    def make(spec: Spec) -> Path:
        if spec not in written:
            written[spec] = write(spec, tmp_path_factory.mktemp("stored") / "adapter")
        return written[spec]

    return make


@pytest.fixture
def made(stored: Make, tmp_path: Path) -> Make:
    """The same checkpoints as copies that the test may change."""

    def make(spec: Spec) -> Path:
        return copy_of(stored(spec), tmp_path / "adapter")

    return make


@pytest.fixture
def adapter(made: Make) -> Path:
    """A plain checkpoint: Llama in float32, dense, all copies."""
    return made(Spec())


@pytest.fixture(scope="session")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA checkpoint, which holds no projections; tests only read it."""
    return write_lora(tmp_path_factory.mktemp("lora") / "adapter")


def pytest_configure(config: pytest.Config) -> None:
    # Signals mean in tests what they mean in a shell, also where pytest was started in the background or by nohup.
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)
    # What PEFT and transformers say of every stripped checkpoint, and of tiny models; it would bury what matters.
    for expected in (
        "Found missing adapter keys:UserWarning",
        ".*is_gradient_checkpointing:FutureWarning",
        "Could not find a config file:UserWarning",
        "Specified to not save basis_A and basis_B:UserWarning",
    ):
        config.addinivalue_line("filterwarnings", f"ignore:{expected}")
