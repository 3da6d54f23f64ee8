"""SIGKILL before every file-system call of a slim that opens a pull request, and a signal before each."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.faults.conftest import staged_in
from tests.faults.steps import KILL, Send, Stepper, why_not
from tests.hub.conftest import files_of
from tests.hub.server import HubServer

TOKEN = "hf_secret_of_mine"
COMMAND = ("slim", "org/name", "--push", "--for-torch", "2.13")


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    place = tmp_path / "scratch"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    return place


@pytest.fixture
def stepper(hub: HubServer, randlora: Path, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stepper:
    """Runs the command line against the Hub that the test has started."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    hub.tokens.add(TOKEN)
    hub.add("org/name", files_of(randlora))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    output = tmp_path / "stepper"
    output.mkdir()
    return Stepper(output, [*COMMAND, "--dry-run"], ["inspect", str(randlora)])


def test_a_push_that_ends_early(hub: HubServer, stepper: Stepper, scratch: Path) -> None:
    """The branch stays, a pull request is there as a whole or not at all, and the next run clears the disk."""
    repo = hub.repos["org/name"]
    main = repo.refs["main"]
    whole = stepper.run(*COMMAND)
    assert whole.code == 0, whole.err
    assert list(scratch.iterdir()) == []
    due = repo.commits[repo.pulls[0].commit]
    first = next(number for number, step in enumerate(whole.steps) if step.call == "mkdir")
    for number in range(first, len(whole.steps)):
        step = whole.steps[number]
        if step == whole.steps[number - 1]:
            continue  # one write of several will do
        for end in (KILL, *([Send(signal.SIGTERM)] if step.call in ("write", "fsync") else [])):
            ended = stepper.run(*COMMAND, at=number, do=end)
            where = f"signal {end.number} before step {number}, {step}: {ended.err}"
            assert ended.code in (-end.number, 128 + end.number, 0), where
            left = list(scratch.iterdir())
            assert left == staged_in(scratch), where
            assert len(left) <= (end == KILL), where
            assert repo.refs["main"] == main, where
            assert all(repo.commits[pull.commit] == due for pull in repo.pulls), where
    ended = stepper.run(*COMMAND)
    assert (ended.code, list(scratch.iterdir())) == (0, [])
    stepper.close()
