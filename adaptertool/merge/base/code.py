"""What a model's code and config say about its layers: whether a layer exists, its kind, whether it is made with a bias.

The code decides, not the file: `from_pretrained` leaves out biases that the code does not create, and creates the ones that a
file lacks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from adaptertool.merge.base.code_table import entry_of
from adaptertool.merge.base.paths import numbers_in, pattern_of, with_numbers
from adaptertool.words import layer_number

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from adaptertool.merge.base.code_table import Kind
    from adaptertool.merge.base.ties import Tie

_STACK = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks?)\.\d+\.")
"""The stack of layers, in code that is not known."""


@dataclass(frozen=True)
class CodeLayer:
    """A layer as the model's code creates it from this config.

    Attributes:
        kind: Its kind.
        bias: Whether it is created with a bias; None where the table can't say.
        flag: The config field that decides, by dotted path; None where none does.
        turned: Whether the flag turns the bias off instead of on.
        part: The dotted path of the sub-config that builds it, with a dot at the end; empty for the model's own.
        parameters: The shape of each of its own parameters, by name in the model's order, where the model was built.
        shape: The shape of its weight, where the model was built.
    """

    kind: Kind
    bias: bool | None
    flag: str | None = None
    turned: bool = False
    part: str = ""
    parameters: Mapping[str, tuple[int, ...]] | None = None
    shape: tuple[int, ...] | None = None


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
        self._entry = entry_of(self.model_type) if self.model_type else None
        self._weight_ties: list[tuple[str, ...]] | None = None

    @property
    def known(self) -> bool:
        """Whether the table knows the model type."""
        return self._entry is not None

    @property
    def renames(self) -> bool:
        """Whether transformers renames layers of this type within their blocks when it loads files."""
        return self._entry is not None and bool(self._entry.moved)

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
    def classes(self) -> tuple[str, ...]:
        """The model classes of this type, as far as the table knows them."""
        return tuple(self._entry.classes) if self._entry else ()

    @property
    def generating(self) -> frozenset[str]:
        """Those of them that generate text."""
        return self._entry.generating if self._entry else frozenset()

    def lacking(self, modules: Collection[str], name: str) -> tuple[str, ...]:
        """Those of some module paths that a class of this type certainly has not: it has no parameters there.

        Args:
            modules: The paths.
            name: The class.
        """
        roots = self._entry.classes.get(name, frozenset()) if self._entry else frozenset()
        parts = [path for _, paths in self._other_parts() for path in paths]
        return tuple(module for module in modules if not _is_under(module, roots, parts))

    def likely(self, adapter: Mapping[str, Any], modules: Collection[str]) -> tuple[str, ...]:
        """The classes on which an adapter may have been trained that have all of its modules, as far as the table tells.

        PEFT writes the class of the model (`auto_mapping`) where its own config names no task.

        Args:
            adapter: The adapter's config.
            modules: Paths of the modules that its file names.
        """
        named = adapter.get("auto_mapping")
        trained = named.get("base_model_class") if isinstance(named, dict) else None
        task = adapter.get("task_type")
        end = _TASK_CLASSES.get(task) if isinstance(task, str) else None
        names = [trained] if trained in self.classes else self.classes
        if trained not in self.classes and end is not None:
            names = [name for name in self.classes if (name in self.generating if not end else name.endswith(end))]
        return tuple(name for name in names if isinstance(name, str) and not self.lacking(modules, name))

    def lists(self, module: str) -> bool:
        """Whether a class of this type has this layer under this very name, as far as the table has layers.

        Args:
            module: Its path in the live model.
        """
        numbers = numbers_in(module)
        return pattern_of(module) in self._listed and all(number == str(layer_number(number)) for number in numbers)

    def stands(self, module: str) -> bool:
        """Whether a class of this type has layers beside a module, or is known to have parameters in it.

        Args:
            module: Its path in the live model.
        """
        pattern = pattern_of(module)
        head = f"{pattern.partition('.#.')[0]}.#" if ".#." in pattern else pattern.rpartition(".")[0]
        return head in self._holders or any(
            pattern in roots for roots in (self._entry.classes.values() if self._entry else ())
        )

    @cached_property
    def _listed(self) -> frozenset[str]:
        return frozenset(self.patterns())

    @cached_property
    def _holders(self) -> frozenset[str]:
        """The modules that hold layers, as patterns."""
        steps = (pattern.split(".") for pattern in self._listed)
        return frozenset(".".join(parts[:end]) for parts in steps for end in range(1, len(parts)))

    def ties(self, classes: Collection[str] = ()) -> tuple[Tie, ...]:
        """The layers that are one tensor under this config, as patterns; empty where the code is not known.

        The parts of the config can each have a say: an encoder and a decoder tie as their own configs want it.

        Args:
            classes: The classes that the model may be of; any of the type's where none is named.
        """
        if self._entry is None:
            return ()
        own = [
            rule.tie
            for rule in self._entry.ties
            if (not classes or not rule.classes.isdisjoint(classes))
            and "".join(self._letter(field) for field in rule.fields) in rule.settings
        ]
        inner = [tie.under(path) for code, paths in self._other_parts() for path in paths for tie in code.ties()]
        return tuple(dict.fromkeys((*own, *inner)))

    def tied_with(self, module: str) -> tuple[str, ...]:
        """The other layers that share a weight with this one, in any class of the type, as patterns.

        Args:
            module: Its path in the live model.
        """
        if self._weight_ties is None:
            self._weight_ties = [tie.layers for tie in self.ties() if tie.leaf == "weight"]
        pattern = pattern_of(module)
        found = (layers for layers in self._weight_ties if pattern in layers)
        return tuple(dict.fromkeys(other for layers in found for other in layers if other != pattern))

    def _letter(self, field: str) -> str:
        value: Any = self.config
        for step in field.split("."):
            value = value.get(step) if isinstance(value, dict) else None
        return {True: "t", False: "f"}.get(value, "-") if isinstance(value, bool) else "-"

    def layer(self, module: str) -> CodeLayer | None:
        """The layer at a module path of the live model; None where the table has none, or several that differ."""
        if self._entry is None:
            return None
        if (inner := self._other_part(module)) is not None:
            return inner[0].layer(inner[1])
        pattern = pattern_of(module)
        if pattern in self._entry.rules:
            return self._answer(*self._entry.rules[pattern])
        found = self._entry.names.find(pattern)
        candidates = (found.module,) if found.module else found.candidates
        rules = {self._entry.rules[candidate] for candidate in candidates}
        return self._answer(*rules.pop()) if len(rules) == 1 else None

    def place(self, module: str) -> tuple[ModelCode, tuple[str, ...]]:
        """The code that makes a layer, which is that of a part where it stands in one, and the patterns that it may be there.

        Args:
            module: Its path in the live model, or one that differs from that by wrappers.
        """
        if self._entry is None:
            return self, ()
        if (inner := self._other_part(module)) is not None:
            return inner[0].place(inner[1])
        pattern = pattern_of(module)
        if pattern in self._entry.rules:
            return self, (pattern,)
        found = self._entry.names.find(pattern)
        return self, (found.module,) if found.module else found.candidates

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
                if any(path.startswith(f"{other}.") for other in paths):
                    continue
                # A part is the bare model, unless another stands in it: then it is a class that puts a head on that one.
                headed = any(other.startswith(f"{path}.") for other in paths)
                found = (one for one in code.patterns() if headed or one.partition(".")[0] not in code.wrappers)
                yield from (f"{path}.{pattern}" for pattern in found)

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
        stored = self._entry.moved.get(pattern_of(module))
        if stored is None:
            return None
        return with_numbers(stored, numbers_in(module))

    def bias_flags(self) -> Iterator[tuple[str, bool]]:
        """The fields of the config that are named like a bias and are true or false, by dotted path."""
        yield from _bias_fields(self.config, self.part)

    def _answer(self, kind: Kind, rule: str) -> CodeLayer:
        if rule in ("always", "never"):
            return CodeLayer(kind, rule == "always", part=self.part)
        if rule == "varies":
            return CodeLayer(kind, None, part=self.part)
        if rule.startswith("some "):
            # In a hybrid some of the layers of this name get a bias from the flag; without it none has one.
            return CodeLayer(kind, False if self._flag(rule.removeprefix("some ")) is False else None, part=self.part)
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


_TASK_CLASSES = {
    "CAUSAL_LM": "",
    "SEQ_2_SEQ_LM": "",
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
}
"""How the classes are called that PEFT's tasks are for; empty for those that generate text, which go by many names."""


def _is_under(module: str, roots: Collection[str], parts: Collection[str]) -> bool:
    """Whether a module stands at one of these paths or below, or in a part of another type, of which they say nothing."""
    at = next((part for part in parts if module.startswith(f"{part}.")), None)
    if at is not None:
        return any(f"{at}.".startswith(f"{root}.") or root.startswith(f"{at}.") for root in roots)
    return any(f"{module}.".startswith(f"{root}.") for root in roots)


def _bias_fields(config: Mapping[str, Any], path: str) -> Iterator[tuple[str, bool]]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _bias_fields(value, f"{path}{name}.")
        elif "bias" in name and isinstance(value, bool):
            yield path + name, value
