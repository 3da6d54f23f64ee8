"""Write `adaptertool/merge/bias_table.json`: which layers of which model have a bias, and which flag decides it.

    python -m tests.tools.generate_bias_table [MODEL_TYPE …]

Every model type of the installed transformers is built on the meta device from its default config, once as it is and once with
each boolean field named like a bias turned around. With model types named, only these are written, to standard output.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from transformers import CONFIG_MAPPING

from tests.tools.model_trees import (
    BUILD_ERRORS,
    build,
    classes_of,
    default_config,
    layers_of,
    parts_of,
    patterns_of,
    quiet,
    shrunk,
    sub_configs,
)

if TYPE_CHECKING:
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
    import copy

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


def entry_of(model_type: str) -> dict[str, Any] | None:
    """What the table says about one model type; None where no class of it can be built."""
    try:
        config = default_config(model_type)
    except BUILD_ERRORS as error:
        print(f"{model_type}: no default config: {error}", file=sys.stderr)
        return None
    merged: dict[str, tuple[str, str]] = {}
    prefixes: set[str] = set()
    parts: dict[str, tuple[str, set[str]]] = {}
    for model_class in classes_of(model_type):
        try:
            rules, own_parts = rules_of(model_class, config)
        except BUILD_ERRORS as error:
            print(f"{model_class.__name__}: {error}", file=sys.stderr)
            continue
        prefixes.add(model_class.base_model_prefix)
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
        "flags": flags,
        "parts": {part: [part_type, *sorted(paths)] for part, (part_type, paths) in sorted(parts.items())},
        "layers": grouped,
    }


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
