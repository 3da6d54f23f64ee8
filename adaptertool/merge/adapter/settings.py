"""What PEFT makes of a config: the defaults of what it does not say, and what it refuses whatever the base.

The table beside this module is PEFT's own (`tests/tools/generate_default_targets.py`).
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptertool.checkpoint.config import version_numbers
from adaptertool.methods.shapes import RefusedError
from adaptertool.words import shortened

if TYPE_CHECKING:
    from adaptertool.checkpoint.config import AdapterConfig
    from adaptertool.methods.merging import MergeRule


HEADS_OF_LABELS = ("classifier", "score")
"""What PEFT calls the heads of models that classify, whatever the model calls its own (`peft/peft_model.py`)."""


def settings_of(config: AdapterConfig, model_type: str | None) -> dict[str, Any]:
    """The fields of a config as PEFT has them: those that its class has, with its defaults.

    Args:
        config: The adapter's.
        model_type: Of the base model, by which PEFT fills in some.
    """
    defaults: dict[str, Any] = table()["settings"].get(config.peft_type, {})
    settings = {name: config.fields.get(name, default) for name, default in defaults.items()}
    if config.peft_type == "IA3" and settings["feedforward_modules"] is None:
        settings["feedforward_modules"] = table()["feedforward"].get(model_type)
    return settings


def refused(config: AdapterConfig, rule: MergeRule) -> str | None:
    """Why PEFT does not load an adapter of this config, whatever the base; None where it does.

    Args:
        config: The adapter's.
        rule: What its method's merge needs.
    """
    try:
        return _refused_by_all(config) or rule.refused(settings_of(config, None))
    except RefusedError as error:
        return str(error)


def _refused_by_all(config: AdapterConfig) -> str | None:
    """The same by what all methods have in common.

    Source: `__post_init__` of the config classes and `PeftConfigMixin`, read at PEFT 0.21.2.
    """
    settings = settings_of(config, None)
    for choices in (table()["choices"][""], table()["choices"].get(config.peft_type, {})):
        for field, known in choices.items():
            value = settings.get(field)
            if value not in known and not (value is None and field == "task_type"):
                return (
                    f"its config says {value!r} for {field}, which PEFT {table()['peft']} does not know and raises for"
                )
    bias = settings.get("bias", "none")
    if not (isinstance(bias, str) and (bias in ("none", "all") or bias.endswith("_only"))):
        return f"its config says {bias!r} for bias, for which PEFT raises"
    if settings.get("task_type") in ("TOKEN_CLS", "QUESTION_ANS") and "modules_to_save" not in settings:
        return (
            f"its config says {settings['task_type']} for task_type, for which PEFT raises TypeError with this method"
        )
    if config.peft_type == "OFT" and "oft_block_size" not in config.fields:
        return "it was written by a PEFT before 0.14, whose OFT was another: newer ones raise ValueError"
    pattern = isinstance(settings.get("target_modules"), str)
    indices, path = settings.get("layers_to_transform"), settings.get("layers_pattern")
    met = {
        "layers_pattern without layers_to_transform": bool(path) and indices is None,
        "layers_to_transform with a pattern in target_modules": pattern and indices is not None,
        "layers_pattern with a pattern in target_modules": pattern and path is not None,
    }
    what = next((one for one in table()["refuses"].get(config.peft_type, ()) if met[one]), None)
    return f"its config has {what}, for which PEFT raises ValueError" if what else None


def odd_settings(config: AdapterConfig) -> str | None:
    """What no PEFT writes into a config, and may raise at wherever it is used, as a sentence; None where nothing is odd.

    PEFT holds no value against its annotation, and takes some that are of another kind.
    """
    for name, (what, *known) in table()["types"].get(config.peft_type, {}).items():
        if name not in config.fields:
            continue
        value = config.fields[name]
        taken = value in known if what == "values" else bool(_kinds(value) & {*known})
        # PEFT goes through the letters of a name.
        taken = taken and not (name == "modules_to_save" and isinstance(value, str))
        if not taken or (name.endswith("dropout") and isinstance(value, (int, float)) and not 0 <= value <= 1):
            return f"its config says {shortened(repr(value))} for {name}, which no PEFT writes: it may raise for that"
        for module, number in value.items() if name.endswith("_pattern") and isinstance(value, dict) else ():
            if number is None or isinstance(number, (str, dict)):
                shown = shortened(repr(number))
                return f"its config says {shown} for {module!r} in {name}, which no PEFT writes: it may raise for that"
    return None


def _kinds(value: Any) -> set[str]:
    """The kinds of a JSON value; a whole one is a number that torch's generators can be seeded with."""
    if value is None or isinstance(value, bool):
        return {"null" if value is None else "bool"}
    if isinstance(value, (int, float)) and not abs(value) < 1 << 64:
        # Nor does torch take these for a number of another kind.
        return set()
    found = {int: "number", float: "number", str: "str", list: "list"}.get(type(value), "dict")
    return {found, "whole"} if type(value) is int and -(1 << 63) <= value < 1 << 64 else {found}


def unknown_settings(config: AdapterConfig) -> str | None:
    """What a config of a newer PEFT asks for and the PEFT of the table does not know, as a sentence; None where nothing.

    PEFT ignores such fields with a warning (`PeftConfigMixin.from_peft_type`). Those of an older PEFT went out for good.
    """
    known = table()["settings"].get(config.peft_type)
    peft = table()["peft"]
    if known is None or version_numbers(config.text_or_none("peft_version")) <= version_numbers(peft):
        return None
    unknown = [name for name, value in config.fields.items() if value and name not in known]
    if not unknown:
        return None
    return f"its config asks for {unknown[0]}, which PEFT {peft} does not know: what a newer one merges can't be told"


@cache
def table() -> dict[str, Any]:
    """PEFT's own tables."""
    found: dict[str, Any] = json.loads(Path(__file__).with_name("default_targets.json").read_bytes())
    return found
