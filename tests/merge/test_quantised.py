"""Quantised bases: into which of them PEFT merges which method, and that it is not without loss.

The libraries that quantise are not installed here. `python -m tests.tools.quantised_merges` runs PEFT on real bases of theirs
and prints what it does; the tables in this file are what it printed for PEFT 0.21.2.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from peft.tuners.lora.config import BdLoraConfig, VeloraConfig
from safetensors.torch import load_file, save_file

import adaptertool
from tests.methods.written import UNTARGETED, base, peft_types, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Quantised = Callable[[str], Path]

STORED = {
    "bitsandbytes": ("weight", "weight.absmax"),
    "hqq": ("W_q", "scale", "zero"),
    "torchao": ("_weight_qdata", "_weight_scale"),
    "gptq": ("qweight", "scales"),
    "awq": ("qweight", "qzeros"),
    "fp8": ("weight", "weight_scale_inv"),
}
SETTINGS: dict[str, dict[str, Any]] = {"torchao": {"quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}}}

OWN_LAYERS = {"LORA", "HIRA", "PVERA", "ROAD"}
BACKENDS = {"BOFT", "MISS", "OFT", "SHIRA", "VERA"}
MERGED: dict[str, set[str]] = {
    "bitsandbytes": OWN_LAYERS | BACKENDS,
    "torchao": BACKENDS | {"LORA"},
    "hqq": {"LORA"},
    "gptq": set(),
    "awq": set(),
}
"""What PEFT merges, and quantises again. BEFT, which merges into the bias, is the exception."""


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Quantised:
    """A Qwen2 base with the tensor names and the config of a format; do not change what is in it."""
    made: dict[str, Path] = {}

    def make(method: str) -> Path:
        if method not in made:
            folder = made[method] = tmp_path_factory.mktemp(method)
            base("qwen2").save_pretrained(folder)
            _store(folder, method, SETTINGS.get(method, {}))
        return made[method]

    return make


def _store(folder: Path, method: str, settings: dict[str, Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        weight = tensors.pop(name)
        tensors |= {f"{name.removesuffix('.weight')}.{leaf}": weight.clone() for leaf in STORED[method]}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, **settings}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("method", MERGED)
@pytest.mark.parametrize("peft_type", [one for one in peft_types() if one not in {*UNTARGETED, "LN_TUNING"}])
def test_every_type(peft_type: str, method: str, quantised: Quantised, tmp_path: Path) -> None:
    biased: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"]} if peft_type == "BEFT" else {}
    report = adaptertool.check_merge(write(tmp_path, peft_type, "qwen2", **biased).folder, quantised(method))
    if peft_type in ("LILY", "POLY"):
        assert [one.code for one in report.findings] == ["ADP206"]
    elif peft_type == "BEFT":
        assert report.verdict == ("mergeable" if method in ("bitsandbytes", "torchao") else "not-mergeable")
    elif peft_type in MERGED[method]:
        assert report.verdict == "lossy"
        assert {layer.code for layer in report.layers} == {"ADP205"}
        assert {layer.layer_type for layer in report.layers} == {"quantized"}
    else:
        assert report.verdict == "not-mergeable"
        assert {layer.code for layer in report.layers} == {"ADP207"}


ALL = {"bitsandbytes", "hqq", "torchao"}


@pytest.mark.parametrize(
    ("arguments", "merged"),
    [
        ({"use_dora": True}, {"bitsandbytes", "hqq"}),
        ({"lora_bias": True}, set()),
        ({"velora_config": VeloraConfig()}, {"torchao"}),
        (
            {"use_bdlora": BdLoraConfig(target_modules_bd_a=["q_proj"], target_modules_bd_b=["v_proj"], nblocks=2)},
            {"bitsandbytes", "hqq"},
        ),
        ({"init_lora_weights": "pissa"}, set()),
        ({"init_lora_weights": "mica"}, set()),
        ({"init_lora_weights": "olora"}, {"bitsandbytes"}),
        ({"init_lora_weights": "orthogonal"}, {"hqq", "torchao"}),
        ({"init_lora_weights": "eva"}, ALL),
        ({"init_lora_weights": "gaussian"}, ALL),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else "",
)
def test_lora_settings(arguments: dict[str, Any], merged: set[str], quantised: Quantised, tmp_path: Path) -> None:
    targets = ["q_proj", "v_proj"]
    adapter = write(tmp_path, "LORA", "qwen2", target_modules=targets, **arguments).folder
    for method in ALL:
        report = adaptertool.check_merge(adapter, quantised(method))
        assert report.verdict == ("lossy" if method in merged else "not-mergeable"), (method, report.findings)


def test_who_accepts_every_loss_merges(quantised: Quantised, tmp_path: Path) -> None:
    adapter = write(tmp_path, "LORA", "qwen2").folder
    assert adaptertool.check_merge(adapter, quantised("bitsandbytes"), threshold=1.0).verdict == "mergeable"
    assert adaptertool.check_merge(adapter, quantised("bitsandbytes"), threshold=0.99).verdict == "lossy"


@pytest.mark.parametrize(
    "kind", ["Int4WeightOnlyConfig", "Int8DynamicActivationInt4WeightConfig", "Float8WeightOnlyConfig"]
)
def test_other_types_of_torchao_are_open(kind: str, tmp_path: Path) -> None:
    base("qwen2").save_pretrained(tmp_path / "base")
    _store(tmp_path / "base", "torchao", {"quant_type": {"default": {"_type": kind}}})
    report = adaptertool.check_merge(write(tmp_path / "adapter", "LORA", "qwen2").folder, tmp_path / "base")
    assert (report.verdict, report.exit_code) == ("unknown", 3)


def test_formats_that_were_not_tried_are_open(quantised: Quantised, tmp_path: Path) -> None:
    report = adaptertool.check_merge(write(tmp_path, "LORA", "qwen2").folder, quantised("fp8"))
    assert (report.verdict, report.exit_code) == ("unknown", 3)
