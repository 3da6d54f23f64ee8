"""Pull requests, opened by the real huggingface_hub client."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from adaptertool.checkpoint.hub import push
from adaptertool.checkpoint.hub.folder import HubFolder
from adaptertool.checkpoint.hub.push import open_pull_request
from adaptertool.errors import (
    AdapterToolError,
    NetworkError,
    NotFoundError,
    OfflineError,
    UnauthorizedError,
    UnsupportedError,
    UsageError,
)
from tests.hub.conftest import files_of
from tests.hub.server import Plain

if TYPE_CHECKING:
    from pathlib import Path

    from tests.hub.server import HubServer

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
TOKEN = "hf_secret_of_mine"


@pytest.fixture
def folder(hub: HubServer, randlora: Path) -> HubFolder:
    """A repo that is read, with a token that may write."""
    hub.tokens.add(TOKEN)
    hub.add("org/name", {**files_of(randlora), "old.bin": b"old"})
    opened = HubFolder("org/name", token=TOKEN)
    assert opened.revision
    return opened


@pytest.fixture
def slimmed(tmp_path: Path) -> dict[str, Path]:
    """New files."""
    files = {WEIGHTS: bytes(range(256)) * 5000, CONFIG: b'{"peft_type": "RANDLORA", "save_projection": false}'}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    return {name: tmp_path / name for name in files}


def pushed(folder: HubFolder, files: dict[str, Path], **more: Any) -> str | None:
    return open_pull_request(folder, files, title="Strip it", description="Why:\n\n- because", **more)


def test_a_pull_request_holds_the_files(hub: HubServer, folder: HubFolder, slimmed: dict[str, Path]) -> None:
    repo, before = hub.repos["org/name"], hub.repos["org/name"].refs["main"]
    assert pushed(folder, slimmed, deletes=["old.bin"]) == f"{hub.endpoint}/org/name/discussions/1"
    (pull,) = repo.pulls
    assert (pull.title, pull.description, pull.parent, pull.target) == ("Strip it", "Why:\n\n- because", before, "main")
    due = {**repo.commits[before], **{name: Plain(path.read_bytes()) for name, path in slimmed.items()}}
    del due["old.bin"]
    assert repo.commits[pull.commit] == due
    assert repo.refs["main"] == before
    there = HubFolder("org/name", revision="refs/pr/1")
    for name, path in slimmed.items():
        assert there.open(name).read(0, path.stat().st_size) == path.read_bytes()


def test_the_token_stays_at_the_endpoint(hub: HubServer, folder: HubFolder, slimmed: dict[str, Path]) -> None:
    pushed(folder, slimmed)
    assert {entry.authorization for entry in hub.requests("upload")} == {None}
    assert {entry.authorization for entry in hub.requests("commit", "preupload", "batch")} == {f"Bearer {TOKEN}"}


def test_a_subfolder_and_a_branch(hub: HubServer, randlora: Path, slimmed: dict[str, Path]) -> None:
    hub.tokens.add(TOKEN)
    repo = hub.add("org/name", {"README.md": b""})
    sha = repo.commit({f"last/{name}": data for name, data in files_of(randlora).items()}, "dev")
    pushed(HubFolder("org/name", revision="dev", subfolder="last", token=TOKEN), slimmed)
    (pull,) = repo.pulls
    assert (pull.parent, pull.target) == (sha, "dev")
    assert set(repo.commits[pull.commit]) == set(repo.commits[sha])
    assert repo.commits[pull.commit][f"last/{WEIGHTS}"] == Plain(slimmed[WEIGHTS].read_bytes())


def test_a_commit_is_the_parent(hub: HubServer, folder: HubFolder, slimmed: dict[str, Path]) -> None:
    at_commit = HubFolder("org/name", revision=folder.revision, token=TOKEN)
    assert pushed(at_commit, slimmed) is not None
    assert hub.repos["org/name"].pulls[0].parent == folder.revision


def test_nothing_changed_is_no_pull_request(hub: HubServer, folder: HubFolder, randlora: Path) -> None:
    assert pushed(folder, {name: randlora / name for name in (WEIGHTS, CONFIG)}) is None
    assert pushed(folder, {}) is None
    assert not hub.repos["org/name"].pulls
    assert not hub.requests("commit", "upload")


def test_a_branch_that_moved(hub: HubServer, folder: HubFolder, slimmed: dict[str, Path]) -> None:
    hub.repos["org/name"].commit({"README.md": b"new"})
    with pytest.raises(NetworkError, match="main of org/name is at commit"):
        pushed(folder, slimmed)
    assert not hub.requests("upload", "commit")


@pytest.mark.parametrize("revision", ["refs/pr/3", "v1.0"])
def test_what_is_no_branch(hub: HubServer, folder: HubFolder, slimmed: dict[str, Path], revision: str) -> None:
    hub.repos["org/name"].commit({"a": b""}, revision)
    if not revision.startswith("refs/"):
        hub.fail("preupload", status=404, headers={"X-Error-Code": "RevisionNotFound"})
    with pytest.raises(UsageError, match="against a branch"):
        pushed(HubFolder("org/name", revision=revision, token=TOKEN), slimmed)


def test_without_a_token(hub: HubServer, folder: HubFolder, slimmed: dict[str, Path]) -> None:
    with pytest.raises(UnauthorizedError, match="without a token"):
        pushed(HubFolder("org/name"), slimmed)


def test_offline(hub: HubServer, folder: HubFolder, slimmed: dict[str, Path], request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("offline")
    with pytest.raises(OfflineError):
        pushed(folder, slimmed)


def test_what_git_would_ignore_is_not_left_out(hub: HubServer, folder: HubFolder, slimmed: dict[str, Path]) -> None:
    hub.repos["org/name"].ignored.add(WEIGHTS)
    with pytest.raises(UnsupportedError, match=r"\.gitignore of org/name keeps adapter_model\.safetensors out"):
        pushed(folder, slimmed)
    assert not hub.repos["org/name"].pulls


def test_a_file_that_is_gone(hub: HubServer, folder: HubFolder, tmp_path: Path) -> None:
    with pytest.raises((NotFoundError, NetworkError), match="x"):
        pushed(folder, {"x": tmp_path / "x"})


@pytest.mark.parametrize(
    ("kind", "fault", "error", "words"),
    [
        ("preupload", {"status": 403}, UnauthorizedError, "refused a pull request"),
        ("preupload", {"status": 404}, UnauthorizedError, "may not open a pull request"),
        ("preupload", {"body": b"<html>"}, NetworkError, "could not open"),
        ("preupload", {"body": b"{}"}, NetworkError, "could not open"),
        ("preupload", {"body": b"[]"}, NetworkError, "could not open"),
        ("preupload", {"body": b'{"files": []}'}, NetworkError, "could not open"),
        ("batch", {"status": 403}, UnauthorizedError, "refused a pull request"),
        ("batch", {"body": b"{}"}, NetworkError, "could not open"),
        ("upload", {"status": 403}, NetworkError, "storage server refused"),
        ("verify", {"status": 404}, UnauthorizedError, "may not open"),
        ("commit", {"status": 400}, NetworkError, "refused a pull request on org/name: No"),
        ("commit", {"status": 401}, UnauthorizedError, "refused access"),
        ("commit", {"status": 403}, UnauthorizedError, "refused a pull request on org/name: No"),
        ("commit", {"status": 409}, NetworkError, "changed while"),
        ("commit", {"status": 412}, NetworkError, "changed while"),
        ("commit", {"status": 429}, NetworkError, "limits the rate"),
        ("commit", {"status": 500}, NetworkError, "answered status 500"),
        ("commit", {"cut": 0}, NetworkError, "could not open"),
        ("commit", {"cut": 20}, NetworkError, "could not open"),
        ("commit", {"delay": 3.0}, NetworkError, "no pull request on org/name"),
        ("commit", {"drip": 0.5}, NetworkError, "was opened in 1 seconds"),
        ("batch", {"drip": 0.5}, NetworkError, "was opened in 4 seconds"),
        (
            "batch",
            {"body": b'{"objects": [{"oid": "%s", "size": 1280000}]}' % (b"0" * 64)},
            NetworkError,
            "huggingface_hub cannot use what",
        ),
    ],
)
def test_what_goes_wrong_is_told(
    hub: HubServer,
    folder: HubFolder,
    slimmed: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    fault: dict[str, Any],
    error: type[AdapterToolError],
    words: str,
) -> None:
    monkeypatch.setattr(folder.client, "timeout", 1.0)
    monkeypatch.setattr(push, "PUSH_RATE", 1e9)
    hub.fail(kind, **fault)
    begin = time.monotonic()
    with pytest.raises(error) as caught:
        pushed(folder, slimmed)
    assert type(caught.value) is error
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert TOKEN not in f"{caught.value.message} {caught.value.hint}"
    assert time.monotonic() - begin < 5
    if kind != "commit":
        assert "discussions before" not in (caught.value.hint or "")
    elif fault.get("status", 500) == 500:
        # The Hub may have opened it before the answer was lost.
        assert caught.value.hint is not None
        assert f"{hub.endpoint}/org/name/discussions" in caught.value.hint
        assert bool(hub.repos["org/name"].pulls) == ("status" not in fault)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("kind", ["preupload", "batch", "upload", "commit"])
def test_a_long_wait_is_not_waited_for(
    hub: HubServer, folder: HubFolder, slimmed: dict[str, Path], kind: str, status: int
) -> None:
    hub.fail(kind, status=status, headers={"Retry-After": "99999"})
    begin = time.monotonic()
    with pytest.raises(NetworkError, match=rf"no pull request .* status {status}, and asks to wait 99999 s"):
        pushed(folder, slimmed)
    assert time.monotonic() - begin < 5
    assert not hub.repos["org/name"].pulls


def test_the_client_is_left_as_it_was(hub: HubServer, folder: HubFolder, slimmed: dict[str, Path]) -> None:
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    before = get_session().timeout, get_session().event_hooks
    pushed(folder, slimmed)
    assert (get_session().timeout, get_session().event_hooks) == before


def test_no_progress_bar_without_a_terminal(
    folder: HubFolder, slimmed: dict[str, Path], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    for module in (constants, sys.modules["huggingface_hub.utils.tqdm"]):
        monkeypatch.setattr(module, "HF_HUB_DISABLE_PROGRESS_BARS", None)
    before = are_progress_bars_disabled()
    enable_progress_bars()
    try:
        pushed(folder, slimmed)
        assert capfd.readouterr() == ("", "")
        assert not are_progress_bars_disabled()
    finally:
        if before:
            disable_progress_bars()
