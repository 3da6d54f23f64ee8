"""Ctrl-C and requests to end, before every file-system call: the exit code that shells expect, and nothing left over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import cycle
from pathlib import Path

import pytest

from tests.conftest import ROOT, Make
from tests.faults.conftest import SPEC, Lay, Scene, contents, staged_in
from tests.faults.steps import Ended, Send, Step, Stepper

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def test_at_every_step(scene: Scene, lay: Lay, stepper: Stepper) -> None:
    source, command = lay()
    place = source.parent
    before = contents(place)
    whole = stepper.run(*command)
    finished = contents(place)
    interrupted = 0
    for number, sent in zip(range(len(whole.steps)), cycle(SIGNALS), strict=False):
        lay()
        ended = stepper.run(*command, at=number, do=Send(sent))
        where = f"{sent.name} before step {number}, {ended.steps[number]}: {ended.err}"
        assert staged_in(place) == [], where
        if ended.code == 0:
            assert contents(place) == finished, where
            continue
        interrupted += 1
        assert ended.code == 128 + sent, where
        assert ended.err == "error: interrupted\nhint: Every checkpoint is whole; run it again.\n", where
        assert contents(place) in (before, finished), where
    assert interrupted > 5


def test_twice(stored: Make, stepper: Stepper, tmp_path: Path) -> None:
    """The second Ctrl-C, while what the first one left is cleared away, changes nothing."""
    output = tmp_path / "out"

    def impatient(step: Step) -> Send:
        return Send(signal.SIGINT)

    ended: Ended = stepper.run("slim", stored(SPEC), "-o", output, "--for-torch", "2.13", do=impatient)
    assert ended.code == 130
    assert len(ended.steps) > 1
    assert list(tmp_path.iterdir()) == []


def test_what_the_caller_ignores_is_ignored(stored: Make) -> None:
    """As under nohup."""
    command = [sys.executable, "-c", STARTING, "inspect", str(stored(SPEC)), "--verify", "none"]
    process = started(["/bin/sh", "-c", 'trap "" HUP; exec "$@"', "sh", *command])
    process.send_signal(signal.SIGHUP)
    out, err = process.communicate(b"go on\n", timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert b"RANDLORA" in out


@pytest.mark.parametrize("form", ["text", "json"])
def test_while_it_starts(form: str, stored: Make) -> None:
    """Importing takes most of the time of a short command."""
    command = [sys.executable, "-c", STARTING, "inspect", str(stored(SPEC)), "--verify", "sample", "--format", form]
    process = started(command)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"interrupted" in (out if form == "json" else err)
    assert b"Traceback" not in out + err


def started(command: list[str]) -> subprocess.Popen[bytes]:
    """A process that runs `STARTING`, once signals are the program's; it goes on when it is given a line."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"importing\n"
    return process


STARTING = """
import sys
import importlib.abc


class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "typer" and not said:
            said.append(name)
            print("importing", flush=True)
            sys.stdin.readline()
        return None


said = []
sys.meta_path.insert(0, Slow())
from adaptertool.cli import main
sys.exit(main())
"""
