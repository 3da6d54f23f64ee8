"""Which modules PEFT attaches an adapter to: its config decides, whatever the file holds.

`PeftModel.from_pretrained` walks the base model's modules and holds each path against the config's `target_modules`,
`exclude_modules`, `layers_to_transform` and so on. Tensors of other modules are left out without a word, and a targeted module
without tensors gets an update of its own that nobody trained. Source: `check_target_module_exists` and
`_maybe_include_all_linear_layers` in `peft/tuners/tuners_utils.py`.
"""

from __future__ import annotations

import re
from itertools import permutations
from typing import TYPE_CHECKING, Any

from adaptertool import patterns
from adaptertool.errors import CorruptError
from adaptertool.merge.adapter.settings import HEADS_OF_LABELS, table
from adaptertool.methods.base import ALL_LINEAR
from adaptertool.words import layer_number

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from adaptertool.checkpoint.config import AdapterConfig
    from adaptertool.merge.adapter.adapted import AdaptedLayer
    from adaptertool.merge.base.code import CodeLayer

FIELDS = (
    "target_modules",
    "target_parameters",
    "exclude_modules",
    "modules_to_save",
    "layers_to_transform",
    "layers_pattern",
)
"""The fields of a config that decide about targets. A method has some of them, and PEFT ignores the others."""

_HEADS = ("lm_head", "embed_out", "output_projection", "score", "classifier")


class Targets:
    """The config's rule about modules.

    Args:
        config: The adapter's.
        model_type: Of the base model: where the config names no targets, PEFT takes those that it knows for the type.
        parts: The types of its parts, some of which can be loaded alone.

    Attributes:
        refused: What PEFT raises before it attaches anything, as a sentence; None where it does not.
        unnamed: Whether the config names no targets, and PEFT has some for a part of the model alone.

    Raises:
        CorruptError: a field that the rule is made of makes no sense (ADP304).
    """

    def __init__(self, config: AdapterConfig, model_type: str | None, parts: Iterable[str] = ()) -> None:
        self._name = config.name
        known = table()["fields"].get(config.peft_type, FIELDS)
        fields = {field: config.fields.get(field) for field in known}
        targets = self._names(fields, "target_modules")
        parameters = self._names(fields, "target_parameters")
        if targets is None:
            targets = default_targets(config.peft_type, model_type)
        self.modules = targets
        self.parameters = (parameters,) if isinstance(parameters, str) else parameters or ()
        self.refused: str | None = None
        self.unnamed = targets is None and not self.parameters and config.peft_type in table()["methods"]
        if self.unnamed and all(default_targets(config.peft_type, one) is None for one in (model_type, *parts)):
            self.refused = (
                f"The config names no target_modules, and PEFT {table()['peft']} has none of its own for {model_type}: it "
                "raises ValueError: Please specify `target_modules`"
            )
            self.unnamed = False
        self._together: dict[str, int] = {}
        self._converted: frozenset[str] = frozenset()
        self._fused = table()["fused"].get(model_type) if config.peft_type == "LORA" else None
        self.fused: Mapping[str, str] = self._fused["parameters"] if self._fused is not None else {}
        if self._fused is not None and isinstance(targets, tuple):
            self._convert(targets)
        self._excluded = self._names(fields, "exclude_modules") or ()
        saved = self._names(fields, "modules_to_save") or ()
        self._saved = (saved,) if isinstance(saved, str) else saved
        if config.fields.get("task_type") == "SEQ_CLS" and "modules_to_save" in known:
            # Of the tasks that have heads, PEFT adds this one's before it attaches anything.
            self._saved += HEADS_OF_LABELS
        self._indices = self._layer_indices(fields)
        prefixes = self._names(fields, "layers_pattern") or ()
        self._patterns = (prefixes,) if isinstance(prefixes, str) else prefixes

    @property
    def known(self) -> bool:
        """Whether the config says what it targets, or PEFT has targets for this model type."""
        return self.modules is not None or bool(self.parameters)

    @property
    def all_linear(self) -> bool:
        """Whether the config has the shorthand for every linear layer but the head."""
        return isinstance(self.modules, str) and self.modules.lower() == ALL_LINEAR

    @property
    def open(self) -> bool:
        """Whether PEFT takes the config's pattern for a list of names, which only the model itself gives: see `resolve`."""
        return self._fused is not None and isinstance(self.modules, str)

    def resolve(self, layers: Mapping[str, CodeLayer], containers: Iterable[str]) -> None:
        """Make of a pattern what PEFT makes of it where transformers 5 has fused experts.

        Of every path that it matches the last name becomes a target, wherever else in the model that name is
        (`_resolve_string_target_modules` in `peft/utils/transformers_weight_conversion.py`, read at 0.21.2).

        Args:
            layers: Those of the model, by module path, with their parameters.
            containers: Its other modules.
        """
        if not self.open or self._fused is None:
            return
        fused: Mapping[str, str] = self._fused["parameters"]
        if self.all_linear:
            found = {path.rpartition(".")[2] for path, layer in layers.items() if self._is_linear(path, layer)} | {
                *fused
            }
        else:
            parameters = [f"{path}.{name}" for path, layer in layers.items() for name in layer.parameters or ()]
            keys = [*layers, *containers, *parameters]
            found = {key.rpartition(".")[2] for key in keys if self._is_named(key, None)}
            holders = [parameter.rpartition(".") for parameter in parameters]
            found |= {
                old
                for old, new in fused.items()
                if any(name == new and self._is_named(f"{holder}.{old}", None) for holder, _, name in holders)
            }
        if found:
            self._convert(tuple(sorted(found)))
        # A pattern that matches nothing stays as it is, and PEFT raises.
        self._fused = None

    def _convert(self, targets: tuple[str, ...]) -> None:
        """As `_convert_peft_config_moe`: the names of what was fused become those of the parameters that it is now."""
        fused = self._fused or {"parameters": {}, "together": {}}
        taken: dict[str, set[str]] = {}
        kept = []
        for target in targets:
            old = next((name for name in fused["parameters"] if _ends(target, name)), None)
            if old is None:
                kept.append(target)
            else:
                taken.setdefault(fused["parameters"][old], set()).add(old)
        for new, together in fused["together"].items():
            if new in taken and len(taken[new]) == len(together) > 1:
                self._together[new] = len(together)
            if new in taken and len(taken[new]) < len(together):
                self.refused = (
                    f"The config targets {', '.join(sorted(taken[new]))} and not all of {', '.join(together)}, fused "
                    f"into {new}: PEFT raises ValueError: Cannot convert PEFT target(s)"
                )
        self.modules = tuple(kept)
        self._converted = frozenset(taken)
        self.parameters = tuple(dict.fromkeys((*self.parameters, *taken)))

    def match(self, module: str, layer: CodeLayer | None = None) -> bool | None:
        """Whether PEFT attaches to the module.

        Args:
            module: Its path in the live model.
            layer: What it is, where that is known: the shorthand for all linear layers needs it.

        Returns:
            None where the config does not say it of a path alone.
        """
        named = self._is_named(module, layer)
        if named or not self.parameters:
            return named
        held = self.parameters_of(module, layer)
        return None if held is None else bool(held)

    def parameters_of(self, module: str, layer: CodeLayer | None = None) -> tuple[str, ...] | None:
        """The parameters right in the module to which PEFT attaches (`BaseTuner._inject_parameters`).

        An entry is the end of a parameter's path. Neither `exclude_modules` nor `modules_to_save` keep a parameter out.

        Args:
            module: Its path in the live model.
            layer: What it is, where that is known.

        Returns:
            None where it is not known which parameters the module has.
        """
        if not self.parameters:
            return ()
        own = _parameters(layer)
        if own is not None:
            return tuple(name for name in own if any(_ends(f"{module}.{name}", entry) for entry in self.parameters))
        named = [entry.rpartition(".") for entry in self.parameters]
        certain = tuple(name for holder, _, name in named if holder and _ends(module, holder))
        if certain:
            return certain
        # Every layer has a weight. Of other names the path does not tell who has them.
        bare = tuple(name for holder, _, name in named if not holder)
        if "weight" in bare or (module.rpartition(".")[2] == "experts" and _OF_EXPERTS.intersection(bare)):
            return bare
        return None if bare else ()

    def levels_of(self, module: str, layer: CodeLayer | None = None) -> tuple[Levels, ...]:
        """How PEFT may nest its wrappers of the module's parameters, from the innermost on; one way where that is certain.

        The module's own order decides, which is not known of what the model's code was not asked about.

        Args:
            module: Its path in the live model.
            layer: What it is, where that is known.
        """
        names = tuple(dict.fromkeys(self.parameters_of(module, layer) or ()))
        if not names:
            return ()
        shapes = layer.parameters if layer is not None and layer.parameters is not None else {}
        orders = (names,) if _parameters(layer) is not None or len(names) > _MOST_NAMES else permutations(names)
        return tuple(tuple((name, shapes.get(name)) for name in order) for order in orders)

    def is_open(self, adapted: AdaptedLayer, ways: tuple[Levels, ...]) -> bool:
        """Whether it is uncertain which of a module's parameters its tensors are for.

        That is where the file holds tensors of fewer than PEFT wraps, or was written for other targets than it makes of the
        config's, and shapes are not known.

        Args:
            adapted: The module, with its tensors.
            ways: See `levels_of`.
        """
        if not ways or not adapted.tensors or all(shape is not None or name == "weight" for name, shape in ways[0]):
            return False
        held = sum(name.endswith("lora_A.weight") for name in adapted.tensors)
        return held != len(ways[0]) or any(name in self._converted for name, _ in ways[0])

    def settings(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """A config's fields as PEFT changes them: what it fuses of several layers gets the rank and alpha of them all.

        Args:
            settings: The fields, with PEFT's defaults.
        """
        found = dict(settings)
        for field, named in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
            value, table = found.get(field), found.get(named) or {}
            if self._together and isinstance(value, (int, float)) and isinstance(table, dict):
                more = {rf".*\.{re.escape(name)}": value * count for name, count in self._together.items()}
                found[named] = {**table, **more}
        return found

    def conflict(self, module: str, layer: CodeLayer | None = None) -> str | None:
        """What PEFT raises about parameters of the module that the config targets; None where it attaches to them."""
        if self._is_named(module, layer):
            return "the config targets both the layer and a parameter of it; PEFT raises ValueError: not a valid target"
        held = self.parameters_of(module, layer) or ()
        dimensions = layer.parameters if layer is not None and layer.parameters is not None else {}
        if any(name in dimensions and len(dimensions[name]) not in (2, 3) for name in held):
            return (
                "the config targets a parameter that is no matrix; PEFT raises ValueError: only 2d and 3d are supported"
            )
        return None

    def _is_named(self, module: str, layer: CodeLayer | None) -> bool | None:
        """Whether PEFT attaches to the module as a module."""
        if self._is_excluded(module):
            return False
        if any(self._matches(rf"(^|.*\.){name}($|\..*)", module) for name in self._saved):
            return False
        return self._is_module_targeted(module, layer)

    def target_of(self, module: str) -> str | None:
        """The entry of a list of targets that a module path ends with; None where no entry does or there is no list."""
        if self.modules is None or isinstance(self.modules, str):
            return None
        return next((target for target in self.modules if _ends(module, target)), None)

    def _is_module_targeted(self, module: str, layer: CodeLayer | None) -> bool | None:
        if self.modules is None:
            return False if self.parameters else None
        if isinstance(self.modules, str):
            if self.all_linear:
                return self._is_linear(module, layer)
            return self._matches(self.modules, module, whole=True)
        if module in self.modules:
            return True
        return any(module.endswith(f".{target}") for target in self.modules) and self._is_among_layers(module)

    def _is_excluded(self, module: str) -> bool:
        if isinstance(self._excluded, str):
            return self._matches(self._excluded, module, whole=True)
        return any(_ends(module, name) for name in self._excluded)

    def _is_linear(self, module: str, layer: CodeLayer | None) -> bool | None:
        if layer is None or layer.kind == "unknown":
            return None
        if layer.kind not in ("linear", "conv1d"):
            return False
        # Which head a model has depends on its class, and other classes may use the name for a layer like any other.
        return None if module.rpartition(".")[2] in _HEADS else True

    def _is_among_layers(self, module: str) -> bool:
        if self._indices is None:
            return True
        rules = [rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\." for pattern in self._patterns]
        for rule in rules or [r".*?\.[^.]*\.(?P<idx>\d+)\."]:
            found = patterns.match(rule, module, self._name)
            if found is not None:
                return layer_number(found["idx"] or "0") in self._indices
        return False

    def _matches(self, pattern: str, module: str, *, whole: bool = False) -> bool:
        return patterns.match(pattern, module, self._name, whole=whole) is not None

    def _names(self, fields: Mapping[str, Any], key: str) -> tuple[str, ...] | str | None:
        value = fields.get(key)
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            return tuple(value)
        raise self._makes_no_sense(f"{key} is neither a list of names nor a pattern")

    def _layer_indices(self, fields: Mapping[str, Any]) -> frozenset[int] | None:
        value = fields.get("layers_to_transform")
        if value is None or value == []:
            return None
        numbers = value if isinstance(value, list) else [value]
        if not all(type(number) is int for number in numbers):
            raise self._makes_no_sense("layers_to_transform is neither a layer number nor a list of such")
        return frozenset(numbers)

    def _makes_no_sense(self, reason: str) -> CorruptError:
        return CorruptError(
            f"{self._name}: {reason}", code="ADP304", hint="Restore the config that was saved with these weights."
        )


Levels = tuple[tuple[str, "tuple[int, ...] | None"], ...]
"""Parameters of a module by name, each with its shape where that is known."""

_MOST_NAMES = 4
"""Of experts that transformers fuses: two projections and their biases."""

_OF_EXPERTS = frozenset(("gate_up_proj", "down_proj", "gate_up_proj_bias", "down_proj_bias"))
"""What transformers 5 calls the parameters that it fuses experts into."""


def _parameters(layer: CodeLayer | None) -> tuple[str, ...] | None:
    """The names of a layer's own parameters; None where they are not known."""
    if layer is None:
        return None
    if layer.parameters is not None:
        return tuple(layer.parameters)
    if layer.kind in ("experts", "unknown") or layer.bias is None:
        return None
    return ("weight", "bias") if layer.bias else ("weight",)


def default_targets(peft_type: str, model_type: str | None) -> tuple[str, ...] | str | None:
    """What PEFT targets where a config names nothing; None where it asks for `target_modules` then.

    The table beside this module is PEFT's own (`tests/tools/generate_default_targets.py`). OSF takes all linear layers of a
    type that it does not know (`OSFModel._prepare_adapter_config`).
    """
    value = table()["methods"].get(peft_type, {}).get(model_type, ALL_LINEAR if peft_type == "OSF" else None)
    return tuple(value) if isinstance(value, list) else value


def _ends(module: str, path: str) -> bool:
    return module == path or module.endswith(f".{path}")
