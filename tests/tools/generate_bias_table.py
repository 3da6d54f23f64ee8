"""Write `adaptertool/merge/bias_table.json`: which layers of which model have a bias, and which flag decides it.

    python -m tests.tools.generate_bias_table [MODEL_TYPE …]

Every model type of the installed transformers is built on the meta device from its default config, once as it is, once with
each boolean field named like a bias turned around, and once with each number of layers lowered. What is renamed at loading is
what transformers renames. With model types named, only these are written, to standard output.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from transformers import CONFIG_MAPPING
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from adaptertool.merge.resolve import Names
from tests.tools.model_trees import (
    BUILD_ERRORS,
    build,
    classes_of,
    default_config,
    layers_of,
    parts_of,
    pattern_of,
    patterns_of,
    quiet,
    shrunk,
    stored_names,
    sub_configs,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedConfig, PreTrainedModel

    Patterns = dict[str, tuple[str, bool | None]]

TABLE = Path(__file__).parents[2] / "adaptertool" / "merge" / "bias_table.json"


def bias_flags(config: PreTrainedConfig) -> dict[str, bool]:
    """The boolean fields whose name speaks of a bias, by dotted path, with the value in this config."""
    flags: dict[str, bool] = {}
    for prefix, part in sub_configs(config):
        for name in part.to_dict():
            if "bias" in name and isinstance(value := getattr(part, name, None), bool):
                flags[prefix + name] = value
    return flags


def turned(config: PreTrainedConfig, flag: str) -> PreTrainedConfig:
    """A copy of the config with one flag turned around."""
    changed = copy.deepcopy(config)
    part: Any = changed
    *path, name = flag.split(".")
    for step in path:
        part = getattr(part, step)
    setattr(part, name, not getattr(part, name))
    return changed


def rules_of(
    model_class: type[PreTrainedModel], config: PreTrainedConfig
) -> tuple[dict[str, tuple[str, str]], dict[str, tuple[str, set[str]]]]:
    """Kind and rule of every pattern: `always`, `never`, `varies`, `<flag>` or `not <flag>`; and the parts of the model."""
    model = build(model_class, config)
    patterns: Patterns = patterns_of(layers_of(model))
    small = config
    try:
        small = shrunk(config)
        if patterns_of(layers_of(build(model_class, small))) != patterns:
            small = config
    except BUILD_ERRORS:
        small = config
    deciding: dict[str, list[str]] = {pattern: [] for pattern in patterns}
    for flag, value in bias_flags(config).items():
        try:
            other: Patterns = patterns_of(layers_of(build(model_class, turned(small, flag))))
        except BUILD_ERRORS as error:
            print(f"{model_class.__name__}: {flag} can't be turned around: {error}", file=sys.stderr)
            continue
        for pattern, (_, bias) in patterns.items():
            if pattern in other and other[pattern][1] != bias:
                deciding[pattern].append(flag if bias is value else f"not {flag}")
    rules: dict[str, tuple[str, str]] = {}
    for pattern, (kind, bias) in patterns.items():
        flags = deciding[pattern]
        if bias is None or len(flags) > 1:
            rules[pattern] = (kind, "varies")
        elif flags:
            rules[pattern] = (kind, flags[0])
        else:
            rules[pattern] = (kind, "always" if bias else "never")
    return rules, parts_of(model)


COUNT_FIELDS = (
    "num_hidden_layers",
    "num_layers",
    "n_layer",
    "n_layers",
    "num_blocks",
    "num_encoder_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
    "depth",
)
"""What configs call the number of layers of a stack."""


def stack_lengths(model: PreTrainedModel) -> dict[str, int]:
    """How many layers each stack has, by the path before the layer number."""
    lengths: dict[str, int] = {}
    for path in layers_of(model):
        parts = path.split(".")
        at = next((index for index, part in enumerate(parts) if part.isdecimal()), None)
        if at is not None:
            head = ".".join(parts[:at])
            lengths[head] = max(lengths.get(head, 0), int(parts[at]) + 1)
    return lengths


def counting_fields(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> dict[str, str]:
    """The config field that says how many layers a stack has, by stack; those of which one field alone decides that."""
    lengths = stack_lengths(build(model_class, config))
    deciding: dict[str, list[str]] = {}
    for prefix, part in sub_configs(config):
        for name in COUNT_FIELDS:
            value = part.to_dict().get(name)
            if type(value) is not int or value < 2:
                continue
            changed = copy.deepcopy(config)
            inner: Any = changed
            for step in prefix.split(".")[:-1]:
                inner = getattr(inner, step)
            try:
                setattr(inner, name, value - 1)
                for field, listed in list(vars(inner).items()):
                    if isinstance(listed, list) and len(listed) == value:
                        setattr(inner, field, listed[:-1])
                shorter = stack_lengths(build(model_class, changed))
            except BUILD_ERRORS:
                continue
            for head, length in lengths.items():
                if shorter.get(head, 0) != length:
                    exact = length == value and shorter.get(head) == length - 1
                    deciding.setdefault(head, []).append(prefix + name if exact else "")
    return {head: fields[0] for head, fields in deciding.items() if len(fields) == 1 and fields[0]}


def moved_names(model: PreTrainedModel, prefixes: Iterable[str]) -> dict[str, str]:
    """What transformers renames at loading to what no rule about prefixes finds, as patterns: live -> stored.

    Modules, and biases that are renamed within theirs.
    """
    conversions = get_model_conversion_mapping(model)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    state = model.state_dict()
    sources: dict[str, set[str]] = {}
    biases: dict[str, str] = {}
    stored = stored_names(model)
    for name in stored:
        live, converted = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        module, _, leaf = live.rpartition(".")
        stored_module, _, stored_leaf = name.rpartition(".")
        if converted is None and leaf == "bias" != stored_leaf:
            biases[pattern_of(live)] = pattern_of(name)
            continue
        # What is fused or split, or renamed within its module, is none that a rule about modules could name.
        sources.setdefault(module, set()).add(stored_module if converted is None and leaf == stored_leaf else "")
    own = (model.config.model_type or "").replace("-", "_")
    names = Names(
        {name.rpartition(".")[0] for name in stored}, prefixes, [one for one in prefixes if own.startswith(one)]
    )
    moved = dict(biases)
    for module, found in sources.items():
        source = next(iter(found)) if len(found) == 1 else ""
        if source and names.find(module).module != source and source.count("#") == 0:
            moved[pattern_of(module)] = pattern_of(source)
    return moved


def tied_layers(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> set[str]:
    """The layers whose weights a class ties where its config ties embeddings, as patterns."""
    tying = copy.deepcopy(config)
    for _, part in sub_configs(tying):
        if part is tying or hasattr(part, "tie_word_embeddings"):
            part.tie_word_embeddings = True
    model = _small(model_class, tying)
    layers = layers_of(model)
    names = (name for pair in model.all_tied_weights_keys.items() for name in pair)
    return {pattern_of(name.rpartition(".")[0]) for name in names} & {pattern_of(path) for path in layers}


def entry_of(model_type: str) -> dict[str, Any] | None:
    """What the table says about one model type; None where no class of it can be built."""
    try:
        config = default_config(model_type)
    except BUILD_ERRORS as error:
        print(f"{model_type}: no default config: {error}", file=sys.stderr)
        return None
    merged: dict[str, tuple[str, str]] = {}
    prefixes: set[str] = set()
    counts: dict[str, str | None] = {}
    moved: dict[str, str | None] = {}
    parts: dict[str, tuple[str, set[str]]] = {}
    ties: set[str] = set()
    for model_class in classes_of(model_type):
        try:
            rules, own_parts = rules_of(model_class, config)
        except BUILD_ERRORS as error:
            print(f"{model_class.__name__}: {error}", file=sys.stderr)
            continue
        prefixes.add(model_class.base_model_prefix)
        ties |= tied_layers(model_class, config)
        for stack, field in counting_fields(model_class, config).items():
            counts[stack] = field if counts.setdefault(stack, field) == field else None
        for live, stored in moved_names(_small(model_class, config), prefixes - {""}).items():
            moved[live] = stored if moved.setdefault(live, stored) == stored else None
        for part, (part_type, paths) in own_parts.items():
            parts.setdefault(part, (part_type, set()))[1].update(paths)
        for pattern, rule in rules.items():
            known = merged.setdefault(pattern, rule)
            if known != rule:
                merged[pattern] = (rule[0] if known[0] == rule[0] else "unknown", "varies")
    if not merged:
        return None
    grouped: dict[str, dict[str, list[str]]] = {}
    for pattern, (kind, deciding) in sorted(merged.items()):
        grouped.setdefault(kind, {}).setdefault(deciding, []).append(pattern)
    used = {rule.removeprefix("not ") for _, rule in merged.values()}
    flags = {flag: value for flag, value in bias_flags(config).items() if flag in used}
    text = config.get_text_config()
    return {
        "prefixes": sorted(prefixes - {""}),
        "tied": bool(getattr(config, "tie_word_embeddings", getattr(text, "tie_word_embeddings", False))),
        "ties": sorted(ties),
        "flags": flags,
        "counts": {stack: field for stack, field in sorted(counts.items()) if field},
        "moved": {live: stored for live, stored in sorted(moved.items()) if stored},
        "parts": {part: [part_type, *sorted(paths)] for part, (part_type, paths) in sorted(parts.items())},
        "layers": grouped,
    }


def _small(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    try:
        return build(model_class, shrunk(config))
    except BUILD_ERRORS:
        return build(model_class, config)


def main(names: list[str]) -> None:
    """Write the table, or print the entries of some model types."""
    quiet()
    models = {name: entry for name in names or list(CONFIG_MAPPING.keys()) if (entry := entry_of(name)) is not None}
    if names:
        print(json.dumps(models, indent=1))
        return
    lines = [f"{json.dumps(name)}: {json.dumps(models[name], sort_keys=True)}" for name in sorted(models)]
    body = ",\n".join(lines)
    TABLE.write_text(f'{{"transformers": "{transformers.__version__}", "models": {{\n{body}\n}}}}\n', encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
