"""Projections that are stored under a config which says that they are not: PEFT ignores them until `restore` sets the flag."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

import adaptertool
from tests.checkpoints import change_config, read_config
from tests.methods.rewriting import changed, tensors
from tests.methods.written import logits, write

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Run

PARTS = {
    "VERA": ("save_projection", "vera_B"),
    "PVERA": ("save_projection", "pvera_B"),
    "RANDLORA": ("save_projection", "randlora_B"),
    "TINYLORA": ("save_projection", "tinylora_P"),
    "UNILORA": ("save_indices", "unilora_scales_B"),
}
"""The flag, and a part of the names of tensors that it is about."""


@pytest.mark.parametrize("peft_type", PARTS)
def test_restore_says_that_it_changes_the_config_alone_and_what_peft_does_then(
    peft_type: str, tmp_path: Path, run: Run
) -> None:
    flag, part = PARTS[peft_type]
    written = write(tmp_path / "adapter", peft_type)

    def enlarge(state: dict[str, torch.Tensor]) -> None:
        for name in state:
            if part in name:
                state[name] *= 3

    folder = changed(written.folder, tmp_path / "enlarged", enlarge)
    change_config(folder, **{flag: False})
    assert torch.equal(logits(written.loaded(folder)), written.logits)

    outcome = run("restore", folder, "-o", tmp_path / "restored")
    assert outcome.code == 0
    said = " ".join(outcome.out.split())
    assert f"changed the config alone: {flag} becomes true" in said
    assert "outputs change" in said
    assert "from the base" not in said
    assert adaptertool.restore(folder, dry_run=True).tensors_changed == 0
    assert read_config(tmp_path / "restored") == {**read_config(folder), flag: True}
    assert tensors(tmp_path / "restored").keys() == tensors(folder).keys()
    assert not torch.equal(logits(written.loaded(tmp_path / "restored")), written.logits)
