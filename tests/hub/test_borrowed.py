"""A second adapter's borrowed projections are told by the base that its config names, where looking there surprises nobody."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import snapshot_download
from peft import get_peft_model

import adaptertool
from tests.checkpoints import change_config
from tests.hub.conftest import files_of
from tests.methods.written import base, configured, shake

if TYPE_CHECKING:
    from tests.hub.server import HubServer

SECOND = {"VERA": ("q_proj",), "PVERA": ("q_proj",), "RANDLORA": ("gate_proj", "down_proj")}
"""What a second adapter targets beside a first one on down_proj, so that its own config draws a larger or a smaller pair."""


def save_adapters(folder: Path, peft_type: str) -> tuple[Path, Path]:
    """A first adapter and a second one that PEFT gave the first one's projections, both on `org/base`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base("llama"), configured(peft_type, "llama", target_modules=["down_proj"]), "first")
        model.add_adapter("second", configured(peft_type, "llama", target_modules=[*SECOND[peft_type]]))
        for name in ("first", "second"):
            model.set_adapter(name)
            shake(model)
        model.save_pretrained(str(folder))
    for name in ("first", "second"):
        change_config(folder / name, base_model_name_or_path="org/base")
    return folder / "first", folder / "second"


def add_base(hub: HubServer, folder: Path, **settings: str) -> None:
    base("llama").save_pretrained(folder)
    hub.add("org/base", files_of(folder), **settings)


def conditions_on_the_base(result: adaptertool.Rewrite) -> list[str]:
    assert result.action == "stripped", result.reason
    assert result.projections is not None
    return [one for one in result.projections.loads_with if "--base" in one]


def assert_told_apart(first: Path | str, second: Path | str) -> None:
    assert not conditions_on_the_base(adaptertool.slim(first, dry_run=True))
    result = adaptertool.slim(second, dry_run=True)
    assert (result.action, result.hint is not None) == ("refused", True)
    assert "another adapter" in str(result.reason)
    for one, verdict in ((first, "regenerable"), (second, "not-regenerable")):
        report = adaptertool.inspect(one, verify="full")
        assert report.projections is not None
        assert report.projections.verdict == verdict
        assert ("ADP101" in [one.code for one in report.findings]) == (verdict == "regenerable")


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize("peft_type", SECOND)
def test_by_a_base_in_the_cache_for_an_adapter_on_disk(
    peft_type: str, offline: bool, hub: HubServer, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    add_base(hub, tmp_path / "base")
    first, second = save_adapters(tmp_path, peft_type)
    snapshot_download("org/base")
    if offline:
        request.getfixturevalue("offline")
    before = len(hub.requests())
    assert_told_apart(first, second)
    assert len(hub.requests()) == before


def test_a_base_in_the_cache_that_a_disk_damaged(hub: HubServer, tmp_path: Path) -> None:
    """It proves nothing."""
    add_base(hub, tmp_path / "base")
    first, _ = save_adapters(tmp_path, "VERA")
    blob = Path(snapshot_download("org/base"), "config.json").resolve()
    assert conditions_on_the_base(adaptertool.slim(first, dry_run=True)) == []
    blob.write_bytes(blob.read_bytes().replace(b'"hidden_size": ', b'"hidden_size":7'))
    assert len(conditions_on_the_base(adaptertool.slim(first, dry_run=True))) == 1


@pytest.mark.parametrize("peft_type", ["VERA", "PVERA"])
def test_by_a_base_on_the_hub_for_an_adapter_on_the_hub(peft_type: str, hub: HubServer, tmp_path: Path) -> None:
    add_base(hub, tmp_path / "base")
    for folder in save_adapters(tmp_path, peft_type):
        hub.add(f"org/{folder.name}", files_of(folder))
    assert_told_apart("org/first", "org/second")


@pytest.mark.parametrize("cached", [(), ("config.json",)], ids=str)
def test_no_network_is_used_for_an_adapter_on_disk(cached: tuple[str, ...], hub: HubServer, tmp_path: Path) -> None:
    """Then a sentence says what is left to prove, and with which command."""
    add_base(hub, tmp_path / "base")
    first, _ = save_adapters(tmp_path, "VERA")
    if cached:
        snapshot_download("org/base", allow_patterns=list(cached))
    before = len(hub.requests())
    result = adaptertool.slim(first, dry_run=True)
    assert len(conditions_on_the_base(result)) == 1
    command = f"adaptertool slim {first} --base org/base -o DIR"
    assert command in str(result.hint)
    (finding,) = adaptertool.inspect(first).findings
    assert (finding.code, finding.fix) == ("ADP101", command)
    assert len(hub.requests()) == before
    proven = adaptertool.slim(first, dry_run=True, base="org/base")
    assert (conditions_on_the_base(proven), proven.hint) == ([], None)


@pytest.mark.parametrize("access", ["gated", "private", "absent", "pickled", "local"])
def test_a_base_that_can_not_be_read_proves_nothing(
    access: str, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path in a config that came over the network is not followed."""
    first, _ = save_adapters(tmp_path, "VERA")
    if access in ("gated", "private"):
        add_base(hub, tmp_path / "base", access=access)
    elif access == "pickled":
        hub.add("org/base", {"config.json": b"{}", "pytorch_model.bin": b"PK"})
    elif access == "local":
        base("llama").save_pretrained(tmp_path / "org" / "base")
        monkeypatch.chdir(tmp_path)
    hub.add("org/first", files_of(first))
    result = adaptertool.slim("org/first", dry_run=True)
    assert len(conditions_on_the_base(result)) == 1
    assert "--base org/base" in str(result.hint)


def test_what_inspect_asks_of_the_base(hub: HubServer, tmp_path: Path) -> None:
    """Only where all is compared: a sample of a repo stays at its own few requests."""
    add_base(hub, tmp_path / "base")
    first, _ = save_adapters(tmp_path, "VERA")
    hub.add("org/first", files_of(first))
    for level, asked in (("sample", False), ("full", True)):
        before = len(hub.requests())
        adaptertool.inspect("org/first", verify=level)  # type: ignore[arg-type]
        assert any("org/base" in one.path for one in hub.requests()[before:]) == asked


def test_stripped_already_the_base_tells_too(hub: HubServer, tmp_path: Path) -> None:
    add_base(hub, tmp_path / "base")
    first, second = save_adapters(tmp_path, "VERA")
    for folder in (first, second):
        adaptertool.slim(folder, in_place=True)
        assert json.loads((folder / "adapter_config.json").read_text())["save_projection"] is False
    assert adaptertool.inspect(second).findings == ()
    snapshot_download("org/base")
    assert adaptertool.inspect(first).findings == ()
    (finding,) = adaptertool.inspect(second).findings
    assert finding.code == "ADP108"
    assert "another adapter" in finding.message
    assert adaptertool.slim(second, dry_run=True).action == "nothing-to-do"
