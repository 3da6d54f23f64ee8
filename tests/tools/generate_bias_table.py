"""Write `adaptertool/merge/base/bias_table.json`: which layers of which model have a bias, and which flag decides it.

    python -m tests.tools.generate_bias_table [MODEL_TYPE …]

Every model type of the installed transformers is built on the meta device from its default config, once as it is, once with
each boolean field named like a bias turned around, and once with each number of layers lowered: in the classes that people
attach adapters to, or in all that it has where it has none of those. What is renamed at loading is what transformers renames.
With model types named, only these are written, to standard output.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from transformers import CONFIG_MAPPING
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from adaptertool.merge.base.names import Names
from adaptertool.merge.base.paths import pattern_of
from adaptertool.merge.base.ties import Tie, ties_of
from tests.tools.model_trees import (
    BUILD_ERRORS,
    build,
    classes_of,
    default_config,
    every_class_of,
    layers_of,
    parts_of,
    patterns_of,
    quiet,
    shrunk,
    stored_names,
    sub_configs,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from transformers import PreTrainedConfig, PreTrainedModel

    Patterns = dict[str, tuple[str, bool | None]]

TABLE = Path(__file__).parents[2] / "adaptertool" / "merge" / "base" / "bias_table.json"


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
    """Kind and rule of every pattern: `always`, `never`, `varies`, `<flag>`, `not <flag>` or `some <flag>`; and the parts."""
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
    some: dict[str, list[str]] = {pattern: [] for pattern in patterns}
    for flag, value in bias_flags(config).items():
        try:
            other: Patterns = patterns_of(layers_of(build(model_class, turned(small, flag))))
        except BUILD_ERRORS as error:
            print(f"{model_class.__name__}: {flag} can't be turned around: {error}", file=sys.stderr)
            continue
        for pattern, (_, bias) in patterns.items():
            if pattern in other and other[pattern][1] is None:
                # In some layers of a hybrid it decides, and in the others the layer of this name has none.
                some[pattern].append(flag if value is bias is False else "")
            elif pattern in other and other[pattern][1] != bias:
                deciding[pattern].append(flag if bias is value else f"not {flag}")
    rules: dict[str, tuple[str, str]] = {}
    for pattern, (kind, bias) in patterns.items():
        flags = deciding[pattern]
        if bias is None or len(flags) + len(some[pattern]) > 1 or some[pattern] == [""]:
            rules[pattern] = (kind, "varies")
        elif flags or some[pattern]:
            rules[pattern] = (kind, flags[0] if flags else f"some {some[pattern][0]}")
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


TIE_FIELDS = ("tie_embedding", "tie_codebooks_embeddings", "share_encoder_decoder_embeddings")
"""Fields of whole configs that decide about ties, beside `tie_word_embeddings`, which parts have as well."""

MOST_TIE_FIELDS = 4
"""More fields that decide about one model's ties are not tried in all combinations."""


class Settings:
    """A model type's configs under every setting of the fields that may decide which layers are tied.

    A setting has a letter for each field: `t` and `f` for true and false, `-` where the config lacks it. What the fields come
    to is the config class's own affair: some force a value, some take it from a part's config.

    Args:
        config: The type's default config.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        self._class = type(config)
        self._default: dict[str, Any] = config.to_dict()
        self._models: dict[tuple[str, tuple[Any, ...]], tuple[Tie, ...]] = {}
        self._shrinks: dict[type[PreTrainedModel], bool] = {}
        own = [f"{prefix}tie_word_embeddings" for prefix, _ in sub_configs(config)] + [*TIE_FIELDS]
        # A class asks its config for the field whether or not the config's class has it.
        self._known = {
            "tie_word_embeddings",
            *(field for field in own if self._value(self._default, field) is not None),
        }
        self.fields = [field for field in own if self._matters(field)]

    @staticmethod
    def _value(raw: Mapping[str, Any], field: str) -> Any:
        value: Any = raw
        for step in field.split("."):
            value = value.get(step) if isinstance(value, dict) else None
        return value

    def _matters(self, field: str) -> bool:
        """Whether the config class knows the field, or takes the value of another one from it."""
        if field in self._known:
            return True
        found = [self._flags(self.config([field], letter)) for letter in "-tf"]
        return len({json.dumps(one, sort_keys=True) for one in found}) > 1

    def config(self, fields: Sequence[str], setting: str) -> PreTrainedConfig | None:
        """The config that transformers makes of a setting; None where it refuses it."""
        raw = copy.deepcopy(self._default)
        for field, letter in zip(fields, setting, strict=True):
            part: Any = raw
            *path, name = field.split(".")
            for step in path:
                part = part.get(step) if isinstance(part, dict) else None
            if isinstance(part, dict):
                part.pop(name, None)
                part.update({} if letter == "-" else {name: letter == "t"})
        try:
            return self._class.from_dict(raw)
        except BUILD_ERRORS:
            return None

    def ties(self, model_class: type[PreTrainedModel], fields: Sequence[str], setting: str) -> tuple[Tie, ...] | None:
        """The ties of a class under a setting, as patterns; None where it can't be built."""
        config = self.config(fields, setting)
        if config is None:
            return None
        key = model_class.__name__, tuple(self._flags(config).items())
        if key not in self._models:
            try:
                self._models[key] = self._build(model_class, config)
            except BUILD_ERRORS:
                return None
        return self._models[key]

    def _build(self, model_class: type[PreTrainedModel], config: PreTrainedConfig) -> tuple[Tie, ...]:
        """With few layers, where the first setting showed that they have the same ties as all; some models share layers."""
        if self._shrinks.get(model_class):
            return _tie_patterns(model_class, shrunk(config))
        ties = _tie_patterns(model_class, config)
        if model_class not in self._shrinks:
            try:
                self._shrinks[model_class] = bool(ties) and _tie_patterns(model_class, shrunk(config)) == ties
            except BUILD_ERRORS:
                self._shrinks[model_class] = False
        return ties

    def deciding(self, model_class: type[PreTrainedModel]) -> list[str]:
        """The fields that decide about the ties of a class: those that change them where all others are alike."""
        deciding = []
        for at, field in enumerate(self.fields):
            for others in "tf-":
                before, after = others * at, others * (len(self.fields) - at - 1)
                found = {self.ties(model_class, self.fields, before + letter + after) for letter in "-tf"} - {None}
                if len(found) > 1:
                    deciding.append(field)
                    break
        return deciding[:MOST_TIE_FIELDS]

    def _flags(self, config: PreTrainedConfig | None) -> dict[str, Any]:
        """The values of the known fields in a config."""
        raw = config.to_dict() if config is not None else {}
        return {field: self._value(raw, field) for field in sorted(self._known)}


def _tie_patterns(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> tuple[Tie, ...]:
    return tuple(dict.fromkeys(_as_pattern(tie) for tie in ties_of(build(model_class, config))))


def _as_pattern(tie: Tie) -> Tie:
    """The tie of patterns, each at most twice."""
    patterns = [pattern_of(layer) for layer in tie.layers]
    kept = [one for at, one in enumerate(patterns) if patterns[:at].count(one) < 2]
    return Tie(
        tie.leaf,
        tuple(kept),
        pattern_of(tie.source) if tie.source else None,
        pattern_of(tie.embedding) if tie.embedding else None,
        tuple(dict.fromkeys(pattern_of(path) for path in tie.followers or ())),
    )


def tied_layers(classes: Sequence[type[PreTrainedModel]], config: PreTrainedConfig) -> list[dict[str, Any]]:
    """The ties of all classes of a model type, each with the settings of config fields under which it holds."""
    settings = Settings(config)
    found: dict[tuple[Tie, tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for model_class in classes:
        if not any(settings.ties(model_class, settings.fields, letter * len(settings.fields)) for letter in "t-"):
            continue
        fields = tuple(settings.deciding(model_class))
        holds: dict[Tie, list[str]] = {}
        for letters in itertools.product("-tf", repeat=len(fields)):
            setting = "".join(letters)
            for tie in settings.ties(model_class, fields, setting) or ():
                holds.setdefault(tie, []).append(setting)
        for tie, holding in holds.items():
            found.setdefault((tie, fields, tuple(holding)), []).append(model_class.__name__)
    return [
        {**dataclasses.asdict(tie), "classes": names, "fields": fields, "settings": holding}
        for (tie, fields, holding), names in found.items()
    ]


def entry_of(model_type: str) -> dict[str, Any] | None:
    """What the table says about one model type; None where no class of it can be built."""
    try:
        config = default_config(model_type)
    except BUILD_ERRORS as error:
        print(f"{model_type}: no default config: {error}", file=sys.stderr)
        return None
    usual = classes_of(model_type)
    rest = [one for one in every_class_of(model_type) if one not in usual]
    return _entry_of(usual, config) or _entry_of(rest, config)


def _entry_of(classes: Sequence[type[PreTrainedModel]], config: PreTrainedConfig) -> dict[str, Any] | None:
    merged: dict[str, tuple[str, str]] = {}
    prefixes: set[str] = set()
    counts: dict[str, str | None] = {}
    moved: dict[str, str | None] = {}
    parts: dict[str, tuple[str, set[str]]] = {}
    built: list[type[PreTrainedModel]] = []
    for model_class in classes:
        try:
            rules, own_parts = rules_of(model_class, config)
        except BUILD_ERRORS as error:
            print(f"{model_class.__name__}: {error}", file=sys.stderr)
            continue
        prefixes.add(model_class.base_model_prefix)
        built.append(model_class)
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
    return {
        "prefixes": sorted(prefixes - {""}),
        "classes": {one.__name__: roots_of(one, config) if one in built else [] for one in classes},
        "generating": [one.__name__ for one in built if hasattr(one, "prepare_inputs_for_generation")],
        "ties": tied_layers(built, config),
        "flags": flags,
        "counts": {stack: field for stack, field in sorted(counts.items()) if field},
        "moved": {live: stored for live, stored in sorted(moved.items()) if stored},
        "parts": {part: [part_type, *sorted(paths)] for part, (part_type, paths) in sorted(parts.items())},
        "layers": grouped,
    }


def roots_of(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> list[str]:
    """Where the parameters of a class are: the paths of modules, no further than two names or a layer number."""
    roots: set[str] = set()
    for name, _ in _small(model_class, config).named_parameters(remove_duplicate=False):
        parts = name.split(".")[:-1]
        at = next((index for index, part in enumerate(parts) if part.isdecimal()), len(parts))
        roots.add(".".join(parts[: min(at, 2)]))
    return sorted(roots - {""})


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
