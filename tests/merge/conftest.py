"""Bases and adapters that several tests share, made once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

import pytest
import torch
import transformers

from tests.merge.models import RECIPES, save_adapter, save_base
from tests.methods.written import base

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="session", autouse=True)
def _quiet_transformers() -> None:
    transformers.logging.set_verbosity(logging.ERROR)


class Bases(Protocol):
    """Gives the folder of a family's base; do not change what is in it."""

    def __call__(self, family: str, dtype: torch.dtype = torch.float32, *, tied: bool | None = None) -> Path: ...


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    made: dict[tuple[str, torch.dtype, bool | None], Path] = {}

    def make(family: str, dtype: torch.dtype = torch.float32, *, tied: bool | None = None) -> Path:
        key = family, dtype, tied
        if key not in made:
            made[key] = tmp_path_factory.mktemp("base")
            base(family, dtype, tied=tied).save_pretrained(made[key])
        return made[key]

    return make


@pytest.fixture(scope="session")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a recipe's base; do not change what is in it."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = save_base(RECIPES[name], tmp_path_factory.mktemp("base"))
        return made[name]

    return make


@pytest.fixture(scope="session")
def beft_of(base_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a BEFT adapter for a recipe; do not change what is in it."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = save_adapter(RECIPES[name], base_of(name), tmp_path_factory.mktemp("adapter"))
        return made[name]

    return make
