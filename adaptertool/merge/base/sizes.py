"""The shapes that a config's fields give to layers, held against what the base's file holds.

Where the two differ, transformers does not load the base (or draws the layer anew, under `ignore_mismatched_sizes`). The
table beside this module was made from real transformers models (`tests/tools/generate_sizes.py`).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptertool.findings import Finding
from adaptertool.merge.base.paths import pattern_of
from adaptertool.merge.result import LayerResult
from adaptertool.methods.base import HEADS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from adaptertool.merge.base.code import ModelCode
    from adaptertool.merge.base.files import Base
    from adaptertool.merge.base.live import LiveModel


@dataclass(frozen=True)
class Mismatch:
    """A weight of the base's file that has another shape than its config gives the layer.

    Attributes:
        module: The layer, as the file names it.
        stored: The shape in the file.
        made: The shape that the config gives; a dimension that is not known is None.
    """

    module: str
    stored: tuple[int, ...]
    made: tuple[int | None, ...]


def mismatches(base: Base, code: ModelCode, live: LiveModel | None = None) -> tuple[Mismatch, ...]:
    """The weights whose headers were read so far and that transformers does not load into the model of this config.

    Args:
        base: The base.
        code: Its code.
        live: The model, where it was built: it is asked then, and not the table.
    """
    # What is quantised is packed, and code that comes with the files makes layers of its own.
    if isinstance(base.config.get("quantization_config"), dict) or isinstance(base.config.get("auto_map"), dict):
        return ()
    found = []
    for module, made in _of_the_model(live) if live is not None else _of_the_table(base, code):
        stored = base.shape_if_read(f"{module}.weight")
        if stored is None or len(stored) != len(made):
            continue
        if any(number not in (None, other) for number, other in zip(made, stored, strict=True)):
            found.append(Mismatch(module, stored, made))
    return tuple(found)


def mismatch_findings(found: tuple[Mismatch, ...]) -> Iterator[Finding]:
    """What transformers does about them."""
    if not found:
        return
    one, *rest = found
    more = f", and so of {len(rest)} more" if rest else ""
    message = (
        f"The base's config does not fit its file: {one.module} has shape {list(one.stored)} there, and the model that the "
        f"config makes has {list(one.made)}{more}. transformers raises when it loads the base, or, where it is told to ignore "
        "that, draws the layer at random"
    )
    yield Finding("ADP203", message, tuple(f"{other.module}.weight" for other in found), len(found))


def mismatches_unknown(found: tuple[Mismatch, ...]) -> tuple[LayerResult, ...]:
    """The same where the model was not built: a setting may shape the layer that the table does not know."""
    return tuple(
        LayerResult(
            one.module,
            "unknown",
            reason=f"the base's file holds it in shape {list(one.stored)}, and by its config's sizes it is "
            f"{[number if number is not None else '?' for number in one.made]}: transformers loads no such base",
        )
        for one in found
    )


def _of_the_model(live: LiveModel) -> Iterator[tuple[str, tuple[int | None, ...]]]:
    for path, layer in live.layers.items():
        if (module := live.renamed.get(path)) is not None and layer.shape is not None:
            yield module, layer.shape


def _of_the_table(base: Base, code: ModelCode) -> Iterator[tuple[str, tuple[int | None, ...]]]:
    # Layers of one pattern are alike, and there can be tens of thousands of experts.
    shapes: dict[str, tuple[int | None, ...] | None] = {}
    for name in base.files:
        module, _, leaf = name.rpartition(".")
        # Which head a model has depends on its class.
        if leaf != "weight" or module.rpartition(".")[2] in HEADS:
            continue
        pattern = pattern_of(module)
        if pattern not in shapes:
            shapes[pattern] = made_shape(code, module)
        if (shape := shapes[pattern]) is not None:
            yield module, shape


def made_shape(code: ModelCode, module: str) -> tuple[int | None, ...] | None:
    """The shape of a layer's weight as the model's code makes it from the config; a dimension that is not known is None.

    Args:
        code: The base's.
        module: The layer's path, in the live model or in the file.

    Returns:
        None where nothing is known.
    """
    inner, patterns = code.place(module)
    entry = _table()["models"].get(inner.model_type)
    if entry is None:
        return None
    pairs = [_longest_end(entry["layers"], pattern) for pattern in patterns]
    if not pairs or pairs[0] is None or any(pair != pairs[0] for pair in pairs):
        return None
    computed = frozenset(entry.get("heads", ()))
    return tuple(value_of(inner.config, expression, computed) if expression else None for expression in pairs[0])


def _longest_end(layers: Mapping[str, list[str]], pattern: str) -> list[str] | None:
    parts = pattern.split(".")
    ends = (".".join(parts[at:]) for at in range(len(parts)))
    return next((layers[end] for end in ends if end in layers), None)


def value_of(config: Mapping[str, Any], expression: str, computed: Collection[str] = ()) -> int | None:
    """What an expression comes to under a config: a sum of products of fields, by dotted path, numbers and quotients.

    Args:
        config: The config.
        expression: Such as `num_attention_heads*head_dim+2*num_key_value_heads*head_dim`.
        computed: The parts of the config in which the width of a head that is not given is computed, see the table.

    Returns:
        None where a field is no positive number.
    """
    total = 0
    for product in expression.split("+"):
        factors = [_factor(config, name, computed) for name in product.split("*")]
        known = [one for one in factors if one is not None]
        if len(known) < len(factors):
            return None
        total += math.prod(known)
    return total


def _factor(config: Mapping[str, Any], name: str, computed: Collection[str]) -> int | None:
    if name.isdecimal():
        return int(name)
    if "/" in name:
        above, below = (_factor(config, one, computed) for one in name.split("/"))
        return above // below if above is not None and below is not None and above % below == 0 else None
    path, _, field = name.rpartition(".")
    part: Any = config
    for step in path.split(".") if path else ():
        part = part.get(step) if isinstance(part, dict) else None
    if not isinstance(part, dict):
        return None
    value = part.get(field)
    if value is None and field == "head_dim" and (f"{path}." if path else "") in computed:
        width, heads = part.get("hidden_size"), part.get("num_attention_heads")
        value = width // heads if type(width) is type(heads) is int and heads > 0 else None
    return value if type(value) is int and value > 0 else None


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(Path(__file__).with_name("sizes.json").read_bytes())
    return table
