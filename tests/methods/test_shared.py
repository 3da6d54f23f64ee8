"""Lily and trainable tokens: a trained tensor that PEFT writes under every layer that shares it is kept once."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import LilyConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import BartConfig, BartForConditionalGeneration

import adaptertool
from tests.checkpoints import change_config
from tests.methods.rewriting import assert_loads_alike, assert_same_bytes, changed, tensors
from tests.methods.written import base, configured, logits, shake, trainable, write

if TYPE_CHECKING:
    from pathlib import Path

DTYPES = (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("arguments", "copies"),
    [
        ({}, 3),
        ({"stride_A": 2}, 6),
        ({"stride_A": 2, "target_modules": ["q_proj", "k_proj", "up_proj", "down_proj"]}, 8),
        ({"target_modules": r".*\.(q_proj|v_proj)"}, 2),
        # Of two shapes, so that each has blocks of its own: q_proj of both layers, v_proj of both.
        ({"target_modules": r".*\.(q_proj|v_proj)", "stride_A": 2}, 4),
        # Of one shape: blocks of a layer, or of both; of three in a row it is not known which.
        ({"target_modules": r".*\.(q_proj|o_proj)", "stride_A": 2}, 5),
        ({"target_modules": r".*\.(q_proj|o_proj)", "stride_A": 3}, 3),
        ({"target_modules": r".*\.(q_proj|o_proj)", "stride_A": 4}, 6),
        ({"target_modules": ["self_attn.q_proj", "o_proj"], "stride_A": 5}, 4),
    ],
    ids=str,
)
def test_lily_keeps_one_copy(arguments: dict[str, Any], copies: int, dtype: torch.dtype, tmp_path: Path) -> None:
    written = write(tmp_path / "adapter", "LILY", dtype=dtype, **arguments)
    before = adaptertool.inspect(written.folder)
    assert [one.code for one in before.findings] == ["ADP102"]
    assert before.findings[0].count == copies
    result = adaptertool.slim(written.folder, output=tmp_path / "slim")
    assert result.action == "kept-one-copy"
    assert result.tensors_changed == copies
    assert_loads_alike(written, tmp_path / "slim")
    after = adaptertool.inspect(tmp_path / "slim")
    assert after.findings == ()
    assert after.adapter.parameters == before.adapter.parameters
    assert adaptertool.slim(tmp_path / "slim", dry_run=True).action == "nothing-to-do"


@pytest.mark.parametrize(
    "arguments", [{"stride_A": 3}, {"stride_A": 6, "target_modules": r".*\.(q_proj|o_proj)"}], ids=str
)
def test_lily_counts_layers_as_people_do(arguments: dict[str, Any], tmp_path: Path) -> None:
    """In blocks of three of twelve layers, layer 2 belongs with 0 and 1, not with 10 and 11."""
    adapted = deep_lily(tmp_path, 12, **arguments)
    result = adaptertool.inspect(tmp_path, verify="full")
    assert [one.code for one in result.findings] == ["ADP102"]
    assert result.adapter.parameters == sum(parameter.numel() for parameter in trainable(adapted).values())
    kept = tensors_after_slim(tmp_path)
    blocks = {name.split(".layers.")[1].split(".")[0] for name in kept if "lily_A" in name}
    assert blocks == {"0", "3", "6", "9"}


def tensors_after_slim(folder: Path) -> dict[str, torch.Tensor]:
    slimmed = folder.with_name(f"{folder.name}-slim")
    adaptertool.slim(folder, output=slimmed)
    return tensors(slimmed)


def test_copies_that_differ_are_kept(tmp_path: Path) -> None:
    write(tmp_path / "adapter", "LILY")

    def nudge(state: dict[str, torch.Tensor]) -> None:
        state[next(name for name in state if "layers.1" in name and "lily_B" in name)][0, 0] += 1

    folder = changed(tmp_path / "adapter", tmp_path / "nudged", nudge)
    result = adaptertool.slim(folder, dry_run=True)
    assert result.action == "refused"
    assert "differ" in (result.reason or "")
    assert [one.code for one in adaptertool.inspect(folder).findings] == ["ADP105"]


def deep_lily(folder: Path, layers: int, **arguments: Any) -> Any:
    """A Lily adapter that PEFT wrote for a Llama of so many layers."""
    model: Any = base("llama")
    model.config.num_hidden_layers = layers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(type(model)(model.config), configured("LILY", "llama", **arguments))
        shake(adapted)
        adapted.save_pretrained(str(folder))
    return adapted


@pytest.mark.parametrize(("layers", "stride"), [(3, 2), (5, 2), (5, 3), (4, 9)])
def test_what_was_kept_once_is_right_as_it_is_and_comes_back(layers: int, stride: int, tmp_path: Path) -> None:
    """Blocks of layers that were thinned out are not taken for others."""
    adapted = deep_lily(tmp_path / "adapter", layers, stride_A=stride)
    assert adaptertool.slim(tmp_path / "adapter", output=tmp_path / "slim").action == "kept-one-copy"
    after = adaptertool.inspect(tmp_path / "slim", verify="full")
    assert after.findings == ()
    assert after.adapter.parameters == sum(parameter.numel() for parameter in trainable(adapted).values())
    assert adaptertool.slim(tmp_path / "slim", dry_run=True).action == "nothing-to-do"
    restored = adaptertool.restore(tmp_path / "slim", output=tmp_path / "restored")
    assert restored.action == "restored"
    assert_same_bytes(tmp_path / "adapter", tmp_path / "restored")
    assert adaptertool.restore(tmp_path / "restored", dry_run=True).action == "nothing-to-do"


def test_as_a_further_adapter_it_needs_what_restore_brings_back(tmp_path: Path) -> None:
    """PEFT lets layers share their tensors for the first adapter alone, and the report says so."""
    first = write(tmp_path / "first", "LILY")
    second = write(tmp_path / "second", "LILY", r=3)
    result = adaptertool.slim(second.folder, output=tmp_path / "slim")
    assert result.projections is not None
    assert "first adapter on the model" in result.projections.loads_with[0]
    adaptertool.restore(tmp_path / "slim", output=tmp_path / "restored")

    def loaded(folder: Path) -> torch.Tensor:
        model = PeftModel.from_pretrained(base("llama"), first.folder)
        model.load_adapter(folder, "further")
        model.set_adapter("further")
        return logits(model)

    expected = loaded(second.folder)
    assert not torch.equal(loaded(tmp_path / "slim"), expected)
    assert torch.equal(loaded(tmp_path / "restored"), expected)


def test_blocks_whose_order_is_not_certain_are_left(tmp_path: Path) -> None:
    """PEFT counts all layers of a target in the order of the model, the ones of another path among them."""
    model = BartForConditionalGeneration(
        BartConfig(
            vocab_size=64,
            d_model=16,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
        )
    )
    adapted = get_peft_model(model, LilyConfig(r=2, stride_A=2, num_B=2, target_modules=["k_proj"]))
    shake(adapted)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    before = adaptertool.inspect(tmp_path / "adapter", verify="full")
    assert [one.code for one in before.findings] == ["ADP102"]
    gone = tensors(tmp_path / "adapter").keys() - tensors_after_slim(tmp_path / "adapter").keys()
    assert gone
    assert all("lily_B" in name for name in gone)


@pytest.mark.parametrize(
    "record",
    [
        "{",
        "[]",
        "{}",
        '{"schema": "adaptertool/shared-copies/2"}',
        "other",
        '{"schema": "adaptertool/shared-copies/1"}',
    ],
)
def test_a_record_that_makes_no_sense(record: str, tmp_path: Path) -> None:
    write(tmp_path / "adapter", "LILY")
    adaptertool.slim(tmp_path / "adapter", output=tmp_path / "slim")
    state = tensors(tmp_path / "slim")
    if record == "other":
        record = '{"schema": "adaptertool/shared-copies/1", "copies": {"a": "b"}}'
    save_file(state, tmp_path / "slim" / "adapter_model.safetensors", metadata={"adaptertool.copies": record})
    with pytest.raises(adaptertool.AdapterToolError) as raised:
        adaptertool.restore(tmp_path / "slim", dry_run=True)
    assert raised.value.kind == "corrupt"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_tied_tokens_keep_one_copy(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    written = write(tmp_path / "adapter", "TRAINABLE_TOKENS", family, dtype=dtype)
    assert len(load_file(written.folder / "adapter_model.safetensors")) == 2
    result = adaptertool.slim(written.folder, output=tmp_path / "slim")
    assert result.action == "kept-one-copy"
    assert len(tensors(tmp_path / "slim")) == 1
    assert_loads_alike(written, tmp_path / "slim")


def test_untied_tokens_are_all_kept(tmp_path: Path) -> None:
    """Two layers that the config targets by name need not be tied, even where they hold the same numbers."""
    written = write(tmp_path, "TRAINABLE_TOKENS", "llama", tied=False, target_modules=["embed_tokens", "lm_head"])
    assert len(tensors(tmp_path)) == 2
    result = adaptertool.inspect(tmp_path)
    assert result.findings == ()
    assert result.adapter.parameters == sum(parameter.numel() for parameter in trainable(written.model).values())
    assert adaptertool.slim(tmp_path, dry_run=True).action == "nothing-to-do"


def test_without_targets_in_the_config_nothing_goes(tmp_path: Path) -> None:
    write(tmp_path, "TRAINABLE_TOKENS", "gpt2")
    for targets in (None, "(", ["h.7"]):
        change_config(tmp_path, target_modules=targets)
        assert adaptertool.slim(tmp_path, dry_run=True).action == "nothing-to-do"


def test_the_report_says_that_they_were_trained(tmp_path: Path) -> None:
    write(tmp_path, "LILY")
    report = adaptertool.inspect(tmp_path).projections
    assert report is not None
    assert report.recipe is None
    assert "trained" in (report.reason or "")


@pytest.mark.parametrize("targets", ["all-linear", ["proj", "q_proj"]], ids=str)
def test_lily_without_one_common_target_shares_nothing_that_is_certain(targets: Any, tmp_path: Path) -> None:
    """`all-linear` becomes a list of whole names; which of two fitting suffixes PEFT groups by changes with the process."""
    written = write(tmp_path, "LILY", stride_A=2, target_modules=targets)
    assert adaptertool.slim(tmp_path, dry_run=True).action == "nothing-to-do"
    if targets == "all-linear":
        parameters = sum(parameter.numel() for parameter in trainable(written.model).values())
        assert adaptertool.inspect(tmp_path).adapter.parameters == parameters


def test_trained_tensors_that_differ_are_kept_whatever_is_forced(tmp_path: Path) -> None:
    """What should be copies was trained: nothing would bring it back."""
    write(tmp_path / "adapter", "LILY")

    def change(state: dict[str, torch.Tensor]) -> None:
        state["base_model.model.model.layers.1.self_attn.q_proj.lily_B.weight"][0, 0] += 1

    folder = changed(tmp_path / "adapter", tmp_path / "changed", change)
    result = adaptertool.slim(folder, keep_one_copy=True, force=True, dry_run=True)
    assert result.action == "refused"
    assert "They were trained" in str(result.hint)
    (finding,) = adaptertool.inspect(folder, verify="full").findings
    assert finding.code == "ADP105"
    assert finding.fix is None
