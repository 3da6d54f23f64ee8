"""Write `adaptertool/merge/adapter/default_targets.json`: each config's fields and defaults, what it refuses, default targets.

python -m tests.tools.generate_default_targets
"""

from __future__ import annotations

import json
from dataclasses import MISSING, is_dataclass
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import peft
from peft import PeftConfig, TaskType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.waveft.constants import WAVELET_REDUCTIONS
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
)
from peft.utils.transformers_weight_conversion import (  # type: ignore[attr-defined]  # its copy alone has Mixtral
    _MODEL_TO_CONVERSION_PATTERN,
    _MOE_FUSED_TARGETS,
    _MOE_TARGET_MODULE_MAPPING,
)
from transformers.activations import ACT2FN

from adaptertool.merge.adapter.targets import FIELDS

TABLE = Path(__file__).parents[2] / "adaptertool" / "merge" / "adapter" / "default_targets.json"


def default_targets() -> dict[str, Any]:
    """The table of the installed PEFT."""
    methods = {}
    for peft_type, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items():
        mapping = getattr(tuner, "target_module_mapping", None)
        if peft_type == "IA3":
            mapping = TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
        if mapping:
            methods[peft_type.value] = {
                model_type: targets if isinstance(targets, str) else sorted(targets)
                for model_type, targets in sorted(mapping.items())
            }
    # PEFT leaves out fields that a method's config class does not have.
    fields = {
        peft_type.value: [field for field in FIELDS if field in config.__dataclass_fields__]
        for peft_type, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
    }
    settings = {peft_type.value: defaults(config) for peft_type, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    types = {peft_type.value: kinds_of(config) for peft_type, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    refuses = {peft_type.value: refused(config) for peft_type, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    return {
        "peft": peft.__version__,
        "fields": dict(sorted(fields.items())),
        "settings": dict(sorted(settings.items())),
        "types": dict(sorted(types.items())),
        "refuses": {peft_type: found for peft_type, found in sorted(refuses.items()) if found},
        "choices": {
            "": {"task_type": sorted(TaskType)},
            "PEANUT": {"act_fn": sorted(ACT2FN)},
            "WAVEFT": {"wavelet_family": sorted(WAVELET_REDUCTIONS)},
        },
        "feedforward": {
            model_type: list(modules)
            for model_type, modules in sorted(TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.items())
        },
        "methods": dict(sorted(methods.items())),
        # What transformers 5 has fused, and the parameters that PEFT targets in place of modules of these names.
        "fused": {
            model_type: {
                "parameters": _MOE_TARGET_MODULE_MAPPING[kind],
                "together": {new: list(old) for new, old in _MOE_FUSED_TARGETS[kind].items()},
            }
            for model_type, kind in sorted(_MODEL_TO_CONVERSION_PATTERN.items())
            if kind in _MOE_TARGET_MODULE_MAPPING and kind in _MOE_FUSED_TARGETS
        },
    }


def defaults(config: Any) -> dict[str, Any]:
    """The fields of a config class, and what it takes for each."""
    found = {}
    for name, field in sorted(config.__dataclass_fields__.items()):
        value = field.default_factory() if field.default is MISSING and field.init else field.default
        found[name] = getattr(value, "value", value) if isinstance(value, PLAIN) else None
    return found


def kinds_of(config: Any) -> dict[str, list[Any]]:
    """What a config class is annotated with: the kinds of JSON values that each field takes, or else the values themselves."""
    found = {}
    standard = defaults(config)
    general = {*PeftConfig.__dataclass_fields__}
    for name, hint in sorted(get_type_hints(config).items()):
        if name in general:
            continue
        options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        kinds = {_kind(get_origin(one) or one) for one in options}
        chosen = [value for one in options if get_origin(one) is Literal for value in get_args(one)]
        # Null stands for nothing, but in tables by module, where PEFT raises whatever the annotation.
        if not standard.get(name) and not isinstance(standard.get(name), (bool, int, float, str)):
            kinds |= {"null"}
        if name.endswith("_pattern") and standard.get(name) == {}:
            kinds -= {"null"}
        kinds |= {_kind(type(value)) for value in chosen}
        closed = chosen and all(get_origin(one) is Literal or one in (bool, type(None)) for one in options)
        chosen += [True, False] if bool in options else []
        if closed and not any("[" in str(value) for value in chosen):
            found[name] = ["values", *chosen, *([None] if "null" in kinds else [])]
        elif "number" in kinds and "seed" in name.replace("prng_key", "seed"):
            # torch and numpy take whole numbers, and raise for others.
            found[name] = ["kinds", *sorted(kinds - {"literal", "number"} | {"whole"})]
        elif "any" not in kinds - {"literal"}:
            found[name] = ["kinds", *sorted(kinds - {"literal"})]
    return found


def _kind(one: Any) -> str:
    if one is Literal:
        return "literal"
    if isinstance(one, type) and issubclass(one, Enum):
        return "str"
    return KINDS.get(one, "dict" if is_dataclass(one) else "any")


KINDS = {
    bool: "bool",
    int: "number",
    float: "number",
    str: "str",
    list: "list",
    set: "list",
    dict: "dict",
    type(None): "null",
}


def refused(config: Any) -> list[str]:
    """Which of `TOGETHER` a config class refuses."""
    names = {*config.__dataclass_fields__}
    return [
        what
        for what, arguments in TOGETHER.items()
        if {*arguments} <= names and raises(config, {}) is None and "layers_" in (raises(config, arguments) or "")
    ]


def raises(config: Any, arguments: dict[str, Any]) -> str | None:
    """The error of a config class; None where it has none."""
    needed = {"total_step": 10, "init_r": 2, "tinit": 0, "tfinal": 0, "boft_block_size": 4}
    needed = {name: value for name, value in needed.items() if name in config.__dataclass_fields__}
    try:
        config(**needed, **arguments)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


PLAIN = (str, int, float, bool, list, dict, type(None))
TOGETHER: dict[str, dict[str, Any]] = {
    "layers_pattern without layers_to_transform": {"layers_pattern": ["h"]},
    "layers_to_transform with a pattern in target_modules": {"target_modules": "x", "layers_to_transform": [1]},
    # Of what is not empty some raise for the first reason.
    "layers_pattern with a pattern in target_modules": {"target_modules": "x", "layers_pattern": []},
}
"""What some config classes raise for."""


def main() -> None:
    """Write the table."""
    table = default_targets()
    parts = [f'"peft": {json.dumps(table["peft"])}']
    for part in ("fields", "settings", "types", "refuses", "choices", "feedforward", "methods", "fused"):
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in table[part].items())
        parts.append(f'"{part}": {{\n{lines}\n}}')
    TABLE.write_text(f"{{{', '.join(parts)}}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
