"""`check-merge --format json`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptertool import __version__
from adaptertool.report.json import adapter_block, findings_block, target_block

if TYPE_CHECKING:
    from adaptertool.merge.result import BaseReport, LayerResult, WayOut
    from adaptertool.operations.check_merge import MergeReport
    from adaptertool.operations.inspect import AdapterReport


def merge_document(report: MergeReport) -> dict[str, Any]:
    """The document that scripts rely on; NaN and infinity never occur in it."""
    return {
        "schema": "adaptertool/check-merge/1",
        "version": __version__,
        "adapter": adapter_block(report.adapter),
        "target": target_block(report.target),
        "base": _base(report.base) if report.base else _unopened(report.adapter),
        "verdict": report.verdict,
        "dtype": report.dtype,
        "threshold": report.threshold,
        "note": report.note,
        "layers": [_layer(layer) for layer in report.layers],
        "findings": findings_block(report.findings),
        "ways_out": [_way_out(way) for way in report.ways_out],
        "not_examined": list(report.not_examined),
    }


def _unopened(adapter: AdapterReport) -> dict[str, Any]:
    """A base that nothing had to be read of: no base would make a difference to the answer."""
    return {
        "location": adapter.base_model,
        "kind": None,
        "revision": None,
        "source": "headers",
        "requests": None,
        "bytes_read": 0,
        "model_type": None,
    }


def _base(base: BaseReport) -> dict[str, Any]:
    return {
        "location": base.location,
        "kind": base.kind,
        "revision": base.revision,
        "source": base.source,
        "requests": base.requests,
        "bytes_read": base.bytes_read,
        "model_type": base.model_type,
    }


def _layer(layer: LayerResult) -> dict[str, Any]:
    return {
        "module": layer.module,
        "status": layer.status,
        "code": layer.code,
        "layer_type": layer.layer_type,
        "has_bias": layer.has_bias,
        "update_norm": layer.update_norm,
        "bias_norm": layer.bias_norm,
        "rounding_loss": layer.rounding_loss,
        "reason": layer.reason,
        "base_tensor": layer.base_tensor,
    }


def _way_out(way: WayOut) -> dict[str, Any]:
    # A single field stands by itself as well; where it takes several, none of them does it alone.
    flag, value = way.settings[0] if len(way.settings) == 1 else (None, None)
    names = way.target_modules
    return {
        "flag": flag,
        "value": value,
        "settings": dict(way.settings),
        "other_biases": list(way.other_biases),
        "biased_layers": list(way.biased_layers),
        "target_modules": list(names) if isinstance(names, tuple) else names,
        "text": way.text,
    }
