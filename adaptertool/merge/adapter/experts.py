"""Experts that were adapted one by one under transformers 4: PEFT fuses their tensors as transformers 5 fuses the base's.

`model.layers.0.block_sparse_moe.experts.3.w1` is no layer of the model then. Source: `_convert_peft_config_moe` and
`build_peft_weight_mapping` in `peft/utils/transformers_weight_conversion.py`, read and run at 0.21.2, which does so for LoRA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptertool.merge.base.names import split_path
from adaptertool.merge.base.paths import numbers_in, with_numbers
from adaptertool.methods.shapes import RefusedError, by_pattern
from adaptertool.words import layer_number

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from adaptertool.merge.adapter.adapted import AdaptedLayer
    from adaptertool.merge.adapter.targets import Targets

_HOLDER = "experts"
_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")
_FACTORS = frozenset(("lora_A.weight", "lora_B.weight"))
_PER_NAME = ("use_dora", "lora_bias")
"""Settings that a single expert's layer has and the fused ones would need another of."""
_PATTERNS = ("rank_pattern", "alpha_pattern")
"""The same where they name an expert, before or after it was fused."""


@dataclass(frozen=True)
class FusedExperts:
    """The experts of an adapter that PEFT fuses.

    Attributes:
        modules: The layers that its file names, each with why it is not certain that PEFT makes
            the same of it; None where it is.
    """

    modules: Mapping[str, str | None]

    def may_hold(self, path: str) -> bool:
        """Whether a module is called as what holds experts is, in an adapter that has some.

        Args:
            path: Its path, in the model or in a file.
        """
        return bool(self.modules) and path.rpartition(".")[2] == _HOLDER

    def hold(self, path: str) -> bool:
        """Whether a module of the model holds some of them.

        Args:
            path: Its path.
        """
        return self.may_hold(path) and any(_block(path) == _block(module) for module in self.modules)


def fused_experts(
    config: Mapping[str, Any],
    adapted: Iterable[AdaptedLayer],
    targets: Targets,
    base: Mapping[str, Any],
    today: Iterable[str],
) -> FusedExperts:
    """The experts among the layers that an adapter's file names.

    Args:
        config: The adapter's.
        adapted: Those layers.
        targets: What its config targets.
        base: The base's config.
        today: The paths of the model's layers in its code, with `#` for each number.
    """
    live = [path for path in today if path.rpartition(".")[2] == _HOLDER]
    holders: dict[str, dict[str, dict[int, AdaptedLayer]]] = {}
    for layer in adapted:
        parts = layer.module.split(".")
        if len(parts) > 2 and parts[-3] == _HOLDER and parts[-2].isdecimal() and parts[-1] in targets.fused:
            holders.setdefault(".".join(parts[:-2]), {}).setdefault(parts[-1], {})[layer_number(parts[-2])] = layer
    modules: dict[str, str | None] = {}
    for holder, named in holders.items():
        now = [with_numbers(path, numbers) for path in live if path.count("#") == len(numbers := numbers_in(holder))]
        old = [layer.module for numbered in named.values() for layer in numbered.values()]
        fused = [f"{path}.{targets.fused[name]}" for path in (holder, *now) for name in named]
        is_named = not now or _is_named(config, (*old, *fused))
        why = _why_not(config, named, targets, _count(base), is_named=is_named)
        modules |= {layer.module: why for numbered in named.values() for layer in numbered.values()}
    return FusedExperts(modules)


def _why_not(
    config: Mapping[str, Any],
    named: Mapping[str, Mapping[int, AdaptedLayer]],
    targets: Targets,
    count: int | None,
    *,
    is_named: bool,
) -> str | None:
    taken = {targets.fused[name] for name in targets.fused if targets.fused[name] in targets.parameters}
    fused = {targets.fused[name] for name in named}
    if not fused <= taken:
        return "it is one expert of a mixture, which transformers 5 fuses, and the adapter's config does not target all"
    if len(_inner(targets) & taken) == 1 and _inner(targets) & taken != {"down_proj"}:
        return (
            "transformers 5 fuses the experts, and PEFT 0.21.2 finds no place for tensors of gate and up projections "
            "without those of down projections: it loads none of them"
        )
    if config.get("use_rslora") and len(fused) < len(named):
        return (
            "transformers 5 fuses the experts, and PEFT 0.21.2 gives what it makes of gate and up projections twice the rank "
            "and alpha: by use_rslora that is another scale than the trained one"
        )
    settings = (*_PATTERNS, *_PER_NAME) if is_named else _PER_NAME
    setting = next((field for field in settings if config.get(field)), None)
    if setting is not None:
        return f"transformers 5 fuses the experts, and what PEFT makes of {setting} for them was not looked into"
    everything = [
        (name, number) for name in targets.fused if targets.fused[name] in fused for number in range(count or 0)
    ]
    if not everything or any(
        number not in named.get(name, {}) or named[name][number].tensors.keys() != _FACTORS
        for name, number in everything
    ):
        return "transformers 5 fuses the experts, and the adapter's file lacks some of them, or tensors of them"
    return None


def _is_named(config: Mapping[str, Any], paths: Iterable[str]) -> bool:
    """Whether a pattern of the config fits one of the paths."""
    try:
        for path in paths:
            for field in _PATTERNS:
                if by_pattern({"": _NOWHERE, field: config.get(field) or {}}, "", field, path) is not _NOWHERE:
                    return True
    except RefusedError:
        return True
    return False


_NOWHERE = object()


def _inner(targets: Targets) -> set[str]:
    """What the experts are fused into; a router's weight is a parameter of another module."""
    return {new for new in targets.fused.values() if "." not in new}


def _count(base: Mapping[str, Any]) -> int | None:
    text = base.get("text_config")
    parts: Sequence[Mapping[str, Any]] = (base, text) if isinstance(text, dict) else (base,)
    found = (part.get(field) for part in parts for field in _COUNTS)
    return next((value for value in found if type(value) is int and value > 0), None)


def _block(path: str) -> tuple[str, ...]:
    """A path as far as its first number, without what wraps it."""
    head, tail = split_path(path)
    return (*head[-1:], *tail[:1])
