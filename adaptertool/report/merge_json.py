"""`check-merge --format json`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptertool import __version__
from adaptertool.operations.inspect import describe_adapter, describe_target
from adaptertool.report.json import adapter_block, findings_block, target_block

if TYPE_CHECKING:
    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.merge.result import BaseReport, LayerResult, MergeReport, WayOut


def merge_document(report: MergeReport) -> dict[str, Any]:
    """The document that scripts rely on; NaN and infinity never occur in it."""
    return {
        "schema": "adaptertool/check-merge/1",
        "version": __version__,
        "adapter": adapter_block(describe_adapter(report.adapter)),
        "target": target_block(describe_target(report.adapter)),
        "base": _base(report.base) if report.base else _unopened(report.adapter),
        "verdict": report.verdict,
        "dtype": report.dtype,
        "threshold": report.threshold,
        "note": report.note,
        "layers": [_layer(layer) for layer in report.layers],
        "findings": findings_block(report.findings),
        "ways_out": [_way_out(way) for way in report.ways_out],
    }


def _unopened(adapter: Adapter) -> dict[str, Any]:
    """A base that nothing had to be read of: no base would make a difference to the answer."""
    return {
        "location": adapter.config.text_or_none("base_model_name_or_path"),
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
    return {
        "flag": way.flag,
        "value": way.value,
        "other_biases": list(way.other_biases),
        "biased_layers": list(way.biased_layers),
        "text": way.text,
    }
