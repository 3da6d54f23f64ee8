"""A base whose config gives layers other shapes than its file holds: transformers loads no such base."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from adaptertool.merge.base.code import ModelCode
from adaptertool.merge.base.sizes import _table, made_shape, value_of
from adaptertool.operations.check_merge import check_merge
from tests.merge.models import RECIPES, load_base, save_adapter
from tests.tools.generate_sizes import entry_of
from tests.tools.model_trees import (
    BUILD_ERRORS,
    build,
    classes_of,
    default_config,
    layers_of,
    model_types,
    quiet,
    shrunk,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EVERY = 12
"""Of so many model types one is looked at here."""


def resized(base: Path, target: Path, **sizes: Any) -> Path:
    """A copy of a base with other sizes in its config; those of a part by its name."""
    shutil.copytree(base, target)
    config = json.loads((target / "config.json").read_text())
    for name, value in sizes.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(
    ("recipe", "sizes"),
    [
        ("llama", {"num_key_value_heads": 2}),
        ("llama", {"head_dim": 16}),
        ("llama", {"intermediate_size": 48}),
        ("llama", {"vocab_size": 80}),
        ("qwen2", {"hidden_size": 32}),
        ("gpt2", {"n_embd": 24}),
        ("bert", {"intermediate_size": 24}),
        ("t5", {"d_kv": 16}),
        ("llava", {"text_config": {"intermediate_size": 48}}),
        ("llava-qwen2", {"text_config": {"num_key_value_heads": 2}}),
    ],
)
def test_another_size_in_the_config(
    recipe: str, sizes: dict[str, Any], tmp_path: Path, base_of: Callable[[str], Path]
) -> None:
    adapter = save_adapter(RECIPES[recipe], base_of(recipe), tmp_path / "adapter", lora_alpha=4)
    assert check_merge(adapter, base_of(recipe)).verdict == "mergeable"
    base = resized(base_of(recipe), tmp_path / "base", **sizes)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        load_base(RECIPES[recipe], base)
    report = check_merge(adapter, base)
    assert report.verdict == "not-mergeable"
    assert [finding.code for finding in report.findings if finding.severity == "error"] == ["ADP203"]
    assert "does not fit its file" in report.findings[-1].message
    assert check_merge(adapter, base, ask_model=False).verdict == "unknown"


def test_what_the_table_says_is_what_models_have() -> None:
    quiet()
    compared = 0
    for model_type in model_types()[::EVERY]:
        try:
            config = shrunk(default_config(model_type))
            model = build(classes_of(model_type)[-1], config)
        except (*BUILD_ERRORS, IndexError):
            continue
        fields = json.loads(json.dumps(model.config.to_dict(), default=str))
        code = ModelCode({**fields, "model_type": model.config.model_type})
        for path, layer in layers_of(model).items():
            made = made_shape(code, path)
            if made is not None and layer.shape is not None and len(layer.shape) == len(made):
                assert all(one in (None, other) for one, other in zip(made, layer.shape, strict=True)), path
                compared += 1
    assert compared > 500


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "t5", "llava"])
def test_the_table_is_what_the_script_makes(model_type: str) -> None:
    quiet()
    assert json.loads(json.dumps(entry_of(model_type))) == _table()["models"][model_type]


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("hidden_size", 96),
        ("2*hidden_size", 192),
        ("num_attention_heads*head_dim+2*num_key_value_heads*head_dim", 8 * 12 + 2 * 2 * 12),
        ("num_key_value_heads*hidden_size/num_attention_heads", 24),
        ("text_config.hidden_size", 7),
        ("vocab_size", None),
        ("text_config.head_dim", None),
        ("hidden_size/text_config.hidden_size", None),
    ],
)
def test_expressions(expression: str, value: int | None) -> None:
    config = {
        "hidden_size": 96,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": "many",
        "text_config": {"hidden_size": 7},
    }
    assert value_of(config, expression, ("",)) == value
