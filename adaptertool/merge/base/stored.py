"""What a base's file holds of the modules of the live model, and under which names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptertool.merge.base.names import Names, Resolution, is_quantized, modules_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.merge.base.code import ModelCode

_PARAMETRISED = frozenset(("original0", "original1", "original", "weight_g", "weight_v", "weight_orig", "weight_u"))
"""What weight norm, spectral norm and pruning store in place of a weight."""

_OLD_BIAS = "beta"
"""What BERT's first files call the bias of a LayerNorm; transformers renames it at loading (`conversion_mapping.py`)."""


class Stored:
    """The modules of a base's file, asked by the paths that they have in the live model.

    Args:
        files: The base's tensors, each with its file.
        code: Its code and config.
        renamed: Live module path -> module in the file, where the model itself was asked how it loads the file.

    Attributes:
        modules: The names of each module's own tensors, by its name in the file.
    """

    def __init__(self, files: Mapping[str, str], code: ModelCode, renamed: Mapping[str, str]) -> None:
        self.modules = modules_of(files)
        self._files = files
        self._code = code
        self._renamed = renamed
        self._names = Names(self.modules, code.wrappers, code.leading)

    def find(self, module: str) -> Resolution:
        """What the file calls a module of the live model."""
        if module in self._renamed:
            return Resolution("exact", self._renamed[module])
        found = self._names.find(module)
        moved = self._code.moved(module) if found.how != "exact" else None
        if moved is not None and (renamed := self._names.find(moved)).module is not None:
            return renamed
        if found.how == "missing" and f"{module}.parametrizations.weight" in self.modules:
            return Resolution("exact", f"{module}.parametrizations.weight")
        return found

    def under_its_name(self, module: str) -> str | None:
        """The module of the file that has this name, whatever the model renames at loading; None where it is not certain."""
        return self._names.find(module).module

    def bias_of(self, module: str, found: Resolution) -> str | None:
        """The tensor that is a layer's bias; None where the file holds none.

        Args:
            module: Its path in the live model.
            found: What the file calls it.
        """
        if f"{found.module}.bias" in self._files:
            return f"{found.module}.bias"
        if f"{found.module}.{_OLD_BIAS}" in self._files and module.endswith("LayerNorm"):
            return f"{found.module}.{_OLD_BIAS}"
        moved = self._code.moved(f"{module}.bias")
        return moved if moved in self._files else None

    def is_parametrised(self, stored: str | None) -> bool:
        """Whether a module of the file has no weight as such, but what it is computed from."""
        leaves = self.modules.get(stored or "", frozenset())
        return f"{stored}.parametrizations.weight" in self.modules or not leaves.isdisjoint(_PARAMETRISED)

    def is_quantized(self, stored: str | None) -> bool:
        """Whether the file holds a module in a quantised format."""
        return is_quantized(self.modules.get(stored or "", ()))
