"""PEFT attaches by the config, whatever the file holds: the report says what becomes of either's surplus."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import BeftConfig, LoraConfig, OSFConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer, _ExcludedModule, check_target_module_exists
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BlipConfig, BlipForQuestionAnswering

from adaptertool.checkpoint.config import AdapterConfig
from adaptertool.errors import CorruptError
from adaptertool.merge.adapter.targets import Targets
from adaptertool.operations.check_merge import MergeReport, check_merge
from tests.merge.models import (
    QWEN3_MOE,
    RECIPES,
    load_base,
    load_failure,
    merge_by_peft,
    save_adapter,
    whole_merge_fails,
)
from tests.tools.generate_default_targets import TABLE, default_targets

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def changed(
    folder: Path, target: Path, rename: Callable[[str], str | None] = lambda name: name, **fields: object
) -> Path:
    """A copy of an adapter with other tensor names (None drops one) and config values."""
    shutil.copytree(folder, target)
    weights, config = target / "adapter_model.safetensors", target / "adapter_config.json"
    tensors = {new: tensor for name, tensor in load_file(weights).items() if (new := rename(name)) is not None}
    save_file(tensors, weights, {"format": "pt"})
    config.write_text(json.dumps({**json.loads(config.read_text()), **fields}))
    return target


def as_peft_does(report: MergeReport, name: str, base: Path, adapter: Path) -> None:
    """The report has the layers that PEFT has, each ok where it merges; and so has the whole."""
    outcome = merge_by_peft(RECIPES[name], base, adapter)
    assert {layer.module: layer.status for layer in report.layers} == {
        path: "ok" if error is None else "blocked" for path, error in outcome.fails.items()
    }
    fails = whole_merge_fails(RECIPES[name], base, adapter)
    assert report.verdict == ("mergeable" if fails is None else "not-mergeable")


def codes(report: MergeReport) -> list[str]:
    return [finding.code for finding in report.findings]


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.removeprefix("base_model.model."),
        lambda name: f"base_model.model.{name}",
        lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
    ],
    ids=["no prefix", "twice", "compiled"],
)
def test_names_that_no_peft_model_has(
    rename: Callable[[str], str], tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    """PEFT loads none of them without an error, and would merge what it made itself."""
    adapter = changed(beft_of("qwen2"), tmp_path / "adapter", rename)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_of("qwen2")), adapter)
    biases = [value for name, value in model.state_dict().items() if "beft_bias" in name]
    assert biases
    assert not any(value.any() for value in biases)
    with pytest.raises(CorruptError, match="PEFT loads none"):
        check_merge(adapter, base_of("qwen2"))


@pytest.mark.parametrize("name", ["qwen2", "llama", "llava-qwen2", "qwen2-output"])
def test_layers_that_the_file_lacks_are_merged_untrained(
    name: str, tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    adapter = changed(
        beft_of(name), tmp_path / "adapter", lambda key: None if "layers.1." in key and "vision" not in key else key
    )
    report = check_merge(adapter, base_of(name), threshold=1.0)
    as_peft_does(report, name, base_of(name), adapter)
    assert "ADP211" in codes(report)


def test_a_module_that_the_file_lacks_needs_a_bias_as_well(
    tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    adapter = changed(beft_of("qwen2"), tmp_path / "adapter", target_modules=["v_proj", "o_proj"])
    report = check_merge(adapter, base_of("qwen2"), threshold=1.0)
    as_peft_does(report, "qwen2", base_of("qwen2"), adapter)
    assert report.verdict == "not-mergeable"
    assert {layer.module.rpartition(".")[2] for layer in report.layers if layer.status == "blocked"} == {"o_proj"}


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["v_proj"]},
        {"target_modules": r".*\.v_proj"},
        {"target_modules": r"model\.layers\.\d\.self_attn\.v_proj"},
        {"target_modules": ["model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.v_proj"]},
    ],
    ids=str,
)
def test_layers_that_the_config_does_not_target_are_left_out(
    fields: dict[str, Any], tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    assert check_merge(beft_of("qwen2-output"), base_of("qwen2-output")).verdict == "not-mergeable"
    adapter = changed(beft_of("qwen2-output"), tmp_path / "adapter", **fields)
    report = check_merge(adapter, base_of("qwen2-output"), threshold=1.0)
    assert [finding.code for finding in report.findings] == ["ADP210"]
    assert report.findings[0].count == 2
    as_peft_does(report, "qwen2-output", base_of("qwen2-output"), adapter)


@pytest.mark.parametrize("excluded", [["o_proj"], r".*o_proj"])
def test_excluded_modules(excluded: object, tmp_path: Path, base_of: Callable[[str], Path]) -> None:
    base = base_of("qwen2-output")
    lora = save_adapter(RECIPES["qwen2-output"], base, tmp_path / "lora", lora_bias=True)
    assert check_merge(lora, base).verdict == "not-mergeable"
    adapter = changed(lora, tmp_path / "adapter", exclude_modules=excluded)
    report = check_merge(adapter, base, threshold=1.0)
    assert (report.verdict, codes(report)) == ("mergeable", ["ADP210"])
    as_peft_does(report, "qwen2-output", base, adapter)


def test_a_field_that_the_method_does_not_have_changes_nothing(
    tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    adapter = changed(beft_of("qwen2-output"), tmp_path / "adapter", exclude_modules=["o_proj"])
    report = check_merge(adapter, base_of("qwen2-output"), threshold=1.0)
    assert report.verdict == "not-mergeable"
    as_peft_does(report, "qwen2-output", base_of("qwen2-output"), adapter)


@pytest.mark.parametrize(
    ("targets", "attaches"),
    [
        (["v_proj"], True),
        (r".*language_model.*v_proj", True),
        (r"language_model\.model\.layers\.\d+\.self_attn\.v_proj", False),
    ],
    ids=str,
)
def test_patterns_for_names_that_older_transformers_gave(
    targets: object, attaches: bool, tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    """Of the tensors themselves PEFT renames LoRA's alone, and leaves those of other methods out without a word."""

    def older(name: str) -> str | None:
        old = name.replace("model.model.language_model.layers", "model.language_model.model.layers")
        return old.replace("model.model.vision_tower.encoder", "model.vision_tower.vision_model.encoder")

    adapter = changed(beft_of("llava-qwen2"), tmp_path / "adapter", older, target_modules=targets)
    report = check_merge(adapter, base_of("llava-qwen2"), threshold=1.0)
    assert report.verdict == ("unknown" if attaches else "not-mergeable")
    if attaches:
        model = PeftModel.from_pretrained(load_base(RECIPES["llava-qwen2"], base_of("llava-qwen2")), adapter)
        assert not any(name.endswith("beft_bias.default") and one.any() for name, one in model.state_dict().items())
        assert whole_merge_fails(RECIPES["llava-qwen2"], base_of("llava-qwen2"), adapter) is None
    else:
        assert "Target modules" in load_failure(RECIPES["llava-qwen2"], base_of("llava-qwen2"), adapter)


@pytest.mark.parametrize("layers", [1, [1], [0], [0, 1]])
def test_layers_to_transform(
    layers: object, tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    base = base_of("qwen2")
    lora = save_adapter(RECIPES["qwen2"], base, tmp_path / "lora", lora_bias=True)
    adapter = changed(lora, tmp_path / "adapter", target_modules=["v_proj"], layers_to_transform=layers)
    report = check_merge(adapter, base, threshold=1.0)
    as_peft_does(report, "qwen2", base, adapter)
    assert ("ADP210" in codes(report)) is (layers != [0, 1])


def test_a_config_that_targets_nothing(
    tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    adapter = changed(beft_of("qwen2"), tmp_path / "adapter", target_modules=["query_key_value"])
    report = check_merge(adapter, base_of("qwen2"))
    assert (report.verdict, codes(report)) == ("not-mergeable", ["ADP202", "ADP210"])
    assert "Target modules" in load_failure(RECIPES["qwen2"], base_of("qwen2"), adapter)


@pytest.mark.parametrize("name", ["qwen2", "llama", "t5", "opt", "bert"])
def test_without_targets_peft_takes_its_own(
    name: str, tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    adapter = changed(beft_of(name), tmp_path / "adapter", target_modules=None)
    as_peft_does(check_merge(adapter, base_of(name), threshold=1.0), name, base_of(name), adapter)


@pytest.mark.parametrize(
    ("name", "verdict"), [("qwen3.5", "not-mergeable"), ("qwen2-vl", "not-mergeable"), ("llava-qwen2", "unknown")]
)
def test_without_targets_peft_raises_for_a_type_that_it_does_not_know(
    name: str, verdict: str, tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    """Where it knows a part of the model, it depends on the class."""
    adapter = changed(beft_of(name), tmp_path / "adapter", target_modules=None)
    assert "specify `target_modules`" in load_failure(RECIPES[name], base_of(name), adapter)
    report = check_merge(adapter, base_of(name), threshold=1.0)
    assert report.verdict == verdict
    assert ("ADP207" in codes(report)) is (verdict == "not-mergeable")


def test_without_targets_osf_takes_every_linear_layer(tmp_path: Path, base_of: Callable[[str], Path]) -> None:
    model = get_peft_model(load_base(RECIPES["bert"], base_of("bert")), OSFConfig())
    model.save_pretrained(str(tmp_path / "osf"))
    adapter = changed(tmp_path / "osf", tmp_path / "adapter", target_modules=None)
    loaded = PeftModel.from_pretrained(load_base(RECIPES["bert"], base_of("bert")), adapter)
    attached = {path for path, module in loaded.get_base_model().named_modules() if isinstance(module, BaseTunerLayer)}
    report = check_merge(adapter, base_of("bert"))
    assert {layer.module for layer in report.layers} == attached
    assert (report.verdict, report.findings) == ("mergeable", ())


def test_the_table_of_default_targets_is_pefts() -> None:
    assert json.loads(TABLE.read_text(encoding="utf-8")) == default_targets()


def test_the_shorthand_for_all_linear_layers(
    tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    adapter = changed(beft_of("qwen2"), tmp_path / "adapter", target_modules="all-linear")
    report = check_merge(adapter, base_of("qwen2"), threshold=1.0)
    as_peft_does(report, "qwen2", base_of("qwen2"), adapter)
    assert len(report.layers) == 14


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_a_lora_bias_that_the_config_asks_for_and_the_file_lacks(
    name: str, tmp_path: Path, base_of: Callable[[str], Path]
) -> None:
    lora = save_adapter(RECIPES[name], base_of(name), tmp_path / "lora", lora_alpha=4)
    adapter = changed(lora, tmp_path / "adapter", lora_bias=True)
    report = check_merge(adapter, base_of(name), threshold=1.0)
    as_peft_does(report, name, base_of(name), adapter)
    assert "ADP211" in codes(report)


def test_a_lora_bias_that_the_config_has_no_place_for(tmp_path: Path, base_of: Callable[[str], Path]) -> None:
    lora = save_adapter(RECIPES["llama"], base_of("llama"), tmp_path / "lora", lora_bias=True)
    assert check_merge(lora, base_of("llama")).verdict == "not-mergeable"
    adapter = changed(lora, tmp_path / "adapter", lora_bias=False)
    report = check_merge(adapter, base_of("llama"))
    as_peft_does(report, "llama", base_of("llama"), adapter)
    assert (report.verdict, codes(report)) == ("mergeable", ["ADP210"])


def test_updates_that_do_not_start_at_zero_are_open(
    tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    drop = changed(
        beft_of("qwen2"), tmp_path / "a", lambda key: None if "layers.1." in key else key, init_weights=False
    )
    report = check_merge(drop, base_of("qwen2"), threshold=1.0)
    assert [layer.status for layer in report.layers] == ["ok", "unknown"]
    assert report.exit_code == 3


@pytest.mark.parametrize(
    "fields",
    [{"r": 4}, {"rank_pattern": {"v_proj": 3}}, {"rank_pattern": {r"layers\.0\.self_attn\.v_proj": 8}}],
    ids=str,
)
def test_another_rank_than_the_configs_is_not_loaded(
    fields: dict[str, Any], tmp_path: Path, base_of: Callable[[str], Path]
) -> None:
    lora = save_adapter(RECIPES["qwen2"], base_of("qwen2"), tmp_path / "lora", lora_alpha=4)
    adapter = changed(lora, tmp_path / "adapter", **fields)
    assert "size mismatch" in load_failure(RECIPES["qwen2"], base_of("qwen2"), adapter)
    report = check_merge(adapter, base_of("qwen2"))
    assert (report.verdict, codes(report)) == ("not-mergeable", ["ADP203"])


def test_ranks_and_scales_by_pattern(tmp_path: Path, base_of: Callable[[str], Path]) -> None:
    adapter = save_adapter(
        RECIPES["qwen2"],
        base_of("qwen2"),
        tmp_path / "adapter",
        lora_bias=True,
        rank_pattern={r"1\.self_attn\.v_proj": 3},
        alpha_pattern={r"0\.self_attn\.v_proj": 7},
        use_rslora=True,
    )
    report = check_merge(adapter, base_of("qwen2"), threshold=1.0)
    as_peft_does(report, "qwen2", base_of("qwen2"), adapter)
    outcome = merge_by_peft(RECIPES["qwen2"], base_of("qwen2"), adapter)
    stored = load_file(base_of("qwen2") / "model.safetensors")
    for layer in report.layers:
        bias = outcome.biases[layer.module]
        assert bias is not None
        assert layer.update_norm == pytest.approx((bias - stored[f"{layer.module}.bias"]).norm().item(), rel=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": 5},
        {"target_modules": [1]},
        {"target_modules": "*v_proj"},
        {"modules_to_save": ["("]},
    ],
    ids=str,
)
def test_a_config_that_makes_no_sense(
    fields: dict[str, Any], tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
) -> None:
    adapter = changed(beft_of("qwen2"), tmp_path / "adapter", **fields)
    with pytest.raises(CorruptError) as caught:
        check_merge(adapter, base_of("qwen2"))
    assert caught.value.code == "ADP304"


@pytest.mark.parametrize("fields", [{"layers_to_transform": "all"}, {"exclude_modules": "("}, {"layers_pattern": "("}])
def test_a_rule_that_makes_no_sense(fields: dict[str, Any]) -> None:
    every = {"peft_type": "LORA", "target_modules": ["v_proj"], "layers_to_transform": [0], **fields}
    with pytest.raises(CorruptError):
        Targets(AdapterConfig("", every, "config"), None).match("model.layers.0.v_proj")


_SEGMENTS = st.sampled_from(["model", "layers", "h", "attn", "v_proj", "q_proj", "0", "1", "11", "experts", "lm_head"])
_PATHS = st.lists(_SEGMENTS, min_size=1, max_size=6).map(".".join)
_NAMES = st.one_of(
    st.none(),
    st.lists(_PATHS, max_size=3),
    st.sampled_from([r".*v_proj", r".*\.layers\.\d+\..*", "v_proj", r"(model|h)\..*"]),
)


@given(
    module=_PATHS,
    fields=st.fixed_dictionaries(
        {
            "target_modules": st.one_of(st.lists(_PATHS, max_size=3), st.sampled_from([r".*v_proj", r".*\.h\.1\..*"])),
            "exclude_modules": _NAMES,
            "modules_to_save": st.one_of(st.none(), st.lists(_PATHS, max_size=2)),
            "layers_to_transform": st.one_of(st.none(), st.just([]), st.integers(0, 2), st.lists(st.integers(0, 12))),
            "layers_pattern": st.one_of(
                st.none(), st.just([]), st.sampled_from(["h", "layers", ["layers", "h"], [""]])
            ),
        }
    ),
)
@settings(max_examples=400, deadline=None)
def test_targets_are_matched_as_peft_matches_them(module: str, fields: dict[str, Any]) -> None:
    config = SimpleNamespace(**fields, target_parameters=None)
    theirs = check_target_module_exists(config, module)
    ours = Targets(AdapterConfig("", {"peft_type": "LORA", **fields}, "config"), None).match(module)
    assert ours is (bool(theirs) and not isinstance(theirs, _ExcludedModule))


@pytest.mark.parametrize("parameters", [["gate_up_proj"], ["gate_up_proj", "down_proj"], ["experts.down_proj"]])
def test_experts_by_the_names_of_their_parameters(parameters: list[str], tmp_path: Path) -> None:
    """PEFT saves bare names where `target_modules` named what transformers 5 has fused: `w1` of Mixtral, for instance."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    Qwen3MoeForCausalLM(Qwen3MoeConfig(**QWEN3_MOE)).save_pretrained(tmp_path / "base")
    config = LoraConfig(
        target_modules=["q_proj"], target_parameters=parameters, r=2, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    model = get_peft_model(Qwen3MoeForCausalLM.from_pretrained(tmp_path / "base"), config)
    model.save_pretrained(str(tmp_path / "adapter"))
    report = check_merge(tmp_path / "adapter", tmp_path / "base")
    assert report.verdict == "mergeable"
    assert "model.layers.0.mlp.experts" in {layer.module for layer in report.layers}
    assert [finding.code for finding in report.findings] == []
    model.merge_and_unload(safe_merge=True)


@pytest.mark.parametrize("holder", ["", "base_layer."])
@pytest.mark.parametrize("side", ["A", "B"])
def test_parameters_whose_factors_are_no_pair(side: str, holder: str, tmp_path: Path) -> None:
    """Several parameters of a layer are wrapped in each other."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    base = tmp_path / "base"
    Qwen3MoeForCausalLM(Qwen3MoeConfig(**QWEN3_MOE)).save_pretrained(base)
    targets: Any = {"target_modules": [], "target_parameters": ["gate_up_proj", "down_proj"]}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, **targets))
    model.save_pretrained(str(tmp_path))
    weights = tmp_path / "adapter_model.safetensors"
    whole = load_file(weights)
    name = f"base_model.model.model.layers.0.mlp.experts.{holder}lora_{side}.weight"
    ranks = 1 if side == "B" else 0
    for part in (whole[name].flatten(), whole[name].narrow(ranks, 0, 0), whole[name].narrow(ranks, 0, 2)):
        save_file({**whole, name: part.contiguous()}, weights, {"format": "pt"})
        with pytest.raises(RuntimeError, match="size mismatch"):
            PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path))
        assert check_merge(tmp_path, base).verdict == "not-mergeable", part.shape
    save_file({other: tensor for other, tensor in whole.items() if other != name}, weights, {"format": "pt"})
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path)).merge_and_unload(
        safe_merge=True
    )
    lacking = check_merge(tmp_path, base)
    assert [finding.code for finding in lacking.findings] == ["ADP211"]
    # B starts at zero, and A at random.
    assert lacking.verdict == "unknown" or side == "B"


def test_the_model_tells_of_a_class_that_the_table_does_not_know(tmp_path: Path) -> None:
    """Full paths in a class for a rare task, which are no older names of another class's layers."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BlipConfig(
        text_config={**sizes, "encoder_hidden_size": 16, "vocab_size": 64},
        vision_config={**sizes, "image_size": 16, "patch_size": 8},
        projection_dim=16,
    )
    base: Any = BlipForQuestionAnswering(config)
    base.save_pretrained(tmp_path / "base")
    target = "text_encoder.encoder.layer.0.attention.output.dense"
    get_peft_model(base, BeftConfig(target_modules=[target])).save_pretrained(str(tmp_path / "adapter"))
    report = check_merge(tmp_path / "adapter", tmp_path / "base")
    assert (report.verdict, [layer.module for layer in report.layers]) == ("mergeable", [target])
    assert check_merge(tmp_path / "adapter", tmp_path / "base", ask_model=False).verdict == "unknown"
    loaded = PeftModel.from_pretrained(
        BlipForQuestionAnswering.from_pretrained(tmp_path / "base"), str(tmp_path / "adapter")
    )
    assert loaded.merge_and_unload(safe_merge=True) is not None
