"""What methods have in common that train one tensor for many layers, which PEFT then writes under each of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from adaptertool.methods.base import CannotDrawError
from adaptertool.methods.layered import LayerProjections

if TYPE_CHECKING:
    from adaptertool.checkpoint.config import AdapterConfig
    from adaptertool.projection.recipe import Recipe


@dataclass(frozen=True)
class SharedTensors(LayerProjections):
    """See `adaptertool.methods.base.Projections`: nothing draws them, and one copy of each is enough."""

    trained: bool = True

    def basis(
        self, config: AdapterConfig, shapes: Mapping[str, tuple[int, ...]], layout: Mapping[str, Any]
    ) -> NoReturn:
        """They were trained."""
        raise CannotDrawError("they were trained, and nothing draws them again; one copy is enough")

    def basis_of(self, recipe: Recipe, shapes: Mapping[str, tuple[int, ...]]) -> NoReturn:
        """They were trained."""
        raise CannotDrawError("they were trained, and no recipe draws them")

    def names(self, names: Iterable[str]) -> list[tuple[str, str, str]]:
        """Those that match the pattern: name, module and kind."""
        matches = ((name, re.fullmatch(self.pattern, name)) for name in names)
        return [(name, match["module"], match["kind"]) for name, match in matches if match]
