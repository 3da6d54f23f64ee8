"""What PEFT draws in torch's default dtype is other numbers in another one: a stated condition, and only there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

import adaptertool
from adaptertool.projection.basis import DEFAULT_DTYPE
from tests.methods.written import logits, write

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("peft_type", "arguments"),
    [
        ("VERA", {}),
        ("PVERA", {}),
        ("TINYLORA", {}),
        ("RANDLORA", {}),
        ("RANDLORA", {"sparse": True}),
        ("FROD", {}),
        ("UNILORA", {}),
        ("SHIRA", {"random_seed": 3}),
        ("GLORA", {}),
    ],
)
def test_the_default_dtype_is_a_condition_where_it_decides(
    peft_type: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    written = write(tmp_path / "adapter", peft_type, "llama", target_modules=["q_proj", "v_proj"], **arguments)
    result = adaptertool.slim(written.folder, output=tmp_path / "slim")
    assert result.action == "stripped"
    assert result.projections is not None
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        whole, slim = (written.loaded(folder) for folder in (written.folder, tmp_path / "slim"))
    finally:
        torch.set_default_dtype(before)
    same = torch.equal(logits(whole), logits(slim))
    assert same is (DEFAULT_DTYPE not in result.projections.loads_with)
