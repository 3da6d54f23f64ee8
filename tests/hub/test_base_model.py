"""What check-merge costs on a base of 70B parameters that lies on the Hub, and how it tells what it left out."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import save_file

from adaptertool.merge.trial import adapter_values
from adaptertool.operations.check_merge import check_merge
from tests.hub.conftest import files_of
from tests.hub.server import Sparse
from tests.large_base import HIDDEN, KEY_VALUE, LAYERS, SHARDS, base_files, write_adapter
from tests.merge.models import RECIPES, save_adapter, save_base

if TYPE_CHECKING:
    from pathlib import Path

    from adaptertool.operations.check_merge import MergeReport
    from tests.hub.server import HubServer


def add_base(hub: HubServer, *, biases: bool) -> None:
    small, shards = base_files(biases=biases)
    hub.add("org/base", {**small, **{name: Sparse(shard.head, shard.size) for name, shard in shards.items()}})


def cost(hub: HubServer, report: MergeReport) -> Counter[str]:
    """Requests by kind, all of which the report owns up to: `storage` is where the Hub sends those for a shard on to."""
    assert report.base is not None
    assert report.base.requests == len(hub.requests())
    assert report.base.bytes_read < 1_000_000
    return Counter(request.kind for request in hub.requests())


def test_without_biases_the_index_answers(hub: HubServer, tmp_path: Path) -> None:
    add_base(hub, biases=False)
    write_adapter(tmp_path / "adapter", "org/base")
    report = check_merge(tmp_path / "adapter")
    assert report.verdict == "not-mergeable"
    assert sum(layer.code == "ADP201" for layer in report.layers) == LAYERS
    assert cost(hub, report) == {"info": 1, "tree": 1, "resolve": 2}


def test_with_biases_a_header_a_shard_is_read(hub: HubServer, tmp_path: Path) -> None:
    add_base(hub, biases=True)
    write_adapter(tmp_path / "adapter", "org/base")
    report = check_merge(tmp_path / "adapter")
    assert report.verdict == "mergeable"
    assert "80 biases" in report.not_examined[0]
    assert all(layer.bias_norm is None for layer in report.layers)
    count = cost(hub, report)
    assert count["storage"] <= SHARDS
    assert count.total() - count["storage"] <= SHARDS + 5


def test_all_biases_are_read_where_that_is_asked_for(hub: HubServer, tmp_path: Path) -> None:
    add_base(hub, biases=True)
    write_adapter(tmp_path / "adapter", "org/base")
    report = check_merge(tmp_path / "adapter", all_biases=True)
    assert (report.verdict, report.not_examined) == ("mergeable", ())
    assert all(layer.bias_norm == 0 for layer in report.layers)
    # Values are read twice, because no digest proves a part of a file; and each file's beginning once more.
    assert cost(hub, report)["storage"] == 2 * SHARDS + 2 * LAYERS


def test_a_layer_of_another_shape_is_found_without_its_values(hub: HubServer, tmp_path: Path) -> None:
    add_base(hub, biases=True)
    write_adapter(tmp_path / "adapter", "org/base", out_features=HIDDEN)
    report = check_merge(tmp_path / "adapter")
    assert {layer.code for layer in report.layers} == {"ADP203"}
    assert cost(hub, report)["storage"] <= SHARDS


def test_lora_reads_no_more(hub: HubServer, tmp_path: Path) -> None:
    add_base(hub, biases=False)
    write_adapter(tmp_path / "adapter", "org/base")
    stem = "base_model.model.model.layers"
    factors = {
        f"{stem}.{layer}.self_attn.v_proj.lora_{name}.weight": np.ones(shape, np.float32)
        for layer in range(LAYERS)
        for name, shape in (("A", (4, HIDDEN)), ("B", (KEY_VALUE, 4)))
    }
    save_file(factors, tmp_path / "adapter/adapter_model.safetensors", {"format": "pt"})
    config = '{"peft_type": "LORA", "r": 4, "base_model_name_or_path": "org/base", "target_modules": ["v_proj"]}'
    (tmp_path / "adapter/adapter_config.json").write_text(config)
    report = check_merge(tmp_path / "adapter")
    assert report.verdict == "mergeable"
    count = cost(hub, report)
    assert count.total() - count["storage"] <= SHARDS + 5


@pytest.mark.parametrize("name", ["qwen2", "qwen2-output", "bert", "gpt2"])
def test_a_small_base_is_answered_as_its_download_is(name: str, hub: HubServer, tmp_path: Path) -> None:
    base = save_base(RECIPES[name], tmp_path / "base")
    adapter = save_adapter(RECIPES[name], base, tmp_path / "adapter", **({"lora_bias": True} if name == "gpt2" else {}))
    hub.add("org/base", files_of(base))
    hub.add("org/adapter", files_of(adapter))
    here, there = check_merge(adapter, base), check_merge("org/adapter", "org/base")
    assert there.verdict == here.verdict
    if here.verdict == "mergeable":
        assert there.layers == here.layers
        assert here.layers[0].bias_norm
    else:
        assert [layer.status for layer in there.layers] == [layer.status for layer in here.layers]
    assert there.base is not None
    assert (there.base.requests or 99) <= 6


def test_an_adapter_is_read_in_one_range(hub: HubServer, tmp_path: Path) -> None:
    base = save_base(RECIPES["llama"], tmp_path / "base")
    adapter = save_adapter(RECIPES["llama"], base, tmp_path / "adapter", lora_alpha=4)
    hub.add("org/adapter", files_of(adapter))
    report = check_merge("org/adapter", base)
    assert report.verdict == "mergeable"
    assert (report.target.requests or 99) <= 6
    assert report.not_examined == ()


def test_what_is_too_large_is_not_looked_through(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_base(RECIPES["llama"], tmp_path / "base")
    adapter = save_adapter(RECIPES["llama"], base, tmp_path / "adapter", lora_alpha=4)
    hub.add("org/adapter", files_of(adapter))
    monkeypatch.setattr(adapter_values, "REMOTE_SCAN_BYTES", 200)
    report = check_merge("org/adapter", base)
    assert any("for NaN and infinity" in one for one in report.not_examined)
