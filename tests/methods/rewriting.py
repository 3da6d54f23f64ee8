"""What every method that slim can shrink has to show, and small changes to files that it must notice."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import adaptertool
from tests.checkpoints import read_config
from tests.methods.written import logits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from adaptertool.operations.rewrite import Rewrite
    from tests.methods.written import Written

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def changed(folder: Path, copy: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of a checkpoint whose tensors were changed."""
    shutil.copytree(folder, copy)
    state = tensors(folder)
    change(state)
    with safe_open(folder / WEIGHTS, "pt") as file:
        metadata = file.metadata()
    save_file(state, copy / WEIGHTS, metadata=metadata)
    return copy


def assert_same_bytes(one: Path, other: Path) -> None:
    """The same tensors, names and bits."""
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype, name
        assert torch.equal(first[name], second[name]), name


def assert_slims_and_restores(written: Written, removed: set[str], work: Path) -> Rewrite:
    """slim takes exactly these tensors, PEFT loads the rest to the same bits, and restore brings the file back.

    Args:
        written: What PEFT wrote.
        removed: The tensors that have to go.
        work: A folder to write to.

    Returns:
        The result of slim.
    """
    before = adaptertool.inspect(written.folder)
    assert before.projections is not None
    assert before.projections.verdict == "regenerable", before.projections.reason
    # A targeted embedding is saved with a copy of the base's, which takes the base to be told apart.
    assert [one.code for one in before.findings if one.code != "ADP110"] == ["ADP101"]
    assert before.projections.removable_bytes == before.projections.bytes > 0

    slimmed = work / "slim"
    result = adaptertool.slim(written.folder, output=slimmed)
    assert result.action == "stripped"
    # The fingerprint of a tiny file can be longer than what was removed.
    assert result.bytes_changed == before.projections.bytes
    assert set(tensors(written.folder)) - set(tensors(slimmed)) == removed
    assert_loads_alike(written, slimmed)

    after = adaptertool.inspect(slimmed, verify="full")
    assert after.projections is not None
    assert after.projections.verdict == "absent"
    assert after.projections.reproduced is True, after.projections.reason
    assert [one for one in after.findings if one.code != "ADP110"] == []
    assert after.adapter.parameters == before.adapter.parameters
    assert adaptertool.slim(slimmed, dry_run=True).action == "nothing-to-do"

    restored = work / "restored"
    assert adaptertool.restore(slimmed, output=restored).action == "restored"
    assert_same_bytes(restored, written.folder)
    assert read_config(restored) == read_config(written.folder)
    assert (restored / WEIGHTS).read_bytes() == (written.folder / WEIGHTS).read_bytes()
    adaptertool.slim(restored, output=work / "again")
    for name in (WEIGHTS, CONFIG):
        assert (work / "again" / name).read_bytes() == (slimmed / name).read_bytes()
    return result


def assert_loads_alike(written: Written, folder: Path) -> None:
    """PEFT loads the folder without an error to the bits that it loads the original to, however it is told to load."""
    for arguments in ({}, {"low_cpu_mem_usage": True}, {"autocast_adapter_dtype": False}):
        expected = logits(written.loaded(written.folder, **arguments))
        assert torch.equal(logits(written.loaded(folder, **arguments)), expected), arguments
    assert torch.equal(logits(written.loaded(folder)), written.logits)


def assert_refused(folder: Path, *words: str) -> None:
    """slim refuses with a reason, and inspect says the same."""
    result = adaptertool.slim(folder, dry_run=True)
    assert result.action == "refused", result.action
    assert result.reason
    for word in words:
        assert word in result.reason, result.reason
    report = adaptertool.inspect(folder, verify="full")
    assert report.projections is not None
    assert report.projections.verdict == "not-regenerable"
    assert [one.code for one in report.findings if one.code != "ADP106"] == ["ADP104"]
