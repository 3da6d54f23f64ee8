"""Ask the model itself: build it on the meta device, without weights, and look at the layers.

Only where headers and the table can't decide, and transformers is installed. Takes seconds. Code that comes with a checkpoint
(`trust_remote_code`) is never run: a model type that transformers does not know stays unknown.
"""

from __future__ import annotations

import importlib.util
import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptertool.merge.base.code import CodeLayer
from adaptertool.merge.base.ties import ties_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch
    from transformers import PreTrainedModel

    from adaptertool.merge.base.code_table import Kind
    from adaptertool.merge.base.ties import Tie

_TASK_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}

# What constructors raise for configs that they can't be built from, and for packages that are missing.
_BUILD_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)

MOST_LAYERS = 1000
"""Layers, blocks or experts that a config may name where the files hold fewer tensors than that."""

_COUNTS = re.compile(r"layer|depth|block|expert|stage")
_NO_COUNTS = re.compile(r"size|dim|length|width|hidden_states|_id$|_ids$")


@dataclass(frozen=True)
class LiveModel:
    """What the built model says.

    Attributes:
        layers: Its layers, by module path.
        ties: Those of them that are one tensor.
        renamed: Where the file stores them: module path -> module in the file, as transformers itself renames at loading.
        name: The model's class.
        bare: Its modules that have no weight.
        parameters: The shapes of all of its parameters and buffers, by name.
        generates: Whether it generates text.
        today: What PEFT renames at loading, of the paths that were asked for: LoRA's alone, from names of older versions of
            the model's code.
    """

    layers: Mapping[str, CodeLayer]
    ties: tuple[Tie, ...]
    renamed: Mapping[str, str]
    name: str
    bare: frozenset[str]
    parameters: Mapping[str, tuple[int, ...]]
    generates: bool
    today: Mapping[str, str]

    def has(self, module: str) -> bool:
        """Whether it has a module under this name."""
        return module in self.layers or module in self.bare


_ONE_AT_A_TIME = threading.Lock()


def build_live_model(
    config: Mapping[str, Any], adapter: Mapping[str, Any], modules: Sequence[str], stored: Iterable[str]
) -> LiveModel | None:
    """Build the class that the adapter was trained on, and ask it.

    Args:
        config: The base model's `config.json`.
        adapter: The adapter's config, for what it says of the model's class.
        modules: Module paths that the adapter changes. The class in which most of them exist is the one.
        stored: Names of the tensors in the base's files.

    Returns:
        None where transformers is not installed, does not know the model type, or can't build it.
    """
    if importlib.util.find_spec("transformers") is None or importlib.util.find_spec("torch") is None:
        return None
    # transformers sets torch's default dtype, which is the whole process's, while it builds a model.
    with _ONE_AT_A_TIME:
        return _build_live_model(config, adapter, modules, stored)


def _build_live_model(
    config: Mapping[str, Any], adapter: Mapping[str, Any], modules: Sequence[str], stored: Iterable[str]
) -> LiveModel | None:
    from transformers import CONFIG_MAPPING

    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        return None
    stored = list(stored)
    if _countless(dict(config), max(MOST_LAYERS, len(stored))):
        return None
    best: PreTrainedModel | None = None
    best_count = -1
    try:
        # Without auto_map no auto class looks for code that comes with the checkpoint, or asks whether it may run it.
        fields = {key: _decoded(value) for key, value in config.items() if key != "auto_map"}
        parsed = CONFIG_MAPPING[model_type].from_dict(fields)
    except _build_errors():
        return None
    for name in _class_names(config, adapter):
        model = _build(name, parsed)
        if model is None:
            continue
        tree = {path for path, _ in model.named_modules()}
        count = sum(module in tree for module in modules)
        if count > best_count:
            best, best_count = model, count
        if count == len(modules):
            break
    if best is None or (modules and not best_count):
        return None
    layers = {path: layer for path, module in best.named_modules() if (layer := _layer(module)) is not None}
    bare = frozenset(path for path, module in best.named_modules() if path and not hasattr(module, "weight"))
    parameters = {**best.state_dict(), **dict(best.named_parameters(remove_duplicate=False))}
    return LiveModel(
        layers,
        ties_of(best),
        _renamed(best, {*layers}, stored),
        type(best).__name__,
        bare,
        {name: tuple(tensor.shape) for name, tensor in parameters.items()},
        hasattr(best, "prepare_inputs_for_generation"),
        _today(best, {*layers, *bare}, modules) if adapter.get("peft_type") == "LORA" else {},
    )


def _build_errors() -> tuple[type[Exception], ...]:
    from huggingface_hub import errors

    # What configs of transformers 5 raise for a value of another type; no subclass of those above.
    strict = getattr(errors, "StrictDataclassError", None)
    return _BUILD_ERRORS if strict is None else (*_BUILD_ERRORS, strict)


def _decoded(value: Any) -> Any:
    """A value of a config.json, with infinities as numbers.

    JSON has none: transformers 5 writes `{"__float__": "Infinity"}` for Granite 4's and Mamba 2's time steps, for instance
    (`_encode_special_floats` in `configuration_utils.py`, read at 5.23).
    """
    if isinstance(value, dict):
        if value.keys() == {"__float__"} and value["__float__"] in ("NaN", "Infinity", "-Infinity"):
            return float(value["__float__"])
        return {key: _decoded(one) for key, one in value.items()}
    return [_decoded(one) for one in value] if isinstance(value, list) else value


def _countless(config: Any, most: int, key: str = "") -> bool:
    """Whether a config asks for more layers than can be: building them, even without weights, would take for ever."""
    if isinstance(config, dict):
        return any(_countless(value, most, name) for name, value in config.items())
    if isinstance(config, list):
        return any(_countless(value, most, key) for value in config)
    counts = _COUNTS.search(key) is not None and _NO_COUNTS.search(key) is None
    return counts and isinstance(config, (int, float)) and config > most


def _class_names(config: Mapping[str, Any], adapter: Mapping[str, Any]) -> list[str]:
    trained = adapter.get("auto_mapping")
    task = adapter.get("task_type")
    names = [trained.get("base_model_class") if isinstance(trained, dict) else None]
    names.append(_TASK_CLASSES.get(task, "") if isinstance(task, str) else None)
    architectures = config.get("architectures")
    names.extend(architectures if isinstance(architectures, list) else ())
    names.extend(("AutoModelForImageTextToText", "AutoModel"))
    return list(dict.fromkeys(name for name in names if isinstance(name, str) and name))


def _build(name: str, config: Any) -> PreTrainedModel | None:
    import torch
    import transformers

    model_class = getattr(transformers, name, None)
    if model_class is None:
        return None
    make = (
        model_class.from_config if hasattr(model_class, "from_config") else getattr(model_class, "_from_config", None)
    )
    if make is None:
        return None
    try:
        with torch.device("meta"):
            model = make(config)
    except _build_errors():
        return None
    return model if isinstance(model, transformers.PreTrainedModel) else None


def _layer(module: torch.nn.Module) -> CodeLayer | None:
    import torch
    from transformers.pytorch_utils import Conv1D

    kind: Kind
    if isinstance(module, torch.nn.Linear):
        kind = "linear"
    elif isinstance(module, Conv1D):
        kind = "conv1d"
    elif isinstance(module, torch.nn.Embedding):
        kind = "embedding"
    elif isinstance(module, (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)):
        kind = "conv"
    elif any(parameter.ndim == 3 for _, parameter in module.named_parameters(recurse=False)):
        kind = "experts"
    elif isinstance(getattr(module, "weight", None), torch.nn.Parameter):
        kind = "unknown"
    else:
        return None
    parameters = {name: tuple(parameter.shape) for name, parameter in module.named_parameters(recurse=False)}
    weight = getattr(module, "weight", None)
    shape = tuple(weight.shape) if isinstance(weight, torch.nn.Parameter) else None
    return CodeLayer(kind, getattr(module, "bias", None) is not None, parameters=parameters, shape=shape)


def _renamed(model: PreTrainedModel, modules: set[str], stored: Iterable[str]) -> dict[str, str]:
    """The file's modules under the names that transformers gives them at loading; empty before transformers 5."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    except ImportError:
        return {}
    conversions = get_model_conversion_mapping(model)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    state = model.state_dict()
    renamed: dict[str, str] = {}
    for name in stored:
        live, converted = rename_source_key(name, renamings, converters, getattr(model, "base_model_prefix", ""), state)
        module, _, leaf = live.rpartition(".")
        if converted is None and module in modules and leaf == name.rpartition(".")[2]:
            renamed[module] = name.rpartition(".")[0]
    return renamed


def _today(model: PreTrainedModel, paths: set[str], modules: Iterable[str]) -> dict[str, str]:
    """What PEFT calls modules that transformers' own rules rename, where the model has such a one.

    Source: `convert_peft_adapter_state_dict_for_transformers` in `peft/utils/transformers_weight_conversion.py`, read at
    0.21.2. It takes back what only shortens a name.
    """
    try:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping, get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key
    except ImportError:
        return {}
    if get_checkpoint_conversion_mapping(model.config.model_type) is None:  # type: ignore[no-untyped-call]
        return {}
    renamings = [entry for entry in get_model_conversion_mapping(model) if isinstance(entry, WeightRenaming)]
    found = {}
    for module in modules:
        renamed, _ = rename_source_key(f"{module}.lora_A.weight", renamings, [])
        today = renamed.removesuffix(".lora_A.weight")
        if module not in paths and today in paths and not module.endswith(today):
            found[module] = today
    return found
