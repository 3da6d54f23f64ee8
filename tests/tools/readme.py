"""The README's blocks, and a scratch clone in which they run as a reader would run them, one after the other."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
import textwrap
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.hub.server import HubServer

if TYPE_CHECKING:
    from types import TracebackType

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"

COLUMNS = 92
"""How wide the terminal is in which the shown outputs were printed."""

INSTALLS = re.compile(r"python3? -m venv |\. \S+/bin/activate$|pip install |pipx install |uv tool install |git clone ")
"""Lines that install the program. `.ci/run` does that from a clean clone, and tests/packaging from both distributions."""

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w+)\n(?P<body>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)
_BUILD = re.compile(r"(?<=\d\.\d\d\.\d)\+\w+\b")
"""What a torch version says of its build, which differs from machine to machine."""

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: What stands behind the fence.
        body: The lines between the fences.
        start: Where the body begins in the text.
        heading: The section that it is in.
    """

    language: str
    body: str
    start: int
    heading: str


def blocks(text: str) -> list[Block]:
    """All fenced blocks, in order."""
    headings = [(match.start(), match[1]) for match in re.finditer(r"^## (.+)$", text, re.MULTILINE)]
    return [
        Block(
            match["language"],
            match["body"],
            match.start("body"),
            next((title for at, title in reversed(headings) if at < match.start()), ""),
        )
        for match in _FENCE.finditer(text)
    ]


class Clone:
    """A folder that looks like a clone in which the program is installed, and a Hub on the loopback interface.

    The Hub holds `org/name`, a RandLoRA adapter, and `org/base-model`, its base; `adapter` and `base` in the folder are an
    adapter that merges and its base, and the same in `runs` three times over.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("fixtures", "tests", "adaptertool"):
            ignored = shutil.ignore_patterns("__pycache__", "broken")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        shutil.copytree(ROOT / "fixtures" / "lora-llama", folder / "adapter")
        shutil.copytree(ROOT / "fixtures" / "base-llama", folder / "base")
        self.hub = HubServer()
        self.hub.tokens.add("hf_reader")
        self._publish("org/name", "randlora-llama")
        self._publish("org/other", "lora-llama")
        self._publish("org/base-model", "base-llama")
        programs = folder / ".bin"
        programs.mkdir()
        for name, arguments in (("adaptertool", "-m adaptertool"), ("python", ""), ("python3", "")):
            (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n')
            (programs / name).chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON", "GITHUB_"))}
        self.environment = kept | {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(folder),
            "COLUMNS": str(COLUMNS),
            "TERM": "xterm-256color",
            "LC_ALL": "C.UTF-8",
            "HF_ENDPOINT": self.hub.endpoint,
            "HF_HOME": str(folder / ".hf"),
            "HF_TOKEN": "hf_reader",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }
        for name in ("NO_COLOR", "FORCE_COLOR", "CI"):
            self.environment.pop(name, None)

    def _publish(self, repo: str, fixture: str) -> None:
        files = {path.name: path.read_bytes() for path in (ROOT / "fixtures" / fixture).iterdir() if path.is_file()}
        self.hub.add(repo, files, readers={"hf_reader"})

    def __enter__(self) -> Clone:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hub.close()

    def script(self, text: str) -> subprocess.CompletedProcess[str]:
        """Run lines of bash; the first that fails ends it."""
        return self._started(["bash", "-ec", text])

    def python(self, text: str) -> subprocess.CompletedProcess[str]:
        """Run a Python program from a file, as a reader would."""
        (self.folder / "example.py").write_text(textwrap.dedent(text))
        return self._started([sys.executable, "example.py"])

    def _started(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )

    def elsewhere(self, text: str) -> str:
        """An output as it is on a reader's machine: no scratch folder, the Hub itself, and any build of torch."""
        return _BUILD.sub("", text.replace(str(self.folder), ".").replace(self.hub.endpoint, "https://huggingface.co"))

    def terminal(self, command: str, *, colours: bool = False) -> str:
        """What a terminal shows of a command: what it prints, then its errors."""
        master, slave = pty.openpty()
        printed: list[bytes] = []
        reader = threading.Thread(target=_drain, args=(master, printed))
        reader.start()
        environment = self.environment | ({"COLORTERM": "truecolor"} if colours else {"NO_COLOR": "1"})
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=slave,
            stderr=subprocess.PIPE,
            check=False,
        )
        os.close(slave)
        reader.join()
        os.close(master)
        text = self.elsewhere((b"".join(printed) + done.stderr).decode().replace("\r\n", "\n"))
        if not colours:
            text = _ESCAPE.sub("", text)
        return "".join(f"{line.rstrip()}\n" for line in text.rstrip("\n").split("\n"))


def _drain(master: int, into: list[bytes]) -> None:
    while True:
        try:
            piece = os.read(master, 1 << 16)
        except OSError:  # Linux says so where the other end is closed
            return
        if not piece:
            return
        into.append(piece)


def session(body: str) -> list[tuple[str, str]]:
    """The commands of a console block, each with the output that is shown."""
    found = re.split(r"^\$ (.+)\n", body, flags=re.MULTILINE)
    assert found[0] == "", "a console block begins with a command"
    return list(zip(found[1::2], found[2::2], strict=True))


def elided(printed: str, shown: str) -> str:
    """An output as it is to be shown: where the last line shown is three dots, as many lines as before stand for all.

    Dots alone are the place of an output that was not printed yet.
    """
    lines = shown.split("\n")
    if lines[-2:] != ["...", ""] or len(lines) == 2:
        return printed
    head = printed.split("\n")[: len(lines) - 2]
    return "\n".join([*head, "...", ""])


def without_installs(script: str) -> str:
    """A script for a clone in which the program is installed."""
    return "".join(line for line in script.splitlines(keepends=True) if not INSTALLS.match(line))
