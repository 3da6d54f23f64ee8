"""Random adapters of every method that slim can shrink; `random_checkpoints` as a script runs as many as one likes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.methods.random_checkpoints import METHODS, case_of, check

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("number", [3, 8])
@pytest.mark.parametrize("peft_type", METHODS)
def test_what_goes_is_not_missed_and_comes_back(peft_type: str, number: int, tmp_path: Path) -> None:
    assert check(case_of(number, peft_type), tmp_path)
