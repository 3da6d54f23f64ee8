"""Write `adaptertool/merge/base/sizes.json`: which fields of a config make the dimensions of which layer's weight.

    python -m tests.tools.generate_sizes [MODEL_TYPE …]

Every model type of the installed transformers is built on the meta device, with few layers, from three configs whose sizes are
numbers that tell themselves and their products apart. A dimension that the same expression in the config's fields explains in
all three is written down; one that several explain, or none, is not. With model types named, only these are printed.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import CONFIG_MAPPING

from adaptertool.merge.base.code import ModelCode
from adaptertool.merge.base.paths import pattern_of
from adaptertool.merge.base.sizes import value_of
from tests.tools.model_trees import (
    BUILD_ERRORS,
    build,
    classes_of,
    default_config,
    layers_of,
    quiet,
    shrunk,
    sub_configs,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from transformers import PreTrainedConfig

    Shapes = dict[str, tuple[int, ...] | None]

TABLE = Path(__file__).parents[2] / "adaptertool" / "merge" / "base" / "sizes.json"

_WIDTHS = ("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "embedding_size", "word_embed_proj_dim", "lru_width")
_HEADS = (
    "num_attention_heads",
    "num_heads",
    "n_head",
    "n_heads",
    "encoder_attention_heads",
    "decoder_attention_heads",
)
_GROUPS = ("num_key_value_heads",)
_HEAD_WIDTHS = ("head_dim", "d_kv")
_INNER = (
    "intermediate_size",
    "ffn_dim",
    "d_ff",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "n_inner",
    "d_inner",
    "hidden_dim",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
)
_ROWS = ("vocab_size",)

_FACTORS = re.compile(r"ratio|expan[ds]|mult|factor|per_")
"""Numbers by which a dimension may be a multiple of another: with each set of sizes they are others."""

_NO_SWITCHES = re.compile(r"^(output_|return_|use_cache|tie_|is_|add_cross|chunk_size)|bias|dropout")
"""Fields of every config that shape no layer, or by no size."""

_MOST_CLASSES = 3
"""In so many classes of a type switches are turned; layers that further ones have besides are heads."""


def _sizes(round_: int, at: int) -> Iterator[tuple[str, int]]:
    """Values for the fields of one part of a config: widths that heads divide, and all else unlike any other.

    Args:
        round_: Which of the three configs it is for.
        at: The number of the part.
    """
    heads, groups = ((8, 2), (12, 3), (16, 4))[round_]
    yield from ((name, heads) for name in _HEADS)
    yield from ((name, groups) for name in _GROUPS)
    yield from ((name, (24, 40, 56)[round_] + 8 * at) for name in _HEAD_WIDTHS)
    # 96 is an even multiple of all numbers of heads.
    yield from ((name, 96 * ((13, 17, 29)[round_] + 6 * at + index)) for index, name in enumerate(_WIDTHS))
    yield from ((name, 4 * ((151, 211, 283)[round_] + 16 * at + index)) for index, name in enumerate(_INNER))
    yield from ((name, (133301, 144507, 156007)[round_] + 10 * at + index) for index, name in enumerate(_ROWS))


def configured(config: PreTrainedConfig, round_: int, *, heads_alone: bool = False) -> PreTrainedConfig:
    """A copy of a config with one of the three sets of sizes; all layers are in the first, which need not be alike.

    Args:
        config: A type's default.
        round_: Which set.
        heads_alone: Whether the width of a head is left to be computed from the others.
    """
    changed = copy.deepcopy(config)
    for at, (_, part) in enumerate(sub_configs(changed)):
        known = part.to_dict()
        values: dict[str, Any] = {name: value for name, value in _sizes(round_, at) if type(known.get(name)) is int}
        # A width that is left open is computed, from others that would seem to be its reason.
        values |= {name: value for name, value in _sizes(round_, at) if name in _INNER and known.get(name, 0) is None}
        if "num_attention_heads" in known:
            # Code asks for it whether or not the config's class has it.
            values["head_dim"] = dict(_sizes(round_, at))["head_dim"]
        values |= {
            name: value + round_
            for name, value in known.items()
            if _FACTORS.search(name) and type(value) in (int, float)
        }
        if heads_alone:
            values.pop("head_dim", None)
            values |= {"head_dim": None} if "head_dim" in known else {}
        for name, value in values.items():
            # Some are computed from others, as a property of the config's class.
            with contextlib.suppress(AttributeError):
                setattr(part, name, value)
    for small in (changed, None) if not round_ else (None, changed):
        try:
            # What a config's class computes from others it computes again.
            again = type(config).from_dict(copy.deepcopy((small or shrunk(changed)).to_dict()))
        except BUILD_ERRORS:
            continue
        return again
    return changed


def expressions(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """What dimensions may be made of: a field, a multiple of one, heads times their width, those of query, key and value."""
    own = [name for name in (*_WIDTHS, *_INNER, *_ROWS) if type(config.get(name)) is int]
    for name in own:
        yield prefix + name
        if name not in _ROWS:
            yield from (f"{times}*{prefix}{name}" for times in (2, 3))
    heads = [prefix + name for name in _HEADS if type(config.get(name)) is int]
    groups = [prefix + name for name in _GROUPS if type(config.get(name)) is int]
    for width in (prefix + name for name in _HEAD_WIDTHS if type(config.get(name)) is int):
        yield width
        yield from (f"{times}{number}*{width}" for number in (*heads, *groups) for times in ("", "2*"))
        yield from (f"{one}*{width}+2*{other}*{width}" for one in heads for other in groups)
    for width in (prefix + name for name in _WIDTHS[:3] if type(config.get(name)) is int):
        yield from (f"{other}*{width}/{one}" for one in heads for other in groups)
        yield from (f"{width}+2*{other}*{width}/{one}" for one in heads for other in groups)
    for name, part in config.items():
        if isinstance(part, dict):
            yield from expressions(part, f"{prefix}{name}.")


def _shapes(model_type: str, config: PreTrainedConfig, most: int | None = None) -> list[Shapes]:
    """Of each class, the shapes of its layers' weights by pattern; None where layers of one pattern differ."""
    found: list[Shapes] = []
    for model_class in classes_of(model_type)[:most]:
        shapes: Shapes = {}
        try:
            model = build(model_class, config)
        except BUILD_ERRORS:
            found.append({})
            continue
        for path, layer in layers_of(model).items():
            if layer.kind in ("linear", "conv1d", "embedding"):
                pattern = pattern_of(path)
                shapes[pattern] = layer.shape if shapes.get(pattern, layer.shape) == layer.shape else None
        found.append(shapes)
    return found


def _explained(dimensions: Sequence[int], configs: Sequence[Mapping[str, Any]], candidates: Sequence[str]) -> str:
    """The one expression that gives these dimensions under these configs; empty where there is none, or more than one."""
    if len({*dimensions}) < len(dimensions):
        return ""
    fitting = [
        one
        for one in candidates
        if all(value_of(config, one) == number for config, number in zip(configs, dimensions, strict=True))
    ]
    return fitting[0] if len(fitting) == 1 else ""


def entry_of(model_type: str) -> dict[str, Any]:
    """What is known of one model type: `layers`, the expressions of both dimensions by the ends of the layers' paths.

    `heads` holds the parts of the config (their paths, with a dot at the end) in which the width of a head, where nothing says
    it, is the model's width by the number of heads.
    """
    try:
        default = default_config(model_type)
        configs = [configured(default, round_) for round_ in range(3)]
    except BUILD_ERRORS:
        return {}
    raw = [_plain(config) for config in configs]
    candidates = list(dict.fromkeys(expressions(raw[0])))
    rounds = [_shapes(model_type, config) for config in configs]
    known: dict[str, tuple[str, str] | None] = {}
    for classes in zip(*rounds, strict=True):
        for pattern in classes[0]:
            shapes = [found.get(pattern) for found in classes]
            pair = None
            if all(shape is not None and len(shape) == 2 for shape in shapes):
                first, second = (_explained([shape[at] for shape in shapes if shape], raw, candidates) for at in (0, 1))
                pair = (first, second) if first or second else None
            known[pattern] = pair if known.setdefault(pattern, pair) == pair else None
    for pattern in _switched(model_type, configs[1], raw[1], known):
        known[pattern] = None
    # Of layers of other classes nothing is said, whatever their paths end with.
    for pattern in ModelCode({"model_type": model_type}).patterns():
        known.setdefault(pattern, None)
    if not any(known.values()):
        return {}
    entry: dict[str, Any] = {"layers": {end: list(pair) for end, pair in _by_ends(known).items() if pair}}
    try:
        alone = configured(default, 0, heads_alone=True)
        computed = _shapes(model_type, alone)
    except BUILD_ERRORS:
        return entry
    entry["heads"] = _parts_with_computed_heads(_plain(alone), computed, known)
    return entry


def _switched(
    model_type: str, config: PreTrainedConfig, raw: Mapping[str, Any], known: Mapping[str, tuple[str, str] | None]
) -> set[str]:
    """The layers that have another shape where one boolean field is turned around: expressions do not tell of those."""
    switched: set[str] = set()
    for prefix, part in sub_configs(config):
        for name, value in part.to_dict().items():
            if not isinstance(value, bool) or _NO_SWITCHES.search(name):
                continue
            changed = copy.deepcopy(config)
            inner: Any = changed
            for step in prefix.split(".")[:-1]:
                inner = getattr(inner, step)
            try:
                setattr(inner, name, not value)
                shapes = _shapes(model_type, changed, _MOST_CLASSES)
            except BUILD_ERRORS:
                continue
            for found in shapes:
                for pattern, shape in found.items():
                    pair = known.get(pattern)
                    wanted = [value_of(raw, one) if one else None for one in pair or ()]
                    if shape is None or any(
                        number not in (None, other) for number, other in zip(wanted, shape, strict=False)
                    ):
                        switched.add(pattern)
    return switched


def _parts_with_computed_heads(
    config: Mapping[str, Any], computed: Sequence[Shapes], known: Mapping[str, tuple[str, str] | None]
) -> list[str]:
    right: dict[str, bool] = {}
    for shapes in computed:
        for pattern, shape in shapes.items():
            for expression, dimension in zip(known.get(pattern) or (), shape or (), strict=False):
                if "head_dim" in expression:
                    part = expression.partition("*")[2].partition("+")[0].removesuffix("head_dim").rpartition("*")[2]
                    given = value_of(config, expression, frozenset((part,)))
                    right[part] = right.get(part, True) and given == dimension
    return sorted(part for part, holds in right.items() if holds)


def _by_ends(known: Mapping[str, tuple[str, str] | None]) -> dict[str, tuple[str, str] | None]:
    """The shortest ends of paths that stand for one answer each; a path that ends another is written whole."""
    found: dict[str, tuple[str, str] | None] = {}

    def divide(patterns: Sequence[str], length: int) -> None:
        by_end: dict[str, list[str]] = {}
        for pattern in patterns:
            by_end.setdefault(".".join(pattern.split(".")[-length:]), []).append(pattern)
        for end, group in by_end.items():
            if len({known[pattern] for pattern in group}) == 1:
                found[end] = known[group[0]]
                continue
            if end in group:
                found[end] = known[end]
            divide([pattern for pattern in group if pattern != end], length + 1)

    divide(list(known), 1)
    return found


def _plain(config: PreTrainedConfig) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=str))
    return raw


def main(names: list[str]) -> None:
    """Write the table, or print the entries of some model types."""
    quiet()
    torch.set_num_threads(1)
    models = {name: entry for name in sorted(names or CONFIG_MAPPING.keys()) if (entry := entry_of(name))}
    if names:
        print(json.dumps(models, indent=1))
        return
    write(models)


def write(models: Mapping[str, Any]) -> None:
    """Write the table."""
    lines = ",\n".join(f"{json.dumps(name)}: {_compact(entry)}" for name, entry in sorted(models.items()))
    version = json.dumps(transformers.__version__)
    TABLE.write_text(f'{{"transformers": {version}, "models": {{\n{lines}\n}}}}\n', encoding="utf-8")


def _compact(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, separators=(",", ":"))


if __name__ == "__main__":
    main(sys.argv[1:])
