"""Whatever is done to the names, the config or the values: a merge that PEFT can't do is never called mergeable."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

import adaptertool
from adaptertool.errors import CorruptError, NotFoundError, UnsupportedError, UsageError
from adaptertool.operations.check_merge import check_merge
from tests.merge.models import RECIPES, load_base, merge_by_peft, save_adapter, save_base

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def rewrite(folder: Path, target: Path, rename: Callable[[str], str | None], **config: Any) -> Path:
    """A copy of a base or an adapter with other tensor names (None drops one) and config values."""
    shutil.copytree(folder, target)
    weights = next(target.glob("*model.safetensors"))
    tensors = {new: tensor for name, tensor in load_file(weights).items() if (new := rename(name)) is not None}
    save_file(tensors, weights, {"format": "pt"})
    path = target / ("config.json" if weights.name == "model.safetensors" else "adapter_config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return target


def same(name: str) -> str:
    return name


def test_biases_that_the_config_turns_off_are_not_loaded(
    tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    base = rewrite(base_of("llama-attention-bias"), tmp_path / "base", same, attention_bias=False)
    report = check_merge(beft_of("llama-attention-bias"), base)
    assert report.verdict == "not-mergeable"
    assert {(layer.code, layer.has_bias) for layer in report.layers} == {("ADP201", False)}
    assert "attention_bias is false" in (report.layers[0].reason or "")
    fails = merge_by_peft(RECIPES["llama"], base, beft_of("llama-attention-bias")).fails
    assert all(error is not None for error in fails.values())


def test_biases_that_the_file_lacks_are_created(
    tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    base = rewrite(base_of("llama"), tmp_path / "base", same, attention_bias=True)
    report = check_merge(beft_of("llama"), base)
    assert report.verdict == "mergeable"
    assert [finding.code for finding in report.findings] == ["ADP208"]
    assert all(layer.bias_norm == 0 for layer in report.layers)
    outcome = merge_by_peft(RECIPES["llama"], base, beft_of("llama"))
    assert set(outcome.fails.values()) == {None}


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.removeprefix("model."),
        lambda name: f"language_model.{name}",
        lambda name: f"transformer.{name}",
    ],
    ids=["headless", "wrapped", "wrapped twice"],
)
@pytest.mark.parametrize("recipe", ["llama", "llama-attention-bias", "qwen2"])
def test_other_prefixes_change_no_answer(
    recipe: str,
    rename: Callable[[str], str],
    tmp_path: Path,
    base_of: Callable[[str], Path],
    beft_of: Callable[[str], Path],
) -> None:
    base = rewrite(base_of(recipe), tmp_path / "base", rename)
    before = check_merge(beft_of(recipe), base_of(recipe))
    after = check_merge(beft_of(recipe), base)
    assert [(layer.module, layer.status) for layer in after.layers] == [
        (layer.module, layer.status) for layer in before.layers
    ]


def test_a_stack_under_two_names_is_no_two_stacks(
    tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    """A base's file may have either name, but the model has one of them; PEFT leaves the other layer as it is."""
    adapter = rewrite(beft_of("qwen2"), tmp_path / "adapter", lambda name: name.replace("model.layers.1.", "layers.1."))
    base = rewrite(base_of("qwen2"), tmp_path / "base", lambda name: name.removeprefix("model."))
    live = transformers.AutoModelForCausalLM.from_pretrained(base_of("qwen2"))
    merged = dict(PeftModel.from_pretrained(live, adapter).merge_and_unload(safe_merge=True).named_parameters())
    bias = "model.layers.1.self_attn.v_proj.bias"
    assert torch.equal(merged[bias], load_file(base_of("qwen2") / "model.safetensors")[bias])
    assert check_merge(adapter, base).verdict == "unknown"


def test_a_headless_bert_is_resolved(
    tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    base = rewrite(
        base_of("bert"),
        tmp_path / "base",
        lambda name: name.removeprefix("bert.") if name.startswith("bert.") else None,
    )
    report = check_merge(beft_of("bert"), base)
    assert report.verdict == "mergeable"
    assert report.layers[0].base_tensor == "encoder.layer.0.attention.self.value.bias"
    assert set(merge_by_peft(RECIPES["bert"], base, beft_of("bert")).fails.values()) == {None}


@pytest.mark.parametrize("prefix", ["vision_tower.", "audio_encoder.", "draft_model.", "something_else."])
def test_layers_of_another_tower_are_never_taken(
    prefix: str, tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    base = rewrite(base_of("qwen2"), tmp_path / "base", lambda name: prefix + name)
    report = check_merge(beft_of("qwen2"), base, ask_model=False)
    assert report.verdict in ("unknown", "mergeable")
    if prefix != "something_else.":
        assert report.verdict == "unknown"
        assert report.exit_code == 3


def test_two_candidates_decide_nothing(
    tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    base = tmp_path / "base"
    shutil.copytree(base_of("qwen2"), base)
    tensors = load_file(base / "model.safetensors")
    twice = {
        f"{prefix}.{name.removeprefix('model.')}": tensor.clone()
        for name, tensor in tensors.items()
        for prefix in ("a", "b")
    }
    save_file(twice, base / "model.safetensors", {"format": "pt"})
    report = check_merge(beft_of("qwen2"), base, ask_model=False)
    assert {layer.status for layer in report.layers} == {"unknown"}


def test_a_bias_in_the_file_of_a_model_whose_code_is_not_known_decides_nothing(
    tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    adapter = beft_of("llama-attention-bias")
    stored = rewrite(base_of("llama-attention-bias"), tmp_path / "a", same, model_type="custom", attention_bias=False)
    assert check_merge(adapter, stored).verdict == "unknown"
    lacking = rewrite(base_of("llama"), tmp_path / "b", same, model_type="custom", attention_bias=True)
    assert check_merge(adapter, lacking).verdict == "unknown"
    agreeing = rewrite(base_of("llama-attention-bias"), tmp_path / "c", same, model_type="custom")
    assert check_merge(adapter, agreeing).verdict == "unknown"
    without = rewrite(base_of("llama"), tmp_path / "d", same, model_type="custom")
    assert check_merge(adapter, without).verdict == "not-mergeable"


def test_code_of_its_own_makes_no_bias_out_of_a_file(
    tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    name = "llama-attention-bias"
    code = {"AutoModelForCausalLM": "modeling.Model"}
    base = rewrite(base_of(name), tmp_path / "base", same, model_type="of-its-own", auto_map=code)
    # Llama's own class stands for code that makes none whatever the config says.
    live = transformers.LlamaForCausalLM.from_pretrained(base, attention_bias=False)
    model = PeftModel.from_pretrained(live, beft_of(name))
    with pytest.raises(ValueError, match="Base layer has no bias"):
        model.merge_and_unload(safe_merge=True)
    report = check_merge(beft_of(name), base)
    assert (report.verdict, report.exit_code) == ("unknown", 3)
    assert {layer.has_bias for layer in report.layers} == {None}


def test_a_base_with_fewer_layers_lacks_some(
    tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    base = rewrite(
        base_of("qwen2"), tmp_path / "base", lambda name: None if ".1." in name else name, num_hidden_layers=1
    )
    report = check_merge(beft_of("qwen2"), base)
    assert report.verdict == "not-mergeable"
    assert [layer.code for layer in report.layers] == [None, "ADP202"]


def test_another_architecture_has_no_such_layers(
    base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    report = check_merge(beft_of("qwen2"), base_of("bert"), ask_model=False)
    assert report.verdict == "not-mergeable"
    assert {layer.code for layer in report.layers} == {"ADP202"}


def test_another_size_does_not_fit(
    tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    recipe = RECIPES["qwen2"]
    wide = type(recipe)(recipe.config, recipe.model, {**recipe.fields, "num_key_value_heads": 2}, recipe.target)
    report = check_merge(beft_of("qwen2"), save_base(wide, tmp_path / "base"))
    assert {layer.code for layer in report.layers} == {"ADP203"}
    assert report.verdict == "not-mergeable"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(
    value: float, tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(beft_of("qwen2"), adapter)
    tensors = load_file(adapter / "adapter_model.safetensors")
    first = min(tensors)
    tensors[first][0, 3] = value
    save_file(tensors, adapter / "adapter_model.safetensors", {"format": "pt"})
    report = check_merge(adapter, base_of("qwen2"))
    assert [layer.code for layer in report.layers] == ["ADP204", None]
    assert report.verdict == "not-mergeable"
    fails = merge_by_peft(RECIPES["qwen2"], base_of("qwen2"), adapter).fails
    assert [error is None for error in fails.values()] == [False, True]


def test_an_overflow_that_safe_merge_does_not_notice(
    tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(beft_of("qwen2"), adapter)
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({k: v + 70000 for k, v in tensors.items()}, adapter / "adapter_model.safetensors", {"format": "pt"})
    report = check_merge(adapter, base_of("qwen2"), dtype="float16")
    assert {layer.code for layer in report.layers} == {"ADP204"}
    assert "not even safe_merge" in report.findings[0].message
    outcome = merge_by_peft(RECIPES["qwen2"], base_of("qwen2"), adapter, torch.float16)
    assert set(outcome.fails.values()) == {None}
    assert not all(bias is not None and bool(bias.isfinite().all()) for bias in outcome.biases.values())
    assert check_merge(adapter, base_of("qwen2"), dtype="bfloat16", threshold=10).verdict == "mergeable"


def test_a_lora_weight_that_is_not_finite(tmp_path: Path, base_of: Callable[[str], Path]) -> None:
    adapter = save_adapter(RECIPES["llama"], base_of("llama"), tmp_path / "adapter", lora_alpha=4)
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors[max(tensors)][0, 0] = float("nan")
    save_file(tensors, adapter / "adapter_model.safetensors", {"format": "pt"})
    report = check_merge(adapter, base_of("llama"))
    fails = merge_by_peft(RECIPES["llama"], base_of("llama"), adapter).fails
    assert {layer.module: layer.code for layer in report.layers} == {
        path: None if error is None else "ADP204" for path, error in fails.items()
    }


def test_an_update_that_rounding_swallows(
    tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(beft_of("qwen2"), adapter)
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({k: v * 1e-3 for k, v in tensors.items()}, adapter / "adapter_model.safetensors", {"format": "pt"})
    lossy = check_merge(adapter, base_of("qwen2"), dtype="bfloat16")
    assert lossy.verdict == "lossy"
    assert lossy.exit_code == 1
    assert [finding.code for finding in lossy.findings] == ["ADP205"]
    assert all((layer.rounding_loss or 0) > 0.25 for layer in lossy.layers)
    assert check_merge(adapter, base_of("qwen2"), dtype="bfloat16", threshold=100).verdict == "mergeable"
    assert check_merge(adapter, base_of("qwen2"), dtype="float32").verdict == "mergeable"


def test_an_all_zero_adapter(tmp_path: Path, base_of: Callable[[str], Path]) -> None:
    for recipe, verdict in (("qwen2", "mergeable"), ("llama", "not-mergeable")):
        adapter = save_adapter(RECIPES[recipe], base_of(recipe), tmp_path / recipe, std=0.0)
        report = check_merge(adapter, base_of(recipe))
        assert report.verdict == verdict
        if verdict == "mergeable":
            assert "zero in every layer" in (report.note or "")
            assert all(layer.rounding_loss is None for layer in report.layers)


def test_tied_embeddings(tmp_path: Path) -> None:
    recipe = RECIPES["llama"]
    tied = type(recipe)(recipe.config, recipe.model, {**recipe.fields, "tie_word_embeddings": True}, ["lm_head"])
    base = save_base(tied, tmp_path / "base")
    adapter = save_adapter(tied, base, tmp_path / "adapter", lora_alpha=4)
    report = check_merge(adapter, base)
    assert report.verdict == "lossy"
    assert {layer.code for layer in report.layers} == {"ADP209"}


@pytest.mark.parametrize(
    ("peft_type", "fields"),
    [
        ("PROMPT_TUNING", {}),
        ("PREFIX_TUNING", {}),
        ("P_TUNING", {}),
        ("CPT", {}),
        ("ADAPTION_PROMPT", {}),
        ("LILY", {}),
        ("POLY", {}),
        ("SHADOW", {}),
        ("LORA", {"alora_invocation_tokens": [1, 2]}),
        ("LORA", {"arrow_config": {"top_k": 1}}),
    ],
)
def test_methods_without_a_merge(
    peft_type: str,
    fields: dict[str, Any],
    tmp_path: Path,
    base_of: Callable[[str], Path],
    beft_of: Callable[[str], Path],
) -> None:
    adapter = rewrite(beft_of("qwen2"), tmp_path / "adapter", same, peft_type=peft_type, **fields)
    report = check_merge(adapter, base_of("qwen2"))
    assert report.verdict == "not-mergeable"
    assert [finding.code for finding in report.findings] == ["ADP206"]


def test_a_method_that_was_not_looked_into(
    tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    adapter = rewrite(beft_of("qwen2"), tmp_path / "adapter", same, peft_type="SOMETHING_NEW")
    report = check_merge(adapter, base_of("qwen2"))
    assert (report.verdict, report.exit_code) == ("unknown", 3)


def test_beft_on_a_conv1d_is_unsupported(tmp_path: Path, base_of: Callable[[str], Path]) -> None:
    lora = save_adapter(RECIPES["gpt2"], base_of("gpt2"), tmp_path / "lora", lora_bias=True)
    adapter = rewrite(
        lora, tmp_path / "adapter", lambda name: name.replace("lora_B.bias", "beft_bias"), peft_type="BEFT"
    )
    report = check_merge(adapter, base_of("gpt2"))
    assert {layer.code for layer in report.layers} == {"ADP207"}


class TestBasesThatCannotBeRead:
    def test_no_config(self, tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]) -> None:
        shutil.copytree(base_of("qwen2"), tmp_path / "base")
        (tmp_path / "base/config.json").unlink()
        with pytest.raises(NotFoundError, match=r"config\.json"):
            check_merge(beft_of("qwen2"), tmp_path / "base")

    def test_no_weights(self, tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]) -> None:
        shutil.copytree(base_of("qwen2"), tmp_path / "base")
        (tmp_path / "base/model.safetensors").unlink()
        with pytest.raises(NotFoundError, match="no base model weights"):
            check_merge(beft_of("qwen2"), tmp_path / "base")

    def test_pickles(self, tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]) -> None:
        shutil.copytree(base_of("qwen2"), tmp_path / "base")
        (tmp_path / "base/model.safetensors").rename(tmp_path / "base/pytorch_model.bin")
        with pytest.raises(UnsupportedError) as caught:
            check_merge(beft_of("qwen2"), tmp_path / "base")
        assert caught.value.exit_code == 3
        assert "safetensors" in (caught.value.hint or "")

    def test_an_adapter_as_base(self, beft_of: Callable[[str], Path]) -> None:
        with pytest.raises(NotFoundError) as caught:
            check_merge(beft_of("qwen2"), beft_of("qwen2"))
        assert "adapter" in (caught.value.hint or "")

    @pytest.mark.parametrize("tensor", ["model.layers.1.self_attn.v_proj.bias", "model.layers.0.mlp.down_proj.weight"])
    def test_a_shard_is_missing(self, tensor: str, tmp_path: Path, beft_of: Callable[[str], Path]) -> None:
        """Whether it is one that is read or not: transformers loads nothing then."""
        base = save_base(RECIPES["qwen2"], tmp_path / "base", max_shard_size="5KB")
        assert check_merge(beft_of("qwen2"), base).verdict == "mergeable"
        index = json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]
        (base / index[tensor]).unlink()
        with pytest.raises(NotFoundError, match="incomplete"):
            check_merge(beft_of("qwen2"), base)

    def test_an_index_that_leads_elsewhere(self, tmp_path: Path, beft_of: Callable[[str], Path]) -> None:
        base = save_base(RECIPES["qwen2"], tmp_path / "base", max_shard_size="5KB")
        path = base / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        path.write_text(json.dumps({**index, "weight_map": dict.fromkeys(index["weight_map"], "../x.safetensors")}))
        with pytest.raises(CorruptError, match="as a shard"):
            check_merge(beft_of("qwen2"), base)

    def test_no_base_is_named(self, tmp_path: Path, beft_of: Callable[[str], Path]) -> None:
        adapter = rewrite(beft_of("qwen2"), tmp_path / "adapter", same, base_model_name_or_path=None)
        with pytest.raises(UsageError) as caught:
            check_merge(adapter)
        assert "--base" in (caught.value.hint or "")

    def test_the_named_base_is_gone(self, tmp_path: Path, beft_of: Callable[[str], Path]) -> None:
        adapter = rewrite(beft_of("qwen2"), tmp_path / "adapter", same, base_model_name_or_path="./gone/away")
        with pytest.raises(NotFoundError) as caught:
            check_merge(adapter)
        assert "--base" in (caught.value.hint or "")

    def test_options_that_make_no_sense(self, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]) -> None:
        with pytest.raises(UsageError):
            check_merge(beft_of("qwen2"), base_of("qwen2"), dtype="int8")
        with pytest.raises(UsageError):
            check_merge(beft_of("qwen2"), base_of("qwen2"), threshold=-1.0)


def test_the_base_that_the_adapter_names_is_used(
    beft_of: Callable[[str], Path], base_of: Callable[[str], Path]
) -> None:
    report = check_merge(beft_of("qwen2"))
    assert report.base is not None
    assert report.base.location == str(base_of("qwen2"))


def test_the_model_is_asked_where_headers_cannot_decide(
    tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    # transformers itself gives these names up: the layers are built, and their values come from nowhere.
    base = rewrite(base_of("qwen2"), tmp_path / "base", lambda name: f"audio_tower.{name}")
    report = check_merge(beft_of("qwen2"), base)
    assert report.base is not None
    assert report.base.source == "model"
    assert report.verdict == "unknown"
    assert load_base(RECIPES["qwen2"], base) is not None


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_layers_that_transformers_5_renames_are_found_under_their_old_names(
    qkv_bias: bool, tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    name = "vit" if qkv_bias else "vit-no-bias"
    report = check_merge(beft_of(name), base_of(name))
    assert report.base is not None
    assert report.base.source == "headers"
    assert report.verdict == ("mergeable" if qkv_bias else "not-mergeable")
    old = "vit.encoder.layer.0.attention.attention.value"
    assert report.layers[0].base_tensor == f"{old}.{'bias' if qkv_bias else 'weight'}"
    headless = rewrite(
        base_of(name), tmp_path / "base", lambda key: key.removeprefix("vit.") if "vit." in key else None
    )
    assert [layer.status for layer in check_merge(beft_of(name), headless).layers] == [
        layer.status for layer in report.layers
    ]


def test_a_bias_that_is_renamed_by_itself_is_read(
    base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    report = check_merge(beft_of("videomae"), base_of("videomae"), threshold=1.0)
    assert (report.verdict, report.findings) == ("mergeable", ())
    assert report.layers[0].base_tensor == "videomae.encoder.layer.0.attention.attention.q_bias"
    outcome = merge_by_peft(RECIPES["videomae"], base_of("videomae"), beft_of("videomae"))
    stored = load_file(base_of("videomae") / "model.safetensors")
    for layer in report.layers:
        bias, before = outcome.biases[layer.module], stored[layer.base_tensor or ""]
        assert bias is not None
        assert layer.bias_norm == pytest.approx(before.norm().item(), rel=1e-5)
        assert layer.update_norm == pytest.approx((bias - before).norm().item(), rel=1e-4)


def test_the_model_says_what_names_cannot(
    tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    # The file's name for the bias is neither the module's own nor the one that is renamed at loading from this prefix.
    base = rewrite(base_of("videomae"), tmp_path / "base", lambda key: key.removeprefix("videomae."))
    report = check_merge(beft_of("videomae"), base, ask_model=False)
    assert (report.verdict, report.exit_code) == ("unknown", 3)


def test_headers_need_neither_torch_nor_transformers(
    base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    code = (
        "import sys; from adaptertool.operations.check_merge import check_merge; "
        "print(check_merge(sys.argv[1], sys.argv[2]).verdict, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(beft_of("qwen2")), str(base_of("qwen2"))]
    root = Path(adaptertool.__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.split() == ["mergeable", "False", "False"]
