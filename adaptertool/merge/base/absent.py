"""Layers that the adapter names and the base's file does not hold: missing, elsewhere, or not to be told."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from adaptertool.words import layer_number, plural

if TYPE_CHECKING:
    from adaptertool.merge.base.code import ModelCode
    from adaptertool.merge.base.layer import Layer
    from adaptertool.merge.base.names import Resolution
    from adaptertool.merge.base.stored import Stored


class Absent:
    """What becomes of layers that are not in the file.

    Args:
        stored: What the base's file holds.
        code: The base's code and config.
        own_code: Whether code that comes with the base may take the place of transformers' own.
    """

    def __init__(self, stored: Stored, code: ModelCode, *, own_code: bool) -> None:
        self._stored = stored
        self._code = code
        self._own_code = own_code
        self._counts: dict[str, int | None] = {}
        self._odd_blocks: dict[str, bool] = {}

    def is_beyond(self, module: str) -> bool:
        """Whether the model has fewer layers, by its config, than the number in a module's path, whatever its file holds."""
        number = next((layer_number(part) for part in module.split(".") if part.isdecimal()), None)
        if number is None:
            return False
        stack = module.partition(f".{number}.")[0]
        if stack not in self._counts:
            self._counts[stack] = self._code.layer_count(module)
        count = self._counts[stack]
        return count is not None and number >= count

    def beyond(self, layer: Layer) -> Layer:
        """A layer of which `is_beyond` is true."""
        count = plural(self._code.layer_count(layer.module) or 0, "layer")
        reason = f"the base's config says {count}, so that the model has no such layer"
        if not self._code.known:
            return replace(layer, reason=f"{reason}, if its code, which is not known, goes by that")
        return replace(layer, status="blocked", code="ADP202", reason=reason)

    def not_in_file(self, layer: Layer, found: Resolution, *, trained: bool) -> Layer:
        """A layer that the model's code makes and the file does not hold under any name of it."""
        if found.how != "missing" or self._own_code:
            return self.unresolved(layer, found)
        if self._is_elsewhere(layer.module):
            return replace(layer, status="ok", elsewhere=True)
        if trained and not any(part.isdecimal() for part in layer.module.split(".")) and self._holds_the_rest():
            return replace(
                layer,
                status="ok",
                contradiction=True,
                reason="the base stores no such layer, and the model has one: transformers draws it at random at loading, and "
                "PEFT merges into that",
            )
        return self.unresolved(layer, found)

    def unresolved(self, layer: Layer, found: Resolution) -> Layer:
        """A layer that the file does not hold for certain, and the code does not vouch for."""
        if found.how == "ambiguous":
            return replace(
                layer,
                reason=f"{len(found.candidates)} layers of the base's file could be it, such as {found.candidates[0]} and "
                f"{found.candidates[1]}",
            )
        if self._certainly_missing(layer.module):
            return replace(layer, status="blocked", code="ADP202", reason="the base model has no such layer")
        return replace(layer, reason="no tensor in the base's file could be identified as this layer's")

    def _is_elsewhere(self, module: str) -> bool:
        """Whether the file holds others of the same block, and something there that the model's code has no layer for.

        transformers 5 takes fused tensors apart at loading, and renames within blocks.
        """
        parts = module.split(".")
        at = next((index for index, part in enumerate(parts) if part.isdecimal()), None)
        if at is None:
            return False
        block = ".".join(parts[: at + 1])
        if block not in self._odd_blocks:
            pattern = ".".join(["#" if part.isdecimal() else part for part in parts[: at + 1]])
            rest = (name[len(pattern) :] for name in self._code.patterns() if name.startswith(f"{pattern}."))
            known = {found for name in rest if "#" not in name and (found := self._stored.find(block + name).module)}
            heads = {_block_of(name) for name in known}
            self._odd_blocks[block] = len(heads) == 1 and any(
                "weight" in leaves and name not in known and _block_of(name) in heads and not _NORM.search(name)
                for name, leaves in self._stored.modules.items()
            )
        return self._odd_blocks[block]

    def _holds_the_rest(self) -> bool:
        """Whether the file is one of this model type's: it holds a layer of a stack of it."""
        return any(
            self._stored.under_its_name(pattern.replace("#", "0"))
            for pattern in self._code.patterns()
            if "#" in pattern
        )

    def _certainly_missing(self, module: str) -> bool:
        """Whether the base can't have it: other layers of the same stack are there, or no layer has that name at all."""
        leaf = module.rpartition(".")[2]
        if not any(name.rpartition(".")[2] == leaf for name in self._stored.modules):
            # Code that is known can fuse or split layers at loading, so that the file's names say nothing of them. And a class
            # that the table does not know can have a head of its own.
            numbered = any(part.isdecimal() for part in module.split("."))
            if _NORM.search(leaf) and self._code.renames:
                return False
            return numbered and self._code.known and self._code.layer(module) is None
        parts = module.split(".")
        numbers = [index for index, part in enumerate(parts) if part.isdecimal()]
        if not numbers:
            return False
        head, tail = parts[: numbers[0]], parts[numbers[0] + 1 :]
        before = min(layer_number(parts[numbers[0]]), _MOST_SIBLINGS)
        siblings = (".".join([*head, str(number), *tail]) for number in range(before))
        return any(self._stored.under_its_name(sibling) for sibling in siblings)


_MOST_SIBLINGS = 1000
"""Layers of a stack that are looked for; one that has none of these has none."""

_NORM = re.compile(r"norm|(?:^|[._])ln_?\w*$", re.IGNORECASE)
"""Layers that the table leaves out, by what models call them."""


def _block_of(module: str) -> str:
    """A path as far as its first layer number."""
    parts = module.split(".")
    at = next((index for index, part in enumerate(parts) if part.isdecimal()), len(parts))
    return ".".join(parts[: at + 1])
