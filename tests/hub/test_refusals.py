"""What the user is told where the Hub refuses, and what offline mode does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import adaptertool
from adaptertool.checkpoint.adapter import open_adapter
from adaptertool.checkpoint.hub.folder import HubFolder
from adaptertool.checkpoint.target import open_target
from adaptertool.errors import (
    AdapterToolError,
    CorruptError,
    GatedError,
    NetworkError,
    NotFoundError,
    OfflineError,
    UnauthorizedError,
    UnsupportedError,
)
from tests.hub import server
from tests.hub.conftest import files_of
from tests.hub.test_reading import download

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.hub.server import HubServer

WEIGHTS = "adapter_model.safetensors"
TOKEN = "hf_secret_of_mine"


def told(opened: Callable[[], object], kind: type[AdapterToolError], *words: str) -> None:
    """It ends in that error, and its message and hint say all of these."""
    with pytest.raises(kind) as caught:
        opened()
    text = f"{caught.value.message} | {caught.value.hint}"
    for word in words:
        assert word in text
    assert "\n" not in text
    assert TOKEN not in text
    assert TOKEN not in repr(caught.value)


def test_a_repo_that_does_not_exist(hub: HubServer) -> None:
    told(
        lambda: open_adapter(open_target("org/nmae")),
        NotFoundError,
        "org/nmae was not found",
        "private",
        "typo",
        "hf auth login",
    )


@pytest.mark.parametrize("kind", ["dataset", "space"])
def test_a_repo_of_another_kind(hub: HubServer, kind: str) -> None:
    hub.others["org/data"] = kind
    told(lambda: open_adapter(open_target("org/data")), NotFoundError, f"org/data is a {kind}", "model repo")
    told(lambda: open_target(f"hf://{kind}s/org/data"), NotFoundError, "no model repo")


def test_a_cached_repo_when_the_hub_is_down(hub: HubServer, randlora: Path) -> None:
    hub.add("org/name", files_of(randlora))
    download("org/name", "adapter_config.json", WEIGHTS)
    hub.fail("info", status=503)
    told(lambda: open_adapter(open_target("org/name")), NetworkError, "503", "HF_HUB_OFFLINE=1")


def test_a_repo_that_does_not_exist_with_a_token(hub: HubServer) -> None:
    hub.tokens.add(TOKEN)
    told(
        lambda: open_adapter(open_target("org/nmae", token=TOKEN)),
        NotFoundError,
        "was not found",
        "this token may read it",
    )


@pytest.mark.parametrize("name", ["a..b", "org/-name", "org/name.", "x" * 120])
def test_a_name_that_no_repo_can_have(hub: HubServer, name: str) -> None:
    told(lambda: open_target(name), NotFoundError, "no local path")
    assert not hub.requests()


def test_a_private_repo(hub: HubServer, randlora: Path) -> None:
    hub.tokens |= {TOKEN, "hf_of_another"}
    hub.add("org/name", files_of(randlora), access="private", readers={"hf_of_another"})
    told(lambda: open_adapter(open_target("org/name")), NotFoundError, "private")
    told(lambda: open_adapter(open_target("org/name", token=TOKEN)), NotFoundError, "private")
    assert open_adapter(open_target("org/name", token="hf_of_another")).weights.tensors


def test_a_gated_repo(hub: HubServer, randlora: Path) -> None:
    hub.tokens.add(TOKEN)
    hub.add("org/name", files_of(randlora), access="gated")
    page = f"{hub.endpoint}/org/name"
    told(lambda: open_adapter(open_target("org/name")), GatedError, "gated", page, "hf auth login")
    told(lambda: open_adapter(open_target("org/name", token=TOKEN)), GatedError, "gated", page, "account")


def test_a_token_that_the_hub_does_not_know(hub: HubServer, randlora: Path) -> None:
    hub.add("org/name", files_of(randlora))
    told(
        lambda: open_adapter(open_target("org/name", token=TOKEN)),
        UnauthorizedError,
        "does not know the token",
        "--token",
    )


@pytest.mark.parametrize("token", [f"{TOKEN}\n", f"{TOKEN} ", f"{TOKEN}é", f"{TOKEN}\0", f"{TOKEN}\r\nX-Evil: 1"])
def test_a_token_that_cannot_be_sent(hub: HubServer, token: str) -> None:
    told(lambda: open_target("org/name", token=token), UnauthorizedError, "characters")
    assert not hub.requests()


def test_a_token_that_may_not_do_this(hub: HubServer) -> None:
    hub.tokens.add(TOKEN)
    hub.add("org/name", {"adapter_config.json": b"{}"})
    hub.fail("resolve", status=403, headers={"X-Error-Message": f"{TOKEN} lacks a permission"})
    told(
        lambda: open_adapter(open_target("org/name", token=TOKEN)),
        UnauthorizedError,
        "refused",
        "*** lacks a permission",
    )


def test_a_revision_that_does_not_exist(hub: HubServer) -> None:
    hub.add("org/name", {"a": b""})
    told(
        lambda: open_adapter(open_target("org/name@v2")),
        NotFoundError,
        "org/name has no revision 'v2'",
        "/org/name/tree/main",
    )
    told(lambda: HubFolder("org/name", revision="0" * 40).files(), NotFoundError, f"no revision '{'0' * 40}'")


def test_a_subfolder_that_does_not_exist(hub: HubServer, randlora: Path) -> None:
    hub.add("org/name", files_of(randlora))
    told(lambda: open_adapter(open_target("org/name", subfolder="nope")), NotFoundError, "nope", "--subfolder")


def test_a_repo_without_an_adapter(hub: HubServer) -> None:
    hub.add("org/name", {"config.json": b"{}", "model.safetensors": b"", "README.md": b""})
    target = open_target("org/name")
    told(lambda: open_adapter(target), NotFoundError, "no PEFT adapter", "config.json", "model.safetensors")


def test_a_repo_with_adapters_in_folders(hub: HubServer, randlora: Path) -> None:
    runs = {f"runs/{number}/{name}": data for number in range(5) for name, data in files_of(randlora).items()}
    hub.add("org/name", {"README.md": b"", **runs})
    target = open_target("org/name")
    told(
        lambda: open_adapter(target), NotFoundError, "5 adapters", "such as hf://org/name/runs/0.", "--subfolder", "-r"
    )


def test_a_mirror_that_knows_no_expand(hub: HubServer, randlora: Path) -> None:
    hub.add("org/name", files_of(randlora))
    hub.fail("resolve", headers={"X-Repo-Commit": ""})
    hub.fail("info", times=1, status=400)
    assert open_adapter(open_target("org/name")).weights.tensors
    hub.faults.clear()
    hub.fail("resolve", headers={"X-Repo-Commit": ""})
    hub.fail("info", status=400)
    told(lambda: open_adapter(open_target("org/name")), NetworkError, "status 400")


@pytest.mark.parametrize("status", [200, 404])
def test_an_empty_repo(hub: HubServer, status: int) -> None:
    hub.add("org/name", {})
    if status == 404:
        hub.fail("tree", status=404, headers={"X-Error-Code": "EntryNotFound"})
    told(lambda: open_adapter(open_target("org/name")), NotFoundError, "org/name is no PEFT adapter")


def test_a_repo_without_weights(hub: HubServer) -> None:
    hub.add("org/name", {"adapter_config.json": b'{"peft_type": "LORA"}', "x.bin": b""})
    told(lambda: open_adapter(open_target("org/name")), NotFoundError, "no adapter weights", "x.bin")


@pytest.mark.parametrize("name", [WEIGHTS, "adapter_config.json"])
def test_a_pointer_that_was_uploaded(
    hub: HubServer, randlora: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """There is no clone in which git-lfs could fetch anything."""
    monkeypatch.setattr(server, "is_lfs", lambda path, file: False)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9000\n"
    hub.add("org/name", {**files_of(randlora), name: pointer.encode()})
    told(lambda: open_adapter(open_target("org/name")).weights.tensors, CorruptError, "pointer", "hf upload")
    download("org/name", WEIGHTS, "adapter_config.json")
    request.getfixturevalue("offline")
    told(lambda: open_adapter(open_target("org/name")).weights.tensors, CorruptError, "pointer", "hf upload")


def test_pickled_weights(hub: HubServer) -> None:
    hub.add("org/name", {"adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.bin": b"PK"})
    told(lambda: open_adapter(open_target("org/name")), UnsupportedError, "pickled", "Download")


def test_too_many_requests(hub: HubServer) -> None:
    hub.add("org/name", {"adapter_config.json": b"{}"})
    hub.fail("resolve", status=429)
    told(lambda: open_adapter(open_target("org/name")), NetworkError, "limits the rate", "token")


def test_a_server_that_is_down(hub: HubServer) -> None:
    hub.add("org/name", {"adapter_config.json": b"{}"})
    hub.fail("resolve", status=503, headers={"X-Error-Message": "maintenance\tuntil noon"})
    told(lambda: open_adapter(open_target("org/name")), NetworkError, "503", "maintenance until noon")


def test_a_server_that_is_no_hub(hub: HubServer) -> None:
    hub.add("org/name", {"a": b""})
    hub.fail("info", body=b"<html>")
    told(lambda: HubFolder("org/name").files(), NetworkError, "something else than JSON", "HF_ENDPOINT")


@pytest.mark.usefixtures("offline")
def test_offline_with_nothing_cached(hub: HubServer) -> None:
    told(lambda: open_target("org/name"), OfflineError, "cache holds no revision 'main'", "HF_HUB_OFFLINE")
    assert not hub.requests()


def test_offline_with_the_adapter_cached(
    hub: HubServer, randlora: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = hub.add("org/name", files_of(randlora))
    download("org/name", "adapter_config.json", WEIGHTS)
    before = len(hub.requests())
    request.getfixturevalue("offline")
    for target in ("org/name", "org/name@main", f"org/name@{repo.refs['main']}"):
        adapter = open_adapter(open_target(target))
        assert adapter.weights.tensors == open_adapter(open_target(randlora)).weights.tensors
        assert (adapter.folder.revision, adapter.folder.requests) == (repo.refs["main"], 0)
    assert adapter.folder.files() == ["adapter_config.json", WEIGHTS]
    told(lambda: open_target("org/name@dev"), OfflineError, "'dev'")
    told(lambda: open_target("org/name@../../x"), OfflineError, "offline")
    told(lambda: adapter.folder.open("README.md"), OfflineError, "not in the cache")
    assert len(hub.requests()) == before


def test_offline_with_half_of_it_cached(hub: HubServer, randlora: Path, request: pytest.FixtureRequest) -> None:
    hub.add("org/name", files_of(randlora))
    download("org/name", "adapter_config.json")
    request.getfixturevalue("offline")
    told(lambda: open_adapter(open_target("org/name")), OfflineError, WEIGHTS, "not in the cache")


def test_offline_knows_what_does_not_exist(hub: HubServer, request: pytest.FixtureRequest) -> None:
    from huggingface_hub.errors import EntryNotFoundError

    hub.add("org/name", {"a": b""})
    download("org/name", "a")
    with pytest.raises(EntryNotFoundError):
        download("org/name", "adapter_config.json")
    request.getfixturevalue("offline")
    told(lambda: open_adapter(open_target("org/name")), NotFoundError, "no PEFT adapter")


def test_a_password_in_the_endpoint_is_not_shown(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint.replace("://", "://me:sesame@"))
    hub.add("org/name", {"adapter_config.json": b"{}", "README.md": b""})
    for target in ("org/nmae", "org/name@v2", "org/name"):
        with pytest.raises(AdapterToolError) as caught:
            open_adapter(open_target(target))
        assert "sesame" not in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside", "a\0b"])
def test_a_tree_with_a_name_that_leads_out(hub: HubServer, randlora: Path, tmp_path: Path, name: str) -> None:
    hub.add("org/name", {**files_of(randlora), name: b"evil"})
    with pytest.raises((NotFoundError, NetworkError)):
        adaptertool.slim("org/name", output=tmp_path / "deep" / "out")
    assert not [path for path in tmp_path.rglob("*") if "outside" in path.name]
    assert not (tmp_path / "deep" / "out").exists()
