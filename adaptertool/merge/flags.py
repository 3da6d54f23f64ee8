"""What a model's code and config say about its layers: whether a layer exists, its kind, whether it is made with a bias.

The code decides, not the file: `from_pretrained` leaves out biases that the code does not create, and creates the ones that a
file lacks. The table beside this module was made from real transformers models (`tests/tools/generate_bias_table.py`), each
built once as it is by default, once with each boolean field named like a bias turned around, and once with each number of
layers lowered; and from the names that transformers 5 gives to a file's tensors at loading.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adaptertool.merge.resolve import Names
from adaptertool.methods.base import EMBEDDINGS, HEADS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_STACK = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks?)\.\d+\.")
"""The stack of layers, in code that is not known."""

Kind = Literal["linear", "conv1d", "embedding", "experts", "conv", "unknown"]

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True)
class CodeLayer:
    """A layer as the model's code creates it from this config.

    Attributes:
        kind: Its kind.
        bias: Whether it is created with a bias; None where the table can't say.
        flag: The config field that decides, by dotted path; None where none does.
        turned: Whether the flag turns the bias off instead of on.
        part: The dotted path of the sub-config that builds it, with a dot at the end; empty for the model's own.
        parameters: The dimensions of each of its own parameters, by name, where the model was built.
    """

    kind: Kind
    bias: bool | None
    flag: str | None = None
    turned: bool = False
    part: str = ""
    parameters: Mapping[str, int] | None = None


@dataclass(frozen=True)
class _Entry:
    rules: Mapping[str, tuple[Kind, str]]
    flags: Mapping[str, bool]
    parts: Mapping[str, tuple[str, tuple[str, ...]]]
    names: Names
    prefixes: tuple[str, ...]
    tied: bool
    ties: tuple[str, ...]
    counts: Mapping[str, str]
    moved: Mapping[str, str]


class ModelCode:
    """What is known of the code behind one base config.

    Args:
        config: The base model's `config.json`.
        part: The dotted path of this config in the whole one, with a dot at the end.
    """

    def __init__(self, config: Mapping[str, Any], part: str = "") -> None:
        self.config = config
        self.part = part
        model_type = config.get("model_type")
        self.model_type = model_type if isinstance(model_type, str) else None
        self._entry = _entry(self.model_type) if self.model_type else None

    @property
    def known(self) -> bool:
        """Whether the table knows the model type."""
        return self._entry is not None

    @property
    def wrappers(self) -> tuple[str, ...]:
        """The names under which models of this type hold their base model."""
        return self._entry.prefixes if self._entry else ()

    @property
    def leading(self) -> tuple[str, ...]:
        """Those of them that are the name of the model type itself, such as `wav2vec2`, and so of no tower in it."""
        own = (self.model_type or "").replace("-", "_")
        return tuple(name for name in self.wrappers if own.startswith(name))

    @property
    def tied(self) -> bool | None:
        """Whether input and output embeddings are one tensor; None where neither config nor table says."""
        text = self.config.get("text_config")
        for part in (self.config, text if isinstance(text, dict) else {}):
            if isinstance(part.get("tie_word_embeddings"), bool):
                return bool(part["tie_word_embeddings"])
        return self._entry.tied if self._entry else None

    def tied_with(self, module: str) -> tuple[str, ...]:
        """The other layers that share one weight with this one where the config ties embeddings, as patterns.

        Which ones the model's classes tie is in the table; where the code is not known, the usual names tell.

        Args:
            module: Its path in the live model.
        """
        if not self.tied:
            return ()
        if self._entry is None:
            leaf = module.rpartition(".")[2]
            return HEADS if leaf in EMBEDDINGS else EMBEDDINGS if leaf in HEADS else ()
        pattern = _NUMBER.sub("#", module)
        if pattern in self._entry.ties:
            return tuple(other for other in self._entry.ties if other != pattern)
        inner = self._other_part(module)
        return inner[0].tied_with(inner[1]) if inner is not None else ()

    def layer(self, module: str) -> CodeLayer | None:
        """The layer at a module path of the live model; None where the table has none, or several that differ."""
        if self._entry is None:
            return None
        if (inner := self._other_part(module)) is not None:
            return inner[0].layer(inner[1])
        pattern = _NUMBER.sub("#", module)
        if pattern in self._entry.rules:
            return self._answer(*self._entry.rules[pattern])
        found = self._entry.names.find(pattern)
        candidates = (found.module,) if found.module else found.candidates
        rules = {self._entry.rules[candidate] for candidate in candidates}
        return self._answer(*rules.pop()) if len(rules) == 1 else None

    def patterns(self) -> Iterator[str]:
        """The layers of all classes of the model type, as patterns with `#` for layer numbers."""
        if self._entry is None:
            return
        parts = list(self._other_parts())
        for pattern in self._entry.rules:
            if not any(pattern.startswith(f"{path}.") for _, paths in parts for path in paths):
                yield pattern
        for code, paths in parts:
            for path in paths:
                # A part is the bare model, never one of the classes that hold it and put a head on it.
                bare = (pattern for pattern in code.patterns() if pattern.partition(".")[0] not in code.wrappers)
                yield from (f"{path}.{pattern}" for pattern in bare)

    def layer_count(self, module: str) -> int | None:
        """How many layers the stack has that a module is in; None where the config does not say.

        Args:
            module: Its path in the live model.
        """
        if self._entry is None:
            composite = any(isinstance(value, dict) and name.endswith("_config") for name, value in self.config.items())
            count = self.config.get("num_hidden_layers")
            return count if not composite and type(count) is int and _STACK.search(module) else None
        if (inner := self._other_part(module)) is not None:
            return inner[0].layer_count(inner[1])
        parts = module.split(".")
        at = next((index for index, part in enumerate(parts) if part.isdecimal()), len(parts))
        value: Any = self.config
        for step in self._entry.counts.get(".".join(parts[:at]), "?").split("."):
            value = value.get(step) if isinstance(value, dict) else None
        return value if type(value) is int else None

    def moved(self, module: str) -> str | None:
        """Where files hold a module that transformers renames at loading; None where it does not, or not beyond a prefix.

        Args:
            module: Its path in the live model.
        """
        if self._entry is None or self._other_part(module) is not None:
            return None
        stored = self._entry.moved.get(_NUMBER.sub("#", module))
        if stored is None:
            return None
        numbers = iter(_NUMBER.findall(module))
        return ".".join(next(numbers, "#") if part == "#" else part for part in stored.split("."))

    def governed_by(self, flag: str) -> tuple[str, ...]:
        """The layers whose bias this flag decides, as patterns with `#` for layer numbers, of all classes of the model.

        Args:
            flag: As in `CodeLayer.flag`.
        """
        if self._entry is None:
            return ()
        for code, _ in self._other_parts():
            if flag.startswith(code.part):
                return code.governed_by(flag)
        own = flag.removeprefix(self.part)
        return tuple(pattern for pattern, (_, rule) in self._entry.rules.items() if rule.removeprefix("not ") == own)

    def bias_flags(self) -> Iterator[tuple[str, bool]]:
        """The fields of the config that are named like a bias and are true or false, by dotted path."""
        yield from _bias_fields(self.config, self.part)

    def _answer(self, kind: Kind, rule: str) -> CodeLayer:
        if rule in ("always", "never"):
            return CodeLayer(kind, rule == "always", part=self.part)
        if rule == "varies":
            return CodeLayer(kind, None, part=self.part)
        turned = rule.startswith("not ")
        flag = rule.removeprefix("not ")
        value = self._flag(flag)
        return CodeLayer(kind, None if value is None else value != turned, self.part + flag, turned, self.part)

    def _flag(self, flag: str) -> bool | None:
        value: Any = self.config
        for step in flag.split("."):
            if not isinstance(value, dict) or step not in value:
                return self._entry.flags[flag] if self._entry else None
            value = value[step]
        return value if isinstance(value, bool) else None

    def _other_part(self, module: str) -> tuple[ModelCode, str] | None:
        """The code of a part whose model type is not the one that the table's model was built with, and the path in it."""
        for code, paths in self._other_parts():
            for path in paths:
                if module.startswith(f"{path}."):
                    return code, module[len(path) + 1 :]
        return None

    def _other_parts(self) -> Iterator[tuple[ModelCode, tuple[str, ...]]]:
        """Those parts, and the module paths at which they stand, the longest first."""
        for part, (default_type, paths) in (self._entry.parts if self._entry else {}).items():
            inner = self._sub_config(part)
            if inner is not None and inner.get("model_type", default_type) != default_type:
                yield ModelCode(inner, f"{self.part}{part}."), tuple(sorted(paths, key=len, reverse=True))

    def _sub_config(self, part: str) -> Mapping[str, Any] | None:
        value: Any = self.config
        for step in part.split("."):
            value = value.get(step) if isinstance(value, dict) else None
        return value if isinstance(value, dict) else None


def table_version() -> str:
    """The transformers version that the table was made from."""
    return str(_table()["transformers"])


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(Path(__file__).with_name("bias_table.json").read_bytes())
    return table


@cache
def _entry(model_type: str) -> _Entry | None:
    entry = _table()["models"].get(model_type)
    if entry is None:
        return None
    rules: dict[str, tuple[Kind, str]] = {
        pattern: (kind, rule)
        for kind, by_rule in entry["layers"].items()
        for rule, patterns in by_rule.items()
        for pattern in patterns
    }
    return _Entry(
        rules,
        entry["flags"],
        {part: (model_type, tuple(paths)) for part, (model_type, *paths) in entry["parts"].items()},
        Names(rules, entry["prefixes"]),
        tuple(entry["prefixes"]),
        entry["tied"],
        tuple(entry["ties"]),
        entry["counts"],
        entry["moved"],
    )


def _bias_fields(config: Mapping[str, Any], path: str) -> Iterator[tuple[str, bool]]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _bias_fields(value, f"{path}{name}.")
        elif "bias" in name and isinstance(value, bool):
            yield path + name, value


_SCALED = ("gemma", "t5gemma", "vaultgemma", "diffusion_gemma", "embedding_gemma", "minicpm3")


def scales_embeddings(config: Mapping[str, Any]) -> bool:
    """Whether the model's embedding module multiplies what it looks up by a factor.

    Source: the classes named `*ScaledWordEmbedding` in transformers 5.23. Gemma's always do, those of BART's family where
    `scale_embedding` is set.
    """
    text = config.get("text_config")
    parts = [config, text] if isinstance(text, dict) else [config]
    return any(part.get("scale_embedding") is True or str(part.get("model_type")).startswith(_SCALED) for part in parts)
