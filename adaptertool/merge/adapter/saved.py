"""What an adapter holds beside its method's own tensors: modules that were trained and saved whole, and biases.

Source: `_set_trainable` in `peft/utils/other.py` and `BaseTuner._replace_module` in `peft/tuners/tuners_utils.py`, read at
0.21.2. PEFT wraps every module whose path ends with an entry of `modules_to_save`, at a dot or within a word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptertool.findings import Finding
from adaptertool.merge.adapter.adapted import PEFT_PREFIX
from adaptertool.merge.adapter.settings import HEADS_OF_LABELS, table
from adaptertool.merge.result import LayerResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.merge.adapter.adapted import AdaptedLayer
    from adaptertool.methods.merging import MergeRule

_HEADS_OF = {"SEQ_CLS": HEADS_OF_LABELS, "TOKEN_CLS": HEADS_OF_LABELS, "QUESTION_ANS": ("qa_outputs",)}

HEADS_OF_TASKS = (*HEADS_OF_LABELS, "qa_outputs")
"""What PEFT adds to the entries for a task, whatever the model calls its head (`peft/peft_model.py`)."""


def saved_entries(adapter: Adapter) -> tuple[str, ...]:
    """The entries of `modules_to_save`, those included that PEFT adds to the config's for its task.

    A method's config without this field has none: PEFT leaves out what it does not know.
    """
    config = adapter.config
    if "modules_to_save" not in table()["fields"].get(config.peft_type, ("modules_to_save",)):
        return ()
    named, task = config.fields.get("modules_to_save"), config.fields.get("task_type")
    own = [name for name in named if isinstance(name, str) and name] if isinstance(named, list) else []
    return tuple(dict.fromkeys((*own, *(_HEADS_OF.get(task, ()) if isinstance(task, str) else ()))))


def is_saved(module: str, entries: tuple[str, ...]) -> bool:
    """Whether a module is saved whole, by itself or with one that holds it.

    Args:
        module: Its path.
        entries: As of `saved_entries`.
    """
    parts = module.split(".")
    return any(".".join(parts[:at]).endswith(entries) for at in range(1, len(parts) + 1))


def open_entries(adapter: Adapter, rule: MergeRule, weighted: Iterable[str]) -> tuple[str, ...]:
    """The entries of which the file holds nothing, if it matters to the merge whether the model has such modules.

    Either the model has none, or they have no parameters, such as an activation.

    Args:
        adapter: The adapter.
        rule: What its method's merge needs.
        weighted: Modules that are known to have a weight.
    """
    if rule.any_saved_module:
        return ()
    known = {*_paths(adapter.weights.tensors), *weighted}
    return tuple(
        entry
        for entry in saved_entries(adapter)
        if entry not in HEADS_OF_TASKS and not any(path.endswith(entry) for path in known)
    )


def unknown_entries(entries: Iterable[str]) -> tuple[LayerResult, ...]:
    """What can be said of those where the model was not built."""
    reason = (
        "the adapter's config saves it whole (modules_to_save) and its file holds no tensor of it; if the model has such a "
        "module, one without parameters, PEFT raises AttributeError when it puts it back"
    )
    return tuple(LayerResult(entry, "unknown", reason=reason) for entry in entries)


def saved_modules(
    adapter: Adapter, rule: MergeRule, adapted: Iterable[AdaptedLayer], bare: Iterable[str]
) -> Iterator[Finding]:
    """The saved modules that PEFT can't load, or can't put back after the merge.

    Args:
        adapter: The adapter.
        rule: What its method's merge needs.
        adapted: The layers that it holds tensors of.
        bare: Modules of the live model that have no weight, as far as it is known.
    """
    entries = saved_entries(adapter)
    own = {name.partition(".")[0] for layer in adapted for name in layer.tensors}
    for entry in entries:
        if (part := next((name for name in sorted(own) if name.endswith(entry)), None)) is not None:
            yield Finding(
                "ADP207",
                f"modules_to_save names {entry}, and {part}, a part of the adapter's own layers, ends with that as well: PEFT "
                "takes it for a module to save, and raises KeyError or TypeError at loading",
            )
    if rule.any_saved_module:
        return
    for module in dict.fromkeys((*_saved_without_weight(adapter, entries), *_ending(bare, entries))):
        yield Finding(
            "ADP207",
            f"{module} is saved whole (modules_to_save) and has no weight of its own; PEFT raises AttributeError: object has "
            f"no attribute 'weight' when it puts such a module back after merging {adapter.config.peft_type} layers",
            tuple(name for name in adapter.weights.tensors if f".{module}." in f".{name}"),
            1,
        )


def adapted_heads(adapter: Adapter, modules: Iterable[str]) -> Iterator[Finding]:
    """The heads that PEFT saves whole for the adapter's task, and to which its method attaches before that.

    Args:
        adapter: The adapter.
        modules: The layers that the method attaches to.
    """
    task = adapter.config.fields.get("task_type")
    heads = _HEADS_OF.get(task, ()) if isinstance(task, str) else ()
    both = [
        module for module in modules if heads and module.endswith(heads) and is_saved(module, saved_entries(adapter))
    ]
    if both:
        message = (
            f"The config targets {both[0]}, and PEFT saves it whole for {task}; it raises TypeError: modules_to_save cannot "
            "be applied to modules of its own type"
        )
        yield Finding("ADP207", message, count=len(both))


def _paths(tensors: Iterable[str]) -> set[str]:
    """The modules that hold tensors of these names, and those that hold them."""
    names = (name.removeprefix(PEFT_PREFIX).split(".") for name in tensors)
    return {".".join(parts[:at]) for parts in names for at in range(1, len(parts))}


def _saved_without_weight(adapter: Adapter, entries: tuple[str, ...]) -> tuple[str, ...]:
    """The outermost modules of the file that an entry fits and that have no weight of their own."""
    names = [name.removeprefix(PEFT_PREFIX) for name in adapter.weights.tensors]
    saved: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        paths = (".".join(parts[:at]) for at in range(1, len(parts)))
        if (path := next((path for path in paths if path.endswith(entries)), None)) is not None:
            saved[path] = None
    return tuple(path for path in saved if f"{path}.weight" not in names)


def _ending(paths: Iterable[str], entries: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(path for path in paths if path.endswith(entries))
