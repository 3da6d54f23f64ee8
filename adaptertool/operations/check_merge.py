"""Would merging this adapter into its base model work? Answered from headers, configs and a few kilobytes of biases."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adaptertool.checkpoint.adapter import open_adapter
from adaptertool.checkpoint.target import open_target
from adaptertool.errors import CorruptError, NotFoundError, UsageError
from adaptertool.findings import Finding
from adaptertool.merge.adapter.adapted import PEFT_PREFIX, adapted_layers, misnamed_tensors
from adaptertool.merge.adapter.attached import attached_layers
from adaptertool.merge.adapter.pair import broken_for_all, other_shapes
from adaptertool.merge.adapter.saved import broken_beside, open_entries, saved_modules, unknown_entries
from adaptertool.merge.adapter.targets import Targets, unknown_settings
from adaptertool.merge.adapter.tokens import is_token_layer, trained_tokens, without_copies
from adaptertool.merge.adapter.whole import (
    lacking,
    lacking_findings,
    lacking_tokens,
    lacking_unknown,
    misfits,
    nested,
    other_labels,
)
from adaptertool.merge.base.code import ModelCode, load_dtype
from adaptertool.merge.base.files import open_base
from adaptertool.merge.base.layers import BaseLayers
from adaptertool.merge.base.live import build_live_model
from adaptertool.merge.base.ties import SharedTensors
from adaptertool.merge.result import CONTRADICTION, EXIT_CODES, HAZARD, BaseReport, LayerResult
from adaptertool.merge.trial.adapter_values import REMOTE_SCAN_BYTES
from adaptertool.merge.trial.hazards import Hazards
from adaptertool.merge.trial.trial import Trial
from adaptertool.merge.ways_out import ways_out
from adaptertool.methods import method_of
from adaptertool.methods.biases import lost_biases, words_about
from adaptertool.methods.merging import wrong_length
from adaptertool.methods.trainable_tokens import TRAINABLE_TOKENS
from adaptertool.operations.inspect import describe_adapter, describe_target
from adaptertool.operations.result import Result
from adaptertool.words import natural, plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.checkpoint.target import Target
    from adaptertool.merge.adapter.adapted import AdaptedLayer
    from adaptertool.merge.adapter.attached import Attached
    from adaptertool.merge.adapter.experts import FusedExperts
    from adaptertool.merge.base.code import CodeLayer
    from adaptertool.merge.base.files import Base
    from adaptertool.merge.base.layer import Layer
    from adaptertool.merge.base.live import LiveModel
    from adaptertool.merge.result import Verdict, WayOut
    from adaptertool.methods.merging import MergeRule
    from adaptertool.operations.inspect import AdapterReport, TargetReport

DTYPES = ("float32", "bfloat16", "float16", "float64")
"""The dtypes in which a merge can be tried."""

DEFAULT_THRESHOLD = 0.25
"""The `rounding_loss` above which a layer counts as lossy: a quarter of the update's length, in the Euclidean sense.

A bfloat16 bias of 1 has neighbours 0.0078 apart, so that rounding errors of about 0.002 a value are normal. An update of 0.02
a value then loses a tenth of its length, one of 0.005 almost half.
"""


@dataclass(frozen=True)
class MergeReport(Result):
    """The result of `check_merge`: whether an adapter would merge into its base.

    Attributes:
        target: Where the adapter was read from.
        adapter: What it is.
        base: Where the base was read from; None where it was not needed, because the method has no merge.
        dtype: The dtype that the merge was tried in; None where no values were added.
        threshold: The `rounding_loss` above which a layer counts as lossy.
        layers: Every layer that the adapter changes, in the order of its file.
        findings: What was found, one for each reason.
        ways_out: What can be done about missing biases; empty where none are missing.
        note: What else there is to say, in a sentence: a method that was not looked into, an update that is all zero.
        not_examined: What was not looked at and is taken to be in order, a sentence each.
    """

    target: TargetReport
    adapter: AdapterReport
    base: BaseReport | None
    dtype: str | None
    threshold: float
    layers: tuple[LayerResult, ...]
    findings: tuple[Finding, ...]
    ways_out: tuple[WayOut, ...] = ()
    note: str | None = None
    not_examined: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """One blocked layer makes the whole not mergeable; else one unknown layer makes it unknown."""
        if any(finding.severity == "error" and finding.code != HAZARD for finding in self.findings):
            return "not-mergeable"
        statuses = {layer.status for layer in self.layers}
        if "blocked" in statuses:
            return "not-mergeable"
        if "unknown" in statuses:
            return "unknown"
        if "lossy" in statuses or any(finding.code == HAZARD for finding in self.findings):
            return "lossy"
        return "mergeable" if statuses else "unknown"

    @property
    def exit_code(self) -> int:
        """The exit code of the command line."""
        return EXIT_CODES[self.verdict]


def check_merge(
    adapter: str | Path,
    base: str | Path | None = None,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | None = None,
    base_revision: str | None = None,
    threshold: float = DEFAULT_THRESHOLD,
    ask_model: bool = True,
    all_biases: bool = False,
) -> MergeReport:
    """Find out, layer by layer, what PEFT's `merge_and_unload(safe_merge=True)` would do. Nothing is loaded or changed.

    Args:
        adapter: Where the adapter is: see `open_target`.
        base: Where the base model is; by default what the adapter's config names, at the revision that it names.
        dtype: The dtype in which the base is loaded for the merge, one of `DTYPES`; by default the one that transformers 5
            takes, which is the base config's, or else the stored one.
        revision: The adapter's revision on the Hub.
        subfolder: The adapter's folder in its repo.
        token: Access token for the Hub.
        base_revision: The base model's revision on the Hub.
        threshold: The `rounding_loss` above which a layer counts as lossy.
        ask_model: Whether the model may be built on the meta device where headers and config can't decide. That needs
            transformers and takes seconds.
        all_biases: Whether the biases of a base on the Hub are read however many they are, a request each. By default they
            are if there are no more than 64, and are not looked at if there are more (`MergeReport.not_examined`).

    Raises:
        UsageError: no base is named, or the dtype or threshold makes no sense.
        NotFoundError, CorruptError, UnsupportedError, …: the adapter or the base can't be read.
    """
    dtype = check_options(dtype, threshold)
    opened = open_adapter(open_target(adapter, revision=revision, subfolder=subfolder, token=token))
    method = method_of(opened.config)
    rule = method.merge
    if rule is None:
        note = f"Whether {opened.config.peft_type} adapters merge was not looked into."
        return MergeReport(describe_target(opened), describe_adapter(opened), None, None, threshold, (), (), note=note)
    if (why := rule.never(opened.config.fields)) is not None:
        message = f"{opened.config.peft_type} has no merge: {why}"
        return _without_base(opened, Finding("ADP206", message, fix="Serve the adapter unmerged."), threshold)
    if (why := rule.refused(opened.config.fields)) is not None:
        message = f"PEFT does not load this {opened.config.peft_type} adapter: {why}"
        return _without_base(opened, Finding("ADP206", message), threshold)
    misnamed = misnamed_tensors(opened.weights.tensors.values(), method.prefixes)
    left_out = {*misnamed}
    loaded = (info for name, info in opened.weights.tensors.items() if name not in left_out)
    adapted = adapted_layers(loaded, method.prefixes)
    if not adapted and misnamed:
        raise CorruptError(
            f"PEFT loads none of the tensors in {opened.folder.location}/{opened.weights_name}: the names of a PeftModel "
            f"begin with {PEFT_PREFIX} once, and go on with the path in the base, unlike {misnamed[0]}",
            hint="Name them as PEFT's save_pretrained does.",
        )
    if not adapted and rule.own_tensors:
        if (hazard := rule.hazard(opened.config.fields)) is not None:
            return _without_base(opened, Finding(HAZARD, hazard, fix="Serve the adapter unmerged."), threshold)
        raise CorruptError(
            f"{opened.folder.location}/{opened.weights_name} holds no tensor of a {opened.config.peft_type} layer",
            hint="Save the adapter again, with PEFT's save_pretrained.",
        )
    base_model = _open_base(opened, base, base_revision, token)
    code = ModelCode(base_model.config)
    layers = BaseLayers(base_model, code)
    targets = Targets(opened.config, code.model_type)
    shared = SharedTensors(layers, opened.config.fields)
    tokens = trained_tokens(opened, targets, shared)
    own = without_copies(opened, adapted, tokens, targets, shared)
    attached = attached_layers(opened, own, rule, targets, layers)
    beside = tuple(one for one in tokens.layers if all(one.module != other.module for other in own))
    everything = (*attached.layers, *beside)
    pairs = [(one, _ask(opened, layers, one, rule, targets, attached.experts)) for one in everything]
    live: LiveModel | None = None
    weighted = (*(path for path, leaves in layers.modules.items() if "weight" in leaves), *code.patterns())
    entries = open_entries(opened, rule, weighted)
    unsure = any(layer.status == "unknown" or shared.of(layer.module) is None for _, layer in pairs)
    unheld = lacking(opened, layers, {layer.module for layer in everything}, None)
    if ask_model and (targets.open or attached.open or attached.undecided or entries or unheld or unsure):
        modules = [layer.module for layer in adapted if layer.module not in attached.experts.modules]
        live = build_live_model(base_model.config, opened.config.fields, modules, base_model.files)
    if live is not None:
        targets.resolve(live.layers, live.bare)
        known = {layer.module: layer for _, layer in pairs if layer.status != "unknown"}
        layers = BaseLayers(base_model, code, live.renamed)
        shared = SharedTensors(layers, opened.config.fields, live.ties)
        tokens = trained_tokens(opened, targets, shared)
        own = without_copies(opened, adapted, tokens, targets, shared)
        attached = attached_layers(opened, own, rule, targets, layers, live.layers)
        beside = tuple(one for one in tokens.layers if all(one.module != other.module for other in own))
        everything = (*attached.layers, *beside)
        pairs = [
            (
                one,
                known.get(one.module)
                or _ask(opened, layers, one, rule, targets, attached.experts, live.layers.get(one.module)),
            )
            for one in everything
        ]
        unheld = lacking(opened, layers, {layer.module for layer in everything}, live.layers)
    load = dtype or load_dtype(base_model.config)
    trial = Trial(
        opened,
        base_model,
        rule,
        load,
        threshold,
        hazards=Hazards(opened, rule, layers, shared, tokens),
        all_biases=all_biases,
    )
    results = trial.run(pairs)
    missing = [layer for (_, layer), result in zip(pairs, results, strict=True) if result.code == "ADP201"]
    checked = _with_open_questions(opened, rule, attached, targets, results)
    labels = tuple(other_labels(opened, layers))
    checked = (*checked, *(one for one in labels if isinstance(one, LayerResult)))
    unfit = {result.module for result in results if result.code == "ADP203"}
    folder = base_model.folder
    most_bytes = math.inf if opened.folder.kind == "local" else REMOTE_SCAN_BYTES
    report = MergeReport(
        describe_target(opened),
        describe_adapter(opened),
        BaseReport(
            folder.location,
            folder.kind,
            folder.revision,
            "headers" if live is None else "model",
            folder.requests,
            folder.bytes_read,
            code.model_type,
            trial.biases_read,
            trial.weights_read,
        ),
        next(iter(trial.dtypes)) if len(trial.dtypes) == 1 else None,
        threshold,
        checked if live is not None else (*checked, *unknown_entries(entries), *lacking_unknown(unheld)),
        (
            *_findings(everything, results, rule),
            *_loading_findings(adapted, attached, checked, targets, layers, live),
            *([Finding("ADP207", targets.refused)] if targets.refused is not None else []),
            *_targeted_containers(attached, rule, targets, layers),
            *_lost_biases(opened, base_model, results),
            *(
                []
                if unfit
                else other_shapes(opened, layers, [one for adapted, one in pairs if not is_token_layer(adapted)])
            ),
            # Of a layer that is known it was told with the layer.
            *(broken_for_all(opened, most_bytes) if all(one.status == "unknown" for one in results) else ()),
            *misfits(opened, layers, shared, {layer.module for layer in everything}, unfit),
            *(one for one in labels if isinstance(one, Finding)),
            *nested(opened),
            *(lacking_findings(unheld) if live is not None else ()),
            *lacking_tokens(opened),
            *saved_modules(opened, rule, adapted, live.bare if live is not None else ()),
            *broken_beside(opened, load, most_bytes),
        ),
        ways_out(layers, missing) if missing else (),
        _note(checked, trial),
        tuple(trial.not_examined),
    )
    if report.verdict != "not-mergeable":
        base_model.check_complete()
    return report


def _lost_biases(adapter: Adapter, base: Base, results: Sequence[LayerResult]) -> tuple[Finding, ...]:
    """Biases that were trained and are not in the file, where the base is known to have such."""
    lost = lost_biases(adapter.config, method_of(adapter.config), adapter.weights.tensors)
    there = (
        any(name.endswith(".bias") for name in base.files) if lost == "all" else any(one.has_bias for one in results)
    )
    if lost is None or not there:
        return ()
    words = words_about(adapter.config, lost)
    message = f"{words[:1].upper()}{words[1:]}: the merged model has the base's own in their place"
    return (Finding(HAZARD, message, fix="Find a checkpoint of the training run that holds them."),)


def _with_open_questions(
    adapter: Adapter, rule: MergeRule, attached: Attached, targets: Targets, results: Sequence[LayerResult]
) -> tuple[LayerResult, ...]:
    """The results, with what can't be told of updates that the file does not hold."""
    checked = list(results)
    zero = rule.starts_at_zero(adapter.config.fields)
    held = {layer.module: layer.tensors for layer in attached.layers}
    drawn = {
        module
        for module, names in attached.lacking.items()
        if not zero or (held[module] and not rule.zeros.issuperset(names))
    }
    # Under 0.21.2, `_remap_adapter_state_dict_for_load` passes such names on as they are.
    reason = (
        "its tensors have the adapter's name (default) in theirs, which PEFT's files have not: PEFT 0.21.2 can load them "
        "only if the adapter is given that name; under another name it makes the layer anew, untrained"
    )
    checked = [
        replace(one, status="unknown", reason=reason) if one.status == "ok" and one.module in attached.named else one
        for one in checked
    ]
    reason = "the adapter's file lacks tensors of it: PEFT makes them at loading, and merges values that nobody trained"
    checked = [
        replace(one, status="unknown", reason=reason) if one.status == "ok" and one.module in drawn else one
        for one in checked
    ]
    shared = [name for name in adapter.weights.tensors if name.startswith("base_model.")]
    wanted = rule.shared(adapter.config.fields)
    absent = [name for name in wanted if not any(one.startswith(f"base_model.{name}") for one in shared)]
    if absent:
        reason = (
            f"the adapter's file lacks {absent[0]}, which all layers share: PEFT raises, or makes it anew, untrained"
        )
        checked = [replace(one, status="unknown", reason=reason) if one.status == "ok" else one for one in checked]
    if (why := rule.undecided(adapter.config.fields) or unknown_settings(adapter.config)) is not None:
        checked = [replace(one, status="unknown", reason=why) if one.status == "ok" else one for one in checked]
    reason = (
        "the adapter's config targets it and its file holds no tensors of it; whether the model has such a layer can't be "
        "told from the base's files"
    )
    pattern = (
        "PEFT makes names of this pattern, because transformers 5 has fused layers of this model; which ones can't be told "
        "without building it"
    )
    return (
        *checked,
        *(LayerResult(module, "unknown", reason=reason) for module in attached.open),
        *([LayerResult("target_modules", "unknown", reason=pattern)] if targets.open else []),
    )


def _loading_findings(
    adapted: Sequence[AdaptedLayer],
    attached: Attached,
    checked: Sequence[LayerResult],
    targets: Targets,
    layers: BaseLayers,
    live: LiveModel | None,
) -> tuple[Finding, ...]:
    """What the config makes of the file: tensors that have no place, layers that have no tensors, nothing to attach to."""
    findings = []
    if attached.ignored:
        what = (
            plural(attached.ignored_layers, "layer")
            if attached.ignored_layers
            else plural(len(attached.ignored), "tensor")
        )
        why = "that its config does not target" if attached.ignored_layers else "that its config makes no place for"
        message = f"The file holds {what} {why}: PEFT leaves them out at loading, and they are no part of the merge"
        findings.append(Finding("ADP210", message, attached.ignored, len(attached.ignored)))
    fresh = [one.module for one in checked if one.module in attached.lacking and one.module not in attached.named]
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


def _targeted_containers(
    attached: Attached, rule: MergeRule, targets: Targets, layers: BaseLayers
) -> tuple[Finding, ...]:
    """What the config targets that is no layer and holds some: PEFT raises before it loads anything."""
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


def _without_base(adapter: Adapter, finding: Finding, threshold: float) -> MergeReport:
    return MergeReport(describe_target(adapter), describe_adapter(adapter), None, None, threshold, (), (finding,))


def check_options(dtype: str | None, threshold: float) -> str | None:
    """Refuse values that make no sense whatever the adapter.

    Args:
        dtype: One of `DTYPES`, as torch or its users spell it.
        threshold: See `check_merge`.

    Returns:
        The dtype as in `DTYPES`.

    Raises:
        UsageError: one of them makes no sense.
    """
    if not threshold >= 0:
        raise UsageError(
            f"a threshold of {threshold} makes no sense", hint="It is a share of the update: 0.25 is a quarter."
        )
    if dtype is None:
        return None
    short = dtype.removeprefix("torch.")
    if short not in DTYPES:
        raise UsageError(f"{dtype} is no dtype to merge in", hint=f"One of {', '.join(DTYPES)}.")
    return short


def _open_base(adapter: Adapter, base: str | Path | None, revision: str | None, token: str | None) -> Base:
    if base is not None:
        return open_base(open_target(base, revision=revision, token=token, single_names=True))
    named = adapter.config.text_or_none("base_model_name_or_path")
    if not named:
        raise UsageError(
            f"{adapter.config.name} names no base model", hint="Name the model that it was trained on with --base."
        )
    if revision is None and not Path(named).exists():
        revision = adapter.config.text_or_none("revision") if "@" not in named else None
    try:
        target: Target = open_target(named, revision=revision, token=token, single_names=True)
        return open_base(target)
    except NotFoundError as error:
        raise NotFoundError(
            f"the base model that {adapter.config.name} names can't be found: {error.message}",
            hint="Name the model that it was trained on with --base.",
        ) from error


def _ask(
    adapter: Adapter,
    layers: BaseLayers,
    adapted: AdaptedLayer,
    rule: MergeRule,
    targets: Targets,
    experts: FusedExperts,
    live: CodeLayer | None = None,
) -> Layer:
    fields = adapter.config.fields
    if is_token_layer(adapted) and TRAINABLE_TOKENS.merge is not None:
        rule = TRAINABLE_TOKENS.merge
    module = rule.base_module(fields, adapted.module)
    held = targets.parameters_of(adapted.module, live or layers.code.layer(module))
    kinds = rule.kinds if held == () else None
    trained = bool(adapted.tensors)
    if rule.bias is not None and rule.bias.wanted(fields):
        layer = layers.needs_bias(
            module, kinds=kinds, trained=trained, weight=not rule.bias.alone, live=live, quantised=rule.bias.quantised
        )
    else:
        layer = layers.needs_weight(
            module,
            live=live,
            kinds=kinds,
            trained=trained,
            quantised=rule.quantised,
        )
    layer = replace(layer, module=adapted.module)
    if adapted.module in experts.modules and layer.status == "unknown" and layer.layer_type == "experts":
        why = experts.modules[adapted.module]
        certain = why is None and layer.stored is not None
        layer = replace(layer, status="ok" if certain else "unknown", reason=why or (None if certain else layer.reason))
    if layer.status == "ok" and layer.layer_type == "quantized" and layers.quantization is not None:
        why = rule.plain_only(fields, layers.quantization)
        if why is not None:
            reason = f"the base layer is quantised with {layers.quantization}: {why}"
            layer = replace(layer, status="blocked", code="ADP207", reason=reason)
    refused = rule.refuses(layers.code.model_type, module)
    if refused is None and held:
        refused = rule.refuses_parameters(fields) or targets.conflict(adapted.module, live or layers.code.layer(module))
    if refused is not None:
        return replace(layer, status="blocked", code="ADP207", reason=refused)
    misfit = rule.misfit(fields, adapted.module, adapted.tensors) or wrong_length(rule, fields, adapted.tensors)
    return layer if misfit is None else replace(layer, status="blocked", code="ADP203", reason=misfit)


def _findings(adapted: Sequence[AdaptedLayer], results: Sequence[LayerResult], rule: MergeRule) -> tuple[Finding, ...]:
    """One finding for each code and reason."""
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


def _note(results: Sequence[LayerResult], trial: Trial) -> str | None:
    if results and all(result.status == "ok" for result in results) and not trial.changes:
        return "The update is zero in every layer: merging changes nothing."
    return None
