"""Would merging this adapter into its base model work? Answered from headers, configs and a few kilobytes of biases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adaptertool.checkpoint.adapter import open_adapter
from adaptertool.checkpoint.target import open_target
from adaptertool.errors import CorruptError, NotFoundError, UsageError
from adaptertool.findings import Finding, gravest_first
from adaptertool.merge.adapter.adapted import PEFT_PREFIX, adapted_layers, misnamed_tensors
from adaptertool.merge.adapter.case import case_of
from adaptertool.merge.adapter.fit import Fitting
from adaptertool.merge.adapter.settings import refused
from adaptertool.merge.base.dtype import load_dtype
from adaptertool.merge.base.files import open_base
from adaptertool.merge.findings import findings_of
from adaptertool.merge.open_questions import open_without_model, with_open_questions
from adaptertool.merge.result import EXIT_CODES, HAZARD, BaseReport, LayerResult
from adaptertool.merge.trial.beside import values_beside
from adaptertool.merge.trial.followers import with_followers
from adaptertool.merge.trial.trial import Trial
from adaptertool.merge.way_out import way_out
from adaptertool.methods import method_of
from adaptertool.operations.inspect import describe_adapter, describe_target
from adaptertool.operations.result import Result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.checkpoint.target import Target
    from adaptertool.merge.adapter.adapted import AdaptedLayer
    from adaptertool.merge.adapter.case import Case
    from adaptertool.merge.base.files import Base
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
    rule = method_of(opened.config).merge
    if rule is None:
        note = f"Whether {opened.config.peft_type} adapters merge was not looked into."
        return _without_base(opened, (), threshold, note=note)
    adapted, finding = _layers_of(opened, rule)
    if finding is not None:
        return _without_base(opened, (finding,), threshold)
    base_model = _open_base(opened, base, base_revision, token)
    case = case_of(opened, rule, adapted, base_model, ask_model=ask_model)
    fitted = Fitting(case).fitted()
    load, unreadable = dtype, None
    try:
        load = load or load_dtype(base_model)
    except (CorruptError, NotFoundError) as error:
        # What can't be merged into can't, whatever the dtype.
        unreadable = error
    trial = Trial(case, load, threshold, all_biases=all_biases)
    fitted, results = with_followers(case, fitted, trial.run(fitted.pairs))
    checked = with_open_questions(case, fitted, results)
    beside = values_beside(opened, load)
    missing = [layer for (_, layer), result in zip(fitted.pairs, results, strict=True) if result.code == "ADP201"]
    report = MergeReport(
        describe_target(opened),
        describe_adapter(opened),
        _describe_base(case, trial),
        next(iter(trial.dtypes)) if len(trial.dtypes) == 1 else None,
        threshold,
        (*checked, *(one for one in beside if isinstance(one, LayerResult)), *open_without_model(case)),
        gravest_first(findings_of(case, fitted, results, checked, beside)),
        (way_out(case, missing),) if missing else (),
        _note(checked, trial),
        tuple(trial.not_examined),
    )
    if report.verdict != "not-mergeable":
        if unreadable is not None:
            raise unreadable
        base_model.check_complete()
    return report


def _layers_of(adapter: Adapter, rule: MergeRule) -> tuple[Sequence[AdaptedLayer], Finding | None]:
    """The layers that an adapter's file holds tensors of, and why it does not merge whatever the base is.

    Raises:
        CorruptError: it holds none that PEFT loads.
    """
    config, file = adapter.config, f"{adapter.folder.location}/{adapter.weights_name}"
    if (why := rule.never(config.fields)) is not None:
        return (), Finding("ADP206", f"{config.peft_type} has no merge: {why}", fix="Serve the adapter unmerged.")
    if (why := refused(config, rule)) is not None:
        return (), Finding("ADP206", f"PEFT does not load this {config.peft_type} adapter: {why}")
    prefixes = method_of(config).prefixes
    misnamed = misnamed_tensors(adapter.weights.tensors.values(), prefixes)
    left_out = {*misnamed}
    adapted = adapted_layers((info for name, info in adapter.weights.tensors.items() if name not in left_out), prefixes)
    if not adapted and misnamed:
        raise CorruptError(
            f"PEFT loads none of the tensors in {file}: the names of a PeftModel begin with {PEFT_PREFIX} once, and go on "
            f"with the path in the base, unlike {misnamed[0]}",
            hint="Name them as PEFT's save_pretrained does.",
        )
    if not adapted and rule.own_tensors:
        if (hazard := rule.hazard(config.fields)) is not None:
            return (), Finding(HAZARD, hazard, fix="Serve the adapter unmerged.")
        raise CorruptError(
            f"{file} holds no tensor of a {config.peft_type} layer",
            hint="Save the adapter again, with PEFT's save_pretrained.",
        )
    return adapted, None


def _describe_base(case: Case, trial: Trial) -> BaseReport:
    folder = case.base.folder
    return BaseReport(
        folder.location,
        folder.kind,
        folder.revision,
        "headers" if case.live is None else "model",
        folder.requests,
        folder.bytes_read,
        case.code.model_type,
        trial.biases_read,
        trial.weights_read,
    )


def _without_base(
    adapter: Adapter, findings: tuple[Finding, ...], threshold: float, note: str | None = None
) -> MergeReport:
    return MergeReport(
        describe_target(adapter), describe_adapter(adapter), None, None, threshold, (), findings, note=note
    )


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


def _note(results: Sequence[LayerResult], trial: Trial) -> str | None:
    if results and all(result.status == "ok" for result in results) and not trial.changes:
        return "The update is zero in every layer: merging changes nothing."
    return None
