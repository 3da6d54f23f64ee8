"""What was found about a merge, in findings: by layer, and about the adapter as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptertool.findings import Finding
from adaptertool.merge.result import CONTRADICTION, HAZARD
from adaptertool.methods import method_of
from adaptertool.methods.biases import lost_biases, words_about
from adaptertool.words import natural, plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.merge.adapter.adapted import AdaptedLayer
    from adaptertool.merge.adapter.attached import Attached
    from adaptertool.merge.adapter.targets import Targets
    from adaptertool.merge.base.files import Base
    from adaptertool.merge.base.layers import BaseLayers
    from adaptertool.merge.base.live import LiveModel
    from adaptertool.merge.result import LayerResult
    from adaptertool.merge.trial.fit import Fitted
    from adaptertool.methods.merging import MergeRule


def layer_findings(
    adapted: Sequence[AdaptedLayer], results: Sequence[LayerResult], rule: MergeRule
) -> tuple[Finding, ...]:
    """One finding for each code and reason.

    Args:
        adapted: What the adapter holds of each layer.
        results: What the trial found for the same layers.
        rule: What the adapter's method needs.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    counts: dict[tuple[str, str], int] = {}
    for one, result in zip(adapted, results, strict=True):
        code = result.code if result.status != "ok" else CONTRADICTION if result.reason else None
        if code is None:
            continue
        key = (code, result.reason or "")
        tensors = one.tensors
        if rule.bias is not None and rule.bias.tensor in tensors and code in ("ADP201", "ADP205", CONTRADICTION):
            tensors = {rule.bias.tensor: tensors[rule.bias.tensor]}
        groups.setdefault(key, []).extend(tensor.name for tensor in tensors.values())
        counts[key] = counts.get(key, 0) + 1
    findings = []
    for (code, reason), tensors_of in groups.items():
        count = counts[code, reason]
        where = f"in {count} of {len(results)} layers" if count < len(results) else f"in all {count} layers"
        raised = f" PEFT raises {rule.bias.raises}" if code == "ADP201" and rule.bias is not None else ""
        message = f"{where}, {reason}{'.' + raised if raised else ''}"
        findings.append(Finding(code, message[:1].upper() + message[1:], tuple(tensors_of), count))
    return tuple(sorted(findings, key=lambda finding: finding.code))


def loading_findings(
    adapted: Sequence[AdaptedLayer],
    attached: Attached,
    fitted: Fitted,
    checked: Sequence[LayerResult],
    targets: Targets,
    layers: BaseLayers,
    live: LiveModel | None,
) -> tuple[Finding, ...]:
    """What the config makes of the file: tensors that have no place, layers that have no tensors, nothing to attach to.

    Args:
        adapted: The layers that the file holds tensors of.
        attached: What PEFT attaches of them.
        fitted: What PEFT loads of them.
        checked: What was found for each layer.
        targets: What the config targets.
        layers: The base's layers.
        live: The built model, where it was built.
    """
    findings = []
    ignored = (*attached.ignored, *fitted.ignored)
    if ignored:
        what = plural(attached.ignored_layers, "layer") if attached.ignored_layers else plural(len(ignored), "tensor")
        why = "that its config does not target" if attached.ignored_layers else "that its config makes no place for"
        message = f"The file holds {what} {why}: PEFT leaves them out at loading, and they are no part of the merge"
        findings.append(Finding("ADP210", message, ignored, len(ignored)))
    fresh = [one.module for one in checked if one.module in fitted.lacking and one.module not in attached.named]
    if fresh:
        message = (
            f"The config targets {plural(len(fresh), 'layer')} of which the file lacks tensors, such as {fresh[0]}: PEFT "
            "makes them at loading, untrained, and merges them with the rest"
        )
        findings.append(Finding("ADP211", message, count=len(fresh)))
    if not checked and targets.known:
        tree = live.layers if live is not None else layers.code.patterns() if layers.code.known else None
        numbers = {"0", *(part for layer in adapted for part in layer.module.split(".") if part.isdecimal())}
        if tree is not None and not any(
            targets.match(path.replace("#", number)) for path in tree for number in numbers
        ):
            message = (
                "The base has no layer that the adapter's config targets; PEFT raises ValueError: Target modules not found in "
                "the base model"
            )
            findings.append(Finding("ADP202", message))
    return tuple(findings)


def targeted_containers(
    attached: Attached, rule: MergeRule, targets: Targets, layers: BaseLayers
) -> tuple[Finding, ...]:
    """What the config targets that is no layer and holds some: PEFT raises before it loads anything.

    Args:
        attached: What PEFT attaches of the adapter.
        rule: What its method's merge needs.
        targets: What its config targets.
        layers: The base's layers.
    """
    if rule.kinds is None and rule.whole_module is None:
        return ()
    modules = [layer.module for layer in attached.layers]
    # The file's other modules are in the model where it calls them as the model does.
    stored = layers.modules if all(module in layers.modules for module in modules) else ()
    parts_of = [module.split(".") for module in (*modules, *stored)]
    holders = {".".join(parts[:end]) for parts in parts_of for end in range(1, len(parts))} - {*modules, *stored}
    targeted = sorted(
        (one for one in holders if targets.match(one) and not attached.experts.may_hold(one)), key=natural
    )
    if not targeted:
        return ()
    message = f"The config targets {targeted[0]}, which is no layer; PEFT raises when it attaches to it"
    return (Finding("ADP207", message, count=len(targeted)),)


def lost_bias_findings(adapter: Adapter, base: Base, results: Sequence[LayerResult]) -> tuple[Finding, ...]:
    """Biases that were trained and are not in the file, where the base is known to have such.

    Args:
        adapter: The adapter.
        base: The base model.
        results: What the trial found for each layer.
    """
    lost = lost_biases(adapter.config, method_of(adapter.config), adapter.weights.tensors)
    there = (
        any(name.endswith(".bias") for name in base.files) if lost == "all" else any(one.has_bias for one in results)
    )
    if lost is None or not there:
        return ()
    words = words_about(adapter.config, lost)
    message = f"{words[:1].upper()}{words[1:]}: the merged model has the base's own in their place"
    return (Finding(HAZARD, message, fix="Find a checkpoint of the training run that holds them."),)
