"""The table of what the code of each model type says about layers, read.

It was made from real transformers models (`tests/tools/generate_bias_table.py`), each built once as it is by default, once
with each boolean field named like a bias turned around, and once with each number of layers lowered; and from the names that
transformers 5 gives to a file's tensors at loading.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adaptertool.merge.base.names import Names
from adaptertool.merge.base.ties import Tie

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind = Literal["linear", "conv1d", "embedding", "experts", "conv", "unknown"]


@dataclass(frozen=True)
class TieRule:
    """A tie, the classes that have it, and the settings of these fields under which they do.

    A setting has a letter for each field: `t` and `f` for true and false, `-` where the config does not say.
    """

    tie: Tie
    classes: frozenset[str]
    fields: tuple[str, ...]
    settings: frozenset[str]


@dataclass(frozen=True)
class Entry:
    """What is known of one model type. Layers are patterns of module paths, with `#` for layer numbers.

    Attributes:
        rules: Each layer's kind, and when it has a bias: `always`, `never`, `varies`, or a config field, after `not ` where
            that turns it off.
        flags: Those fields, with their defaults.
        parts: The sub-configs that build a part, by dotted path: the model type that the table's model had there, and the
            module paths at which it stands.
        names: The layers, to be looked up under another prefix.
        prefixes: The names under which classes of this type hold their base model.
        classes: The classes of the type, each with the paths at which its parameters stand.
        generating: Those that generate text.
        ties: The layers that are one tensor.
        counts: The field that says how many layers a stack has, by the stack's path.
        moved: Where files hold what transformers renames at loading, beyond a prefix.
    """

    rules: Mapping[str, tuple[Kind, str]]
    flags: Mapping[str, bool]
    parts: Mapping[str, tuple[str, tuple[str, ...]]]
    names: Names
    prefixes: tuple[str, ...]
    classes: Mapping[str, frozenset[str]]
    generating: frozenset[str]
    ties: tuple[TieRule, ...]
    counts: Mapping[str, str]
    moved: Mapping[str, str]


def table_version() -> str:
    """The transformers version that the table was made from."""
    return str(_table()["transformers"])


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(Path(__file__).with_name("bias_table.json").read_bytes())
    return table


@cache
def entry_of(model_type: str) -> Entry | None:
    """What the table has of a model type; None where it does not know it."""
    entry = _table()["models"].get(model_type)
    if entry is None:
        return None
    rules: dict[str, tuple[Kind, str]] = {
        pattern: (kind, rule)
        for kind, by_rule in entry["layers"].items()
        for rule, patterns in by_rule.items()
        for pattern in patterns
    }
    return Entry(
        rules,
        entry["flags"],
        {part: (model_type, tuple(paths)) for part, (model_type, *paths) in entry["parts"].items()},
        Names(rules, entry["prefixes"]),
        tuple(entry["prefixes"]),
        {name: frozenset(roots) for name, roots in entry["classes"].items()},
        frozenset(entry["generating"]),
        tuple(_tie_rule(rule) for rule in entry["ties"]),
        entry["counts"],
        entry["moved"],
    )


def _tie_rule(rule: Mapping[str, Any]) -> TieRule:
    tie = Tie(rule["leaf"], tuple(rule["layers"]), rule["source"], rule["embedding"], tuple(rule["followers"]))
    return TieRule(tie, frozenset(rule["classes"]), tuple(rule["fields"]), frozenset(rule["settings"]))
