"""What can be done where a base layer has no bias to merge into."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

from adaptertool.merge.base.paths import pattern_of
from adaptertool.merge.base.read_layers import is_read, own_forward
from adaptertool.merge.base.tree import live_tree, stored_patterns
from adaptertool.merge.result import WayOut
from adaptertool.merge.target_modules import target_modules

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from adaptertool.merge.adapter.case import Case
    from adaptertool.merge.base.code import CodeLayer
    from adaptertool.merge.base.layer import Layer

    Tree = Mapping[str, CodeLayer]


def way_out(case: Case, blocked: Sequence[Layer]) -> WayOut:
    """The config fields that together create all missing biases; where some have no such field, what to do instead.

    Args:
        case: The adapter on its base.
        blocked: The layers that lack a bias (ADP201).
    """
    tree = live_tree(case.layers, [layer.module for layer in blocked], case.live)
    fields = {layer.module: _field(case, layer.module) for layer in blocked}
    settings = dict(field for field in fields.values() if field is not None)
    lacking = [module for module, field in fields.items() if field is None]
    if not lacking:
        return _by_config(case, tree, blocked, settings)
    return _without_config(case, tree, lacking, settings)


def _field(case: Case, module: str) -> tuple[str, bool] | None:
    """The field of the base's config that creates a layer's bias, and what it has to be; None where none does."""
    code = case.layers.code.layer(module)
    return None if code is None or code.flag is None or code.bias is not False else (code.flag, code.turned is False)


def _by_config(case: Case, tree: Tree, blocked: Sequence[Layer], settings: Mapping[str, bool]) -> WayOut:
    others = tuple(_other_biases(case, tree, blocked, settings))
    stored = sum(layer.bias is not None for layer in blocked)
    made = "created" if stored else "created as zeros"
    copy = f"In a copy of the base whose config.json says {_said(settings)}"
    sentences = [f"{copy}, the missing biases are {made}, and PEFT merges into them."]
    if stored:
        sentences.append(
            f"Of {stored} of them the base's file holds values, which are loaded then: the base computes something else than "
            "it does now."
        )
    if others:
        these = "This also creates" if len(settings) == 1 else "These also create"
        sentences.append(f"{these} biases that stay zero in {_listed(others)}.")
    if isinstance(case.base.config.get("auto_map"), dict):
        sentences.append("The code that comes with the base (auto_map), where it is trusted, need not know of that.")
    sentences.append(
        "Every program that serves the merged model must honour that: save and publish the merged model with its config. "
        "Otherwise serve the adapter unmerged."
    )
    return WayOut(tuple(settings.items()), others, (), None, " ".join(sentences))


def _without_config(case: Case, tree: Tree, lacking: Iterable[str], settings: Mapping[str, bool]) -> WayOut:
    patterns = dict.fromkeys(map(pattern_of, lacking))
    these = _listed(patterns) if settings else "these layers"
    known = case.layers.code.known
    sentences = [
        f"No field of this architecture's config gives {these} a bias, and PEFT does not add one: merge_and_unload keeps the "
        "architecture."
        if known
        else f"Whether a field of the base's config gives {these} a bias is not known here; PEFT does not add one: "
        "merge_and_unload keeps the architecture."
    ]
    instead = f" {case.rule.bias.instead}" if case.rule.bias is not None else ""
    sentences.append(f"Serve the adapter unmerged, or train it again{instead}.")
    biased = tuple(pattern for pattern, layer in tree.items() if layer.bias and _can_be_trained(case, pattern, layer))
    # In an nn.Sequential a layer has a number as its name, and what stands beside it is none.
    named = tuple(pattern for pattern in biased if not pattern.endswith("#"))
    stacked = tuple(pattern for pattern in named if "#" in pattern) or named
    names = target_modules(stacked, _all_but(case, tree, biased))
    if names is not None:
        sentences.append(
            f"Or train it on layers of this base that have a bias, {_listed(stacked)}: target_modules={_python(names)}."
        )
    elif known:
        sentences.append("No linear layer of this base has a bias.")
    if settings:
        sentences.append(
            f"Trained without {these}, it would merge into a copy of the base whose config.json says {_said(settings)}."
        )
    return WayOut((), (), biased, names, " ".join(sentences))


def _other_biases(case: Case, tree: Tree, blocked: Sequence[Layer], fields: Collection[str]) -> Iterator[str]:
    """The layers that are not adapted, or not all of them, and get a bias of zeros from these fields as well."""
    stored, numbers = stored_patterns(case.layers), Counter(map(pattern_of, case.layers.modules))
    adapted = Counter(pattern_of(layer.module) for layer in blocked)
    for pattern in tree:
        code, found = case.layers.code.layer(pattern), stored.find(pattern)
        created = code is not None and code.flag in fields and code.bias is False
        if (
            created
            and stored.bias_of(pattern, found) is None
            and adapted[pattern] < max(numbers[found.module or ""], 1)
        ):
            yield pattern


def _can_be_trained(case: Case, pattern: str, layer: CodeLayer) -> bool:
    """Whether PEFT attaches to a layer like this, and the model computes with what it attaches."""
    config, rule = case.base.config, case.rule
    return (
        layer.kind in ("linear", "conv1d")
        and (rule.kinds is None or layer.kind in rule.kinds)
        and rule.refuses(case.code.model_type, pattern) is None
        and not is_read(config, pattern)
        and own_forward(config, pattern) is None
    )


def _all_but(case: Case, tree: Tree, biased: Iterable[str]) -> set[str]:
    """The patterns of the other modules of the model, as far as they are known: layers, what holds them, and norms."""
    paths = {*tree, *map(pattern_of, case.layers.modules)}
    holders = {path[:at] for path in paths for at in range(len(path)) if path[at] == "."}
    return (paths | holders) - {*biased}


def _said(settings: Mapping[str, bool]) -> str:
    return " and ".join(f"{name}: {json.dumps(value)}" for name, value in settings.items())


def _python(names: tuple[str, ...] | str) -> str:
    return f'r"{names}"' if isinstance(names, str) else json.dumps([*names])


def _listed(patterns: Iterable[str], most: int = 6) -> str:
    """Patterns in words, those of one parent together."""
    by_parent: dict[str, list[str]] = {}
    for pattern in patterns:
        parent, dot, leaf = pattern.rpartition(".")
        by_parent.setdefault(parent + dot, []).append(leaf)
    groups = [
        parent + (leaves[0] if len(leaves) == 1 else f"{{{','.join(leaves)}}}") for parent, leaves in by_parent.items()
    ]
    shown = ", ".join(groups[:most])
    return shown if len(groups) <= most else f"{shown} and {len(groups) - most} more"
