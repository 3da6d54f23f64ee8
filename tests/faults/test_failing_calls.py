"""Every file-system call of slim and restore failing, one at a time, as on a disk that is full or breaks.

The kernel returns the error, so that the program meets it where it would. Either the call did not matter, or the command ends
with exit code 3 and one line, and everything is as it was.
"""

from __future__ import annotations

import errno
import os
import shutil
from itertools import cycle
from pathlib import Path

import pytest

from tests.conftest import Make
from tests.faults.conftest import SPEC, Lay, Scene, contents, staged_in
from tests.faults.steps import READS, Fail, Go, Step, Stepper

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT, errno.EROFS, errno.EPERM)
REMOVING = ("unlink", "unlinkat", "rmdir")
HARMLESS = ("flock", "chmod", "chown", "utimensat", "link", "copy_file_range", "sendfile", *REMOVING)
"""Calls that the outcome does not hang on, or that there is another way for."""


def test_each_call(scene: Scene, lay: Lay, stepper: Stepper) -> None:
    source, command = lay()
    place = source.parent
    before = contents(place)
    whole = stepper.run(*command)
    finished = contents(place)
    failed = 0
    for number, error in zip(range(len(whole.steps)), cycle(ERRORS), strict=False):
        lay()
        ended = stepper.run(*command, at=number, do=Fail(error))
        step = ended.steps[number]
        where = f"{os.strerror(error)} from step {number}, {step}: {ended.err}"
        if step.call not in REMOVING:
            assert staged_in(place) == [], where
        if ended.code == 0:
            assert step.call in HARMLESS, where
            assert contents(place) == finished, where
            continue
        failed += 1
        assert ended.code == 3, where
        lines = ended.err.splitlines()
        assert len(lines) in (1, 2), where
        assert lines[0].startswith("error: "), where
        assert os.strerror(error) in lines[0], where
        assert contents(place) == before, where
    assert failed > 5


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("command", ["inspect", "slim", "restore"])
def test_a_disk_that_cannot_be_read(number: int, command: str, stored: Make, stepper: Stepper, tmp_path: Path) -> None:
    """Each read of the checkpoint in turn fails."""
    source = stored(SPEC)
    options = {
        "inspect": ("--verify", "full", "--for-torch", "2.13"),
        "slim": ("-o", str(tmp_path / "out"), "--for-torch", "2.13"),
        "restore": ("-o", str(tmp_path / "out")),
    }
    arguments = (command, str(source), *options[command])
    before = contents(source)

    def of_the_source(step: Step) -> bool:
        return step.call in READS and step.paths[0].startswith(str(source))

    whole = stepper.run(*arguments, reads=True)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    reads = [at for at, step in enumerate(whole.steps) if of_the_source(step)]
    assert len(reads) >= 3
    # The last one is that of the config, once more, to see that it is still the same.
    for at in (*reads[:: max(1, len(reads) // 8)], reads[-1]):
        ended = stepper.run(*arguments, at=at, do=Fail(number), reads=True)
        assert ended.code == 3
        first, *rest = ended.err.splitlines()
        assert first.startswith("error: cannot read")
        assert os.strerror(number) in first
        assert len(rest) <= 1
        assert ended.out == ""
        assert list(tmp_path.iterdir()) == []
    assert contents(source) == before


def test_a_file_system_without_links_and_locks(scene: Scene, lay: Lay, stepper: Stepper) -> None:
    """Some network and memory-card file systems have neither, nor owners and modes."""
    source, command = lay()
    stepper.run(*command)
    finished = contents(source.parent)
    lay()
    missing = {"link": errno.EPERM, "linkat": errno.EPERM, "flock": errno.ENOTSUP, "chmod": errno.EPERM}

    def answer(step: Step) -> Fail | Go:
        return Fail(missing[step.call]) if step.call in missing else Go()

    assert stepper.run(*command, do=answer).code == 0
    assert contents(source.parent) == finished
    assert staged_in(source.parent) == []
