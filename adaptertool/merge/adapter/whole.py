"""What PEFT loads in the base's place, held against the base: do the file's tensors fit, and are all of them there?

Source: `set_peft_model_state_dict` and `get_peft_model_state_dict` in `peft/utils/save_and_load.py`, and `_set_trainable` and
`set_additional_trainable_modules` in `peft/utils/other.py`, read at 0.21.2. PEFT looks up each tensor of each module that it
wraps, and raises KeyError where the file lacks it; what it finds has to be of the module's shape.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from adaptertool.findings import Finding
from adaptertool.merge.adapter.adapted import PEFT_PREFIX
from adaptertool.merge.adapter.saved import HEADS_OF_TASKS, is_saved, saved_entries
from adaptertool.merge.base.sizes import made_shape
from adaptertool.merge.result import LayerResult
from adaptertool.methods import method_of
from adaptertool.methods.shapes import is_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.checkpoint.header import TensorInfo
    from adaptertool.merge.base.layers import BaseLayers
    from adaptertool.merge.base.live import LiveModel
    from adaptertool.merge.base.shared_tensors import SharedTensors
    from adaptertool.methods.shapes import Shape

_WRAPPED = ("base_layer", "token_adapter", "original_module", "modules_to_save")
"""What stands in a tensor's name between a module that PEFT wrapped and its parameter."""

_LABELLED = ("SEQ_CLS", "TOKEN_CLS")
"""Tasks whose heads have a row for each label."""

_LABELLED_HEADS = (".classifier", ".score", ".classifier.out_proj")
"""What ends the paths of the layers that have them."""

_DEFAULT_LABELS = 2
"""As many labels does transformers take where a config does not tell (`configuration_utils.py`, read at 5.23)."""


def misfits(
    adapter: Adapter, layers: BaseLayers, shared: SharedTensors, adapted: Collection[str], told: Collection[str]
) -> Iterator[Finding]:
    """The file's copies of base tensors that are of another shape than the base's.

    Args:
        adapter: The adapter.
        layers: The base's layers.
        shared: Those of them that are one tensor.
        adapted: Modules that the method itself attaches to, and whose plain names PEFT does not load therefore.
        told: Modules of which a misfit is known already.
    """
    modules: dict[str, list[TensorInfo]] = {}
    for name, tensor in adapter.weights.tensors.items():
        module = _module_of(name)
        plain = name == f"{PEFT_PREFIX}{module}.{name.rpartition('.')[2]}"
        if _is_whole(name, adapter) and module not in told and not (plain and module in adapted):
            modules.setdefault(module, []).append(tensor)
    for module, tensors in modules.items():
        # What is tied to a layer that does not fit fails for the same reason.
        if any(set(told) & {*tie.layers} for tie in shared.of(module) or ()):
            continue
        for tensor in tensors:
            shape = _shape_of(module, tensor.name.rpartition(".")[2], layers, shared)
            if shape is None or shape == tensor.shape or _rearranged(shape, tensor.shape):
                continue
            rows = shape[1:] == tensor.shape[1:]
            unless = f", unless the base's is resized to {tensor.shape[0]} rows first" if rows and tensor.shape else ""
            message = (
                f"The adapter's file holds {module} whole, as {_text(tensor.shape)}, and the base's is {_text(shape)}: PEFT "
                f"raises a size mismatch at loading{unless}"
            )
            yield Finding("ADP203", message, tuple(one.name for one in tensors), 1)
            break


def other_labels(adapter: Adapter, layers: BaseLayers) -> Iterator[Finding | LayerResult]:
    """Heads with another number of labels than the base's config leads to, in the adapter's file or in the base's own."""
    task = adapter.config.fields.get("task_type")
    classes = {name.rpartition("For")[2] for name in layers.code.likely(adapter.config.fields, ())}
    said = _labels(layers.base.config)
    if classes == {"QuestionAnswering"} and said not in (None, _DEFAULT_LABELS):
        reason = (
            f"the base's config names {said} labels, and a head for questions has a start and an end: some models make it "
            "with as many rows as labels, and some raise"
        )
        yield LayerResult("qa_outputs", "unknown", reason=reason)
    if classes and all(name.endswith("Classification") for name in classes):
        yield from _labels_of_the_base(layers, _DEFAULT_LABELS if said is None else said)
    if task not in _LABELLED:
        return
    for name, tensor in adapter.weights.tensors.items():
        module = _module_of(name)
        if not (
            f".{module}".endswith(_LABELLED_HEADS)
            and name == f"{PEFT_PREFIX}{module}.weight"
            and len(tensor.shape) == 2
        ) or layers.stored(module):
            continue
        labels = tensor.shape[0]
        if labels == (_DEFAULT_LABELS if said is None else said):
            continue
        if said is not None:
            message = (
                f"The adapter's {module} has {labels} labels, and the base's config says {said}: PEFT raises a size mismatch "
                f"at loading, unless the base is loaded with num_labels={labels}"
            )
            yield Finding("ADP203", message, (name,), 1)
        else:
            reason = (
                f"the adapter's has {labels} labels, and the base has no such layer and does not say how many: PEFT loads it "
                f"if the base is loaded with num_labels={labels}, and raises a size mismatch else"
            )
            yield LayerResult(module, "unknown", reason=reason)


def _labels_of_the_base(layers: BaseLayers, labels: int) -> Iterator[Finding]:
    """Heads in the base's file that transformers does not load into the model of its config."""
    if layers.quantization is not None:
        return
    for module, leaves in layers.modules.items():
        if "weight" in leaves and f".{module}" in _LABELLED_HEADS and layers.code.lists(module):
            shape = layers.base.tensor(f"{module}.weight").shape
            if len(shape) == 2 and shape[0] != labels:
                message = (
                    f"The base's config does not fit its file: {module} has {shape[0]} labels there, and the config leads to "
                    f"{labels}. transformers raises when it loads the base, or, where it is told to ignore that, draws the "
                    "layer at random"
                )
                yield Finding("ADP203", message, (f"{module}.weight",), 1)


def heads_that_differ(adapter: Adapter, layers: BaseLayers) -> Iterator[Finding]:
    """Saved modules that the base's file lacks, in shapes that its code does not make, whatever the number of labels is."""
    entries = saved_entries(adapter)
    held = adapter.weights.tensors
    for name, tensor in held.items():
        module, leaf = _module_of(name), name.rpartition(".")[2]
        if name != f"{PEFT_PREFIX}{module}.{leaf}" or leaf not in ("weight", "bias") or not entries:
            continue
        layer = layers.code.layer(module)
        if layer is None or layer.kind not in ("linear", "embedding") or not is_saved(module, entries):
            continue
        weight = held.get(f"{PEFT_PREFIX}{module}.weight")
        made: Shape = made_shape(layers.code, module) or (None, None)
        rows = made[:1] if weight is None else weight.shape[:1]
        if layers.stored(module) is None and not is_of(tensor.shape, made if leaf == "weight" else rows):
            due = " x ".join("?" if one is None else str(one) for one in (made if leaf == "weight" else rows))
            message = (
                f"The adapter's file holds the {leaf} of {module} as {_text(tensor.shape)}, and the model makes it {due}: "
                "PEFT raises a size mismatch at loading"
            )
            yield Finding("ADP203", message, (name,), 1)


def nested(adapter: Adapter) -> Iterator[Finding]:
    """Modules that are saved whole and stand in others that are: PEFT saves them, and does not load them again."""
    entries = saved_entries(adapter)
    found: dict[str, list[str]] = {}
    for name in adapter.weights.tensors:
        if name.startswith(PEFT_PREFIX) and _is_whole(name, adapter):
            parts = name.removeprefix(PEFT_PREFIX).split(".")
            paths = [".".join(parts[:at]) for at in range(1, len(parts)) if parts[at - 1] not in _WRAPPED]
            saved = [path for path in paths if path.endswith(entries)] if entries else []
            if len(saved) > 1:
                found.setdefault(saved[-1], []).append(name)
    for module, names in found.items():
        message = (
            f"modules_to_save covers {module} and a module that holds it: PEFT looks for its tensors twice, and raises "
            f"KeyError: '{names[0]}' at loading"
        )
        yield Finding("ADP207", message, tuple(names), 1)


def lacking(adapter: Adapter, layers: BaseLayers, adapted: Collection[str], live: LiveModel | None) -> tuple[str, ...]:
    """The tensors of modules to save that PEFT looks up and the file lacks.

    Args:
        adapter: The adapter.
        layers: The base's layers.
        adapted: Modules that the method itself attaches to, which are saved under other names.
        live: The built model. Without it the answer goes by the base's file, and is a guess: the file can hold
            what the model does not.
    """
    entries = saved_entries(adapter)
    if not entries:
        return ()
    held = adapter.weights.tensors
    if live is not None:
        paths = ((name, name.rpartition(".")[0]) for name in live.parameters)
        return tuple(
            f"{PEFT_PREFIX}{name}"
            for name, path in paths
            if f"{PEFT_PREFIX}{name}" not in held and path not in adapted and is_saved(path, entries)
            if not layers.is_quantized(layers.stored(path) or "")
        )
    there = {layers.stored(_module_of(name)) for name in held if _is_whole(name, adapter)} | {*adapted}
    guesses = [
        f"{PEFT_PREFIX}{module}.weight"
        for module, leaves in layers.modules.items()
        if "weight" in leaves and module not in there and is_saved(module, entries) and not layers.is_beyond(module)
    ]
    guesses += [
        name
        for module in dict.fromkeys(map(_module_of, held))
        if module not in adapted and is_saved(module, entries)
        for leaf in _leaves(module, layers)
        if (name := f"{PEFT_PREFIX}{module}.{leaf}") not in held
    ]
    modules = {*adapted, *(_module_of(name) for name in held if _is_whole(name, adapter))}
    code = layers.code
    classes = code.likely(adapter.config.fields, modules)
    guesses += [
        f"{PEFT_PREFIX}{pattern}.weight"
        for pattern in code.patterns()
        if "#" not in pattern and pattern not in modules and is_saved(pattern, entries)
        if any(not code.lacking((pattern,), name) for name in classes)
    ]
    heads = tuple(entry for entry in entries if entry in HEADS_OF_TASKS)
    # Of a task's heads PEFT adds all names, and the model has one of them.
    of_task = heads and adapter.config.fields.get("task_type") in (*_LABELLED, "QUESTION_ANS")
    if of_task and not any(is_saved(_module_of(name), heads) for name in held):
        guesses.append(f"{PEFT_PREFIX}{heads[0]}.weight")
    return tuple(guesses)


def lacking_findings(names: tuple[str, ...]) -> tuple[Finding, ...]:
    """What PEFT does where a file lacks tensors of modules to save."""
    if not names:
        return ()
    module = _module_of(names[0])
    message = (
        f"modules_to_save covers {module}, and the adapter's file lacks tensors of it; PEFT raises KeyError: '{names[0]}' "
        "at loading"
    )
    return (Finding("ADP207", message, count=len(names)),)


def lacking_unknown(names: tuple[str, ...]) -> tuple[LayerResult, ...]:
    """The same where the model was not built."""
    reason = (
        "the adapter's config saves it whole (modules_to_save) and its file lacks tensors of it; if the model has this "
        "module, PEFT raises KeyError at loading"
    )
    return tuple(LayerResult(module, "unknown", reason=reason) for module in dict.fromkeys(map(_module_of, names)))


def lacking_tokens(adapter: Adapter, left_out: Collection[str]) -> Iterator[Finding]:
    """Tokens that the config names and of which the file holds no values at all.

    Args:
        adapter: The adapter.
        left_out: Tensors of the file for which the model has no module.
    """
    held = any(name.endswith("trainable_tokens_delta") and name not in left_out for name in adapter.weights.tensors)
    # Other methods' configs have no such field, and PEFT leaves it out.
    if adapter.config.peft_type not in ("LORA", "ADALORA"):
        return
    if held or not adapter.config.fields.get("trainable_token_indices"):
        return
    message = (
        "The config trains tokens (trainable_token_indices), and the adapter's file holds none; PEFT raises KeyError for "
        "token_adapter.trainable_tokens_delta at loading"
    )
    yield Finding("ADP207", message)


def _is_whole(name: str, adapter: Adapter) -> bool:
    """Whether a tensor stands in the base's place: of a module to save, an embedding that was saved beside, or a bias.

    PEFT loads whatever else has the name of one of the model's own parameters, too.
    """
    if not name.startswith(PEFT_PREFIX):
        return False
    role = method_of(adapter.config).role(name, adapter.config)
    return role in ("saved-module", "bias", "other") or name.endswith(("base_layer.weight", "base_layer.bias"))


def _module_of(name: str) -> str:
    parts = name.removeprefix(PEFT_PREFIX).split(".")[:-1]
    return ".".join(part for part in parts if part not in _WRAPPED)


def _leaves(module: str, layers: BaseLayers) -> Iterator[str]:
    """The tensors of a layer of the model, as its code has them, or else the base's file."""
    stored, code = layers.stored(module), layers.code.layer(module)
    known = code is not None and code.kind not in ("experts", "unknown")
    if known or f"{stored}.weight" in layers.base.files:
        yield "weight"
    if code.bias if known and code is not None and code.bias is not None else f"{stored}.bias" in layers.base.files:
        yield "bias"


def _shape_of(module: str, leaf: str, layers: BaseLayers, shared: SharedTensors) -> tuple[int, ...] | None:
    """The shape of a base tensor; None where its files don't tell."""
    ties = (shared.of(module) or ()) if leaf == "weight" else ()
    for one in (module, *(layer for tie in ties for layer in tie.layers if "#" not in layer)):
        stored = layers.stored(one)
        if stored is not None and f"{stored}.{leaf}" in layers.base.files:
            return None if layers.is_quantized(stored) else layers.base.tensor(f"{stored}.{leaf}").shape
    return None


def _rearranged(stored: tuple[int, ...], live: tuple[int, ...]) -> bool:
    """Whether transformers may have made one of the other at loading, as it does of experts and patch embeddings."""
    return max(len(stored), len(live)) > 2 and math.prod(stored) == math.prod(live)


def _labels(config: Mapping[str, Any]) -> int | None:
    """How many labels a base's config names."""
    named = config.get("id2label")
    number = len(named) if isinstance(named, dict) else config.get("num_labels")
    return number if type(number) is int else None


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
