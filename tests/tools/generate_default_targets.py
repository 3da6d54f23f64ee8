"""Write `adaptertool/merge/adapter/default_targets.json`: what PEFT's configs have, and what they target by default.

python -m tests.tools.generate_default_targets
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils.transformers_weight_conversion import (  # type: ignore[attr-defined]  # its copy alone has Mixtral
    _MODEL_TO_CONVERSION_PATTERN,
    _MOE_FUSED_TARGETS,
    _MOE_TARGET_MODULE_MAPPING,
)

from adaptertool.merge.adapter.targets import FIELDS

TABLE = Path(__file__).parents[2] / "adaptertool" / "merge" / "adapter" / "default_targets.json"


def default_targets() -> dict[str, Any]:
    """The table of the installed PEFT."""
    methods = {}
    for peft_type, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items():
        mapping = getattr(tuner, "target_module_mapping", None)
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
    settings = {
        peft_type.value: sorted(config.__dataclass_fields__)
        for peft_type, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
    }
    return {
        "peft": peft.__version__,
        "fields": dict(sorted(fields.items())),
        "settings": dict(sorted(settings.items())),
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


def main() -> None:
    """Write the table."""
    table = default_targets()
    parts = [f'"peft": {json.dumps(table["peft"])}']
    for part in ("fields", "settings", "methods", "fused"):
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in table[part].items())
        parts.append(f'"{part}": {{\n{lines}\n}}')
    TABLE.write_text(f"{{{', '.join(parts)}}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
