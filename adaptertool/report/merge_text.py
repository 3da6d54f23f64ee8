"""`check-merge` as text for people: the answer first, layers collapsed into ranges, then what can be done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from adaptertool.merge.base.paths import pattern_of
from adaptertool.report.findings_text import findings_text
from adaptertool.report.layout import Records, bullets
from adaptertool.report.pipeline import summary_of
from adaptertool.report.styles import LAYERS, MERGES
from adaptertool.words import collapsed, plural, printable, shortened, size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adaptertool.merge.result import LayerResult
    from adaptertool.operations.check_merge import MergeReport

_ORDER = ("blocked", "lossy", "unknown", "ok")


def merge_text(report: MergeReport, *, all_layers: bool = False) -> RenderableType:
    """What `check-merge` shows.

    Args:
        report: The result.
        all_layers: Whether every layer gets a line of its own, with its numbers.
    """
    parts: list[RenderableType] = [_head(report), ""]
    verdict = Text(report.verdict, style=MERGES[report.verdict])
    verdict.append(f": {printable(summary_of(report))}", style="not bold default")
    parts.append(verdict)
    if report.note and report.note != summary_of(report):
        parts.append(Text(printable(report.note)))
    if report.layers:
        parts += ["", _every_layer(report.layers) if all_layers else _ranges(report.layers)]
    if report.findings:
        parts += ["", *findings_text(report.findings, names=False)]
    reasons = dict.fromkeys(layer.reason for layer in report.layers if layer.status == "unknown" and layer.reason)
    for title, texts, length in (
        ("Could not find out:", reasons, 400),
        ("Not looked at:", report.not_examined, 400),
        ("What can be done:", [way.text for way in report.ways_out], 900),
    ):
        if texts:
            parts += ["", Text(title, style="bold"), *bullets(shortened(text, length) for text in texts)]
    return Group(*parts)


def _head(report: MergeReport) -> Text:
    text = Text(shortened(report.target.location), style="bold")
    facts = [f"{report.adapter.peft_type} adapter"]
    if report.layers:
        facts.append(plural(len(report.layers), "layer"))
    text.append("\n" + shortened(", ".join(facts)), style="not bold")
    if report.base is not None:
        base = report.base
        sources = [
            "its headers",
            *([plural(base.biases_read, "bias", "biases")] if base.biases_read else []),
            *([plural(base.weights_read, "weight")] if base.weights_read else []),
            *(["the model, built without weights"] if base.source == "model" else []),
        ]
        how = " and ".join([", ".join(sources[:-1]), sources[-1]] if len(sources) > 1 else sources)
        text.append("\nbase model " + shortened(base.location), style="not bold")
        if base.revision:
            text.append(f" at {base.revision[:12]}", style="not bold")
        read = f"{size(base.bytes_read)} read" + (f", {plural(base.requests, 'request')}" if base.requests else "")
        text.append(f" ({shortened(base.model_type or 'unnamed type')}): {how}, {read}", style="not bold")
    if report.dtype:
        text.append(f"\nmerged in {report.dtype}", style="not bold")
    return text


def _ranges(layers: Sequence[LayerResult]) -> Records:
    """One line for each group of layers that differ in their number alone."""
    rows = []
    groups: dict[tuple[str, str | None, bool | None, str], list[LayerResult]] = {}
    for layer in sorted(layers, key=lambda one: _ORDER.index(one.status)):
        groups.setdefault((layer.status, layer.code, layer.has_bias, layer.layer_type), []).append(layer)
    for (status, code, has_bias, layer_type), members in groups.items():
        for line, alike in _alike(members):
            losses = [member.rounding_loss for member in alike if member.rounding_loss is not None]
            rows.append(
                (
                    Text(status, style=LAYERS[status]),
                    Text(_kind(code, layer_type)),
                    Text(_bias(has_bias)),
                    Text(_loss(max(losses)) if losses else ""),
                    Text(shortened(line, 400)),
                )
            )
    return Records(("", "finding", "bias", ">loss", "layers"), rows)


def _alike(members: Sequence[LayerResult]) -> Iterator[tuple[str, list[LayerResult]]]:
    """The layers that differ in their number alone, and a line that names them all."""
    groups: dict[str, list[LayerResult]] = {}
    for member in members:
        groups.setdefault(pattern_of(member.module), []).append(member)
    for alike in groups.values():
        for line in collapsed(printable(member.module) for member in alike):
            yield line, alike


def _every_layer(layers: Sequence[LayerResult]) -> Records:
    rows = [
        (
            Text(layer.status, style=LAYERS[layer.status]),
            Text(_kind(layer.code, layer.layer_type)),
            Text(_bias(layer.has_bias)),
            Text("" if layer.rounding_loss is None else _loss(layer.rounding_loss)),
            Text(_norm(layer.update_norm)),
            Text(_norm(layer.bias_norm)),
            Text(shortened(layer.module, 200)),
        )
        for layer in layers
    ]
    return Records(("", "finding", "bias", ">loss", ">update", ">base", "layer"), rows)


def _kind(code: str | None, layer_type: str) -> str:
    return code or ("" if layer_type in ("linear", "unknown") else layer_type)


def _bias(has_bias: bool | None) -> str:
    return {True: "yes", False: "none", None: "?"}[has_bias]


def _loss(loss: float) -> str:
    return "0 %" if loss == 0 else "< 0.1 %" if loss < 0.001 else f"{100 * loss:.3g} %"


def _norm(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
