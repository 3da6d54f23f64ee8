"""What was found about a merge, in findings: by layer, and about the adapter as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptertool.findings import Finding
from adaptertool.merge.adapter.adapted import OWN_NAME
from adaptertool.merge.adapter.saved import adapted_heads, saved_modules
from adaptertool.merge.adapter.tokens import misfits_of_copies
from adaptertool.merge.adapter.whole import (
    heads_that_differ,
    lacking_findings,
    lacking_tokens,
    misfits,
    nested,
    other_labels,
)
from adaptertool.merge.base.sizes import mismatch_findings
from adaptertool.merge.result import CONTRADICTION, HAZARD
from adaptertool.merge.trial.beside import broken_for_all
from adaptertool.methods import method_of
from adaptertool.methods.biases import lost_biases, words_about
from adaptertool.words import natural, plural

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adaptertool.merge.adapter.case import Case
    from adaptertool.merge.adapter.fit import Fitted
    from adaptertool.merge.result import LayerResult


def findings_of(
    case: Case,
    fitted: Fitted,
    results: Sequence[LayerResult],
    checked: Sequence[LayerResult],
    beside: Sequence[Finding | LayerResult],
) -> Iterator[Finding]:
    """Everything that was found, one finding for each reason.

    Args:
        case: The adapter on its base.
        fitted: What PEFT loads of it.
        results: What the trial found for each layer.
        checked: The same, with what is open.
        beside: What is wrong with values that no layer's merge looks at.
    """
    adapter, layers, placement = case.adapter, case.layers, case.placement
    unfit = {result.module for result in results if result.code == "ADP203"}
    yield from _of_layers(case, fitted, results)
    yield from _of_loading(case, fitted, checked)
    if case.targets.refused is not None:
        yield Finding("ADP207", case.targets.refused)
    yield from _targeted_containers(case)
    yield from _lost_biases(case, results)
    if not unfit:
        yield from fitted.findings
    if all(one.status == "unknown" for one in results):
        # Of a layer that is known it was told with the layer.
        yield from broken_for_all(adapter)
    yield from misfits(adapter, layers, placement.shared, placement.modules, unfit)
    yield from (one for one in other_labels(adapter, layers) if isinstance(one, Finding))
    yield from nested(adapter)
    if case.live is not None:
        yield from lacking_findings(placement.unheld)
        yield from mismatch_findings(case.mismatched)
    yield from heads_that_differ(adapter, layers)
    yield from lacking_tokens(adapter, placement.accounted.left_out)
    yield from adapted_heads(adapter, placement.modules)
    yield from saved_modules(adapter, case.rule, case.adapted, case.live.bare if case.live is not None else ())
    yield from misfits_of_copies(placement.tokens)
    yield from (one for one in beside if isinstance(one, Finding))


def _of_layers(case: Case, fitted: Fitted, results: Sequence[LayerResult]) -> tuple[Finding, ...]:
    """One finding for each code and reason."""
    rule = case.rule
    groups: dict[tuple[str, str], list[str]] = {}
    counts: dict[tuple[str, str], int] = {}
    for (one, _), result in zip(fitted.pairs, results, strict=True):
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


def _of_loading(case: Case, fitted: Fitted, checked: Sequence[LayerResult]) -> Iterator[Finding]:
    """What the config makes of the file: tensors that have no place, layers that have no tensors, nothing to attach to."""
    attached = case.attached
    left_out = case.placement.accounted.left_out
    ignored = (*attached.ignored, *fitted.ignored, *left_out)
    if ignored:
        of_layers = attached.ignored_layers and not left_out
        what = plural(attached.ignored_layers, "layer") if of_layers else plural(len(ignored), "tensor")
        why = "that its config does not target" if of_layers else "that its config and this base make no place for"
        message = f"The file holds {what} {why}: PEFT leaves them out at loading, and they are no part of the merge"
        yield Finding("ADP210", message, ignored, len(ignored))
    own_named = tuple(name for layer in attached.layers for name in layer.own_named)
    if own_named:
        message = (
            f"{plural(len(own_named), 'tensor')} in the file {'has' if len(own_named) == 1 else 'have'} the adapter's name "
            f"({OWN_NAME}) in theirs, as in a model's own state dict: PEFT 0.21 loads them if the adapter is given that name, "
            "which is the usual one; under another, and up to PEFT 0.20, it leaves them out, and merges nothing of them"
        )
        fix = "Save the adapter again, with PEFT's save_pretrained."
        yield Finding("ADP210", message, own_named, len(own_named), fix=fix)
    fresh = [one.module for one in checked if one.module in fitted.lacking and one.module not in attached.named]
    if fresh:
        message = (
            f"The config targets {plural(len(fresh), 'layer')} of which the file lacks tensors, such as {fresh[0]}: PEFT "
            "makes them at loading, untrained, and merges them with the rest"
        )
        yield Finding("ADP211", message, count=len(fresh))
    if not checked and case.targets.known:
        tree = case.live.layers if case.live is not None else case.code.patterns() if case.code.known else None
        numbers = {"0", *(part for layer in case.adapted for part in layer.module.split(".") if part.isdecimal())}
        if tree is not None and not any(
            case.targets.match(path.replace("#", number)) for path in tree for number in numbers
        ):
            message = (
                "The base has no layer that the adapter's config targets; PEFT raises ValueError: Target modules not found in "
                "the base model"
            )
            yield Finding("ADP202", message)


def _targeted_containers(case: Case) -> Iterator[Finding]:
    """What the config targets that is no layer and holds some: PEFT raises before it loads anything."""
    if case.rule.kinds is None and case.rule.whole_module is None:
        return
    modules = [layer.module for layer in case.attached.layers]
    # The file's other modules are in the model where it calls them as the model does.
    stored = case.layers.modules if all(module in case.layers.modules for module in modules) else ()
    parts_of = [module.split(".") for module in (*modules, *stored)]
    holders = {".".join(parts[:end]) for parts in parts_of for end in range(1, len(parts))} - {*modules, *stored}
    targeted = sorted(
        (one for one in holders if case.targets.match(one) and not case.attached.experts.may_hold(one)), key=natural
    )
    if targeted:
        message = f"The config targets {targeted[0]}, which is no layer; PEFT raises when it attaches to it"
        yield Finding("ADP207", message, count=len(targeted))


def _lost_biases(case: Case, results: Sequence[LayerResult]) -> Iterator[Finding]:
    """Biases that were trained and are not in the file, where the base is known to have such."""
    config, tensors = case.adapter.config, case.adapter.weights.tensors
    lost = lost_biases(config, method_of(config), tensors)
    stored = any(name.endswith(".bias") for name in case.base.files)
    if lost is None or not (stored if lost == "all" else any(one.has_bias for one in results)):
        return
    words = words_about(config, lost)
    message = f"{words[:1].upper()}{words[1:]}: the merged model has the base's own in their place"
    yield Finding(HAZARD, message, fix="Find a checkpoint of the training run that holds them.")
