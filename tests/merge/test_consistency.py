"""Where config and file describe different layers, the answer is never `mergeable`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from adaptertool.operations.check_merge import check_merge

FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """Copies of a LoRA adapter that merges, and of its base."""
    for name in ("lora-llama", "base-llama"):
        shutil.copytree(FIXTURES / name, tmp_path / name)
    assert check_merge(tmp_path / "lora-llama", tmp_path / "base-llama").verdict == "mergeable"
    return tmp_path / "lora-llama", tmp_path / "base-llama"


def change(config: Path, **fields: object) -> None:
    config.write_text(json.dumps({**json.loads(config.read_text()), **fields}))


def test_a_target_without_tensors(places: tuple[Path, Path]) -> None:
    adapter, base = places
    change(adapter / "adapter_config.json", target_modules=["q_proj", "o_proj", "not_in_this_model"])
    report = check_merge(adapter, base)
    assert report.verdict == "unknown"
    assert [layer.module for layer in report.layers if layer.status == "unknown"] == ["*.o_proj"]


def test_lora_bias_without_a_bias(places: tuple[Path, Path]) -> None:
    adapter, base = places
    change(adapter / "adapter_config.json", lora_bias=True)
    assert check_merge(adapter, base).verdict == "unknown"


def test_fewer_layers_than_the_file_holds(places: tuple[Path, Path]) -> None:
    adapter, base = places
    change(base / "config.json", num_hidden_layers=1)
    report = check_merge(adapter, base)
    assert report.verdict == "unknown"
    assert [layer.status for layer in report.layers] == ["ok", "unknown"]
