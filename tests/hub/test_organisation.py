"""All adapters of an organisation, and all that one repo holds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

import adaptertool
from adaptertool.cli import main
from tests.hub.conftest import files_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.hub.server import HubServer

TOKEN = "hf_secret_of_mine"


@pytest.fixture
def org(hub: HubServer, randlora: Path) -> HubServer:
    """An organisation: two adapters, a base model, a gated and a private adapter; and someone else's."""
    files = files_of(randlora)
    hub.tokens.add(TOKEN)
    hub.add("org/one", files)
    hub.add("org/two", {**files, **{f"second/{name}": data for name, data in files.items()}})
    hub.add("org/base", {"config.json": b"{}", "model.safetensors": b""})
    hub.add("org/gated", files, access="gated")
    hub.add("org/private", files, access="private", readers={TOKEN})
    hub.add("other/three", files)
    return hub


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main([*arguments, "--format", "json"])
    return code, json.loads(capsys.readouterr().out)


def locations(document: dict[str, Any]) -> list[str]:
    return [one["target"]["location"] for one in document["results"]]


@pytest.mark.parametrize("target", ["hf://org/", "hf://org"])
@pytest.mark.parametrize("page", [1, 1000])
def test_every_adapter_of_an_organisation(
    target: str, page: int, org: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    org.page = page
    code, document = run(capsys, "inspect", target, "--verify", "none")
    assert code == 3
    assert locations(document) == ["hf://org/gated", "org/one", "org/two"]
    assert document["results"][0]["error"]["kind"] == "gated"
    _, alone = run(capsys, "inspect", "org/one", "--verify", "none")
    assert document["results"][1] == alone
    code, document = run(capsys, "inspect", target, "--verify", "none", "--token", TOKEN)
    assert "org/private" in locations(document)


def test_recursive_looks_into_every_repo(org: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    _, document = run(capsys, "inspect", "-r", "hf://org/", "--verify", "none")
    assert locations(document) == ["hf://org/gated", "org/one", "org/two", "org/two/second"]
    code, document = run(capsys, "inspect", "-r", "org/two", "--verify", "none")
    assert (code, locations(document)) == (0, ["org/two", "org/two/second"])
    code, document = run(capsys, "inspect", "-r", "org/two", "--subfolder", "second", "--verify", "none")
    assert (code, locations(document)) == (0, ["org/two/second"])


def test_a_revision_holds_for_every_folder_of_the_repo(org: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    repo = org.repos["org/two"]
    old = repo.refs["main"]
    repo.commit({"README.md": b""})
    code, document = run(capsys, "inspect", "-r", "org/two", "--revision", old, "--verify", "none")
    assert code == 0
    assert [one["target"]["revision"] for one in document["results"]] == [old, old]
    code, document = run(capsys, "inspect", "-r", "org/two")
    assert (code, document["results"][0]["error"]["kind"]) == (3, "not-found")


def test_slim_an_organisation_and_again(org: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("slim", "-r", "hf://org/", "-o", str(tmp_path / "out"))
    code, document = run(capsys, *arguments)
    assert (code, document["totals"]["actions"]) == (3, {"stripped": 3})
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.safetensors")}
    assert written == {f"{place}/adapter_model.safetensors" for place in ("one", "two", "two/second")}
    code, document = run(capsys, *arguments)
    assert (code, document["totals"]["actions"]) == (3, {"nothing-to-do": 3})


def test_pull_requests_are_opened_once(org: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("slim", "-r", "hf://org/", "--push", "--token", TOKEN)
    code, document = run(capsys, *arguments)
    assert (code, document["totals"]["actions"]) == (3, {"stripped": 4})
    opened = {one["target"]["location"]: one.get("pull_request") for one in document["results"] if "action" in one}
    assert len(org.repos["org/two"].pulls) == 2
    code, document = run(capsys, *arguments)
    assert (code, document["totals"]["actions"]) == (3, {"nothing-to-do": 4})
    again = {one["target"]["location"]: one.get("pull_request") for one in document["results"] if "action" in one}
    assert again == opened
    assert len(org.repos["org/two"].pulls) == 2
    assert len(org.repos["org/one"].pulls) == 1
    # One for other options is another one.
    code, document = run(capsys, "slim", "org/one", "hf://org/private", "--push", "--keep-one-copy", "--token", TOKEN)
    assert document["totals"]["actions"] == {"kept-one-copy": 2}


def test_pull_requests_are_opened_where_none_are_listed(org: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    org.fail("discussions", status=404)
    code, document = run(capsys, "slim", "org/one", "org/two", "--push", "--token", TOKEN)
    assert (code, document["totals"]["actions"]) == (0, {"stripped": 2})


def test_nobody_there(org: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = run(capsys, "inspect", "hf://nobody/")
    assert (code, document["results"][0]["error"]["kind"]) == (3, "not-found")
    org.fail("models", status=500)
    code, document = run(capsys, "inspect", "hf://org/", "other/three", "--verify", "none")
    assert code == 3
    assert document["results"][0]["error"]["kind"] == "network"
    assert document["results"][1]["schema"] == "adaptertool/inspect/1"


@pytest.mark.parametrize("body", [b"{}", b"null", b'{"error": "try later"}'])
def test_a_list_that_is_none(org: HubServer, capsys: pytest.CaptureFixture[str], body: bytes) -> None:
    org.fail("models", body=body)
    code, document = run(capsys, "inspect", "hf://org/")
    assert (code, document["results"][0]["error"]["kind"]) == (3, "network")
    assert "does not answer as the Hub does" in document["results"][0]["error"]["message"]


def test_offline_nobody_can_be_listed(offline: None, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = run(capsys, "inspect", "hf://org/")
    assert (code, document["results"][0]["error"]["kind"]) == (3, "offline")


def test_from_python(org: HubServer) -> None:
    assert list(adaptertool.find("hf://org/", recursive=False)) == ["hf://org/gated", "hf://org/one", "hf://org/two"]
