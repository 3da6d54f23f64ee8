"""What is offered where a bias is missing, held against what transformers builds and PEFT does: the way out leads out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import BeftConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from adaptertool.merge.base.paths import pattern_of
from adaptertool.merge.target_modules import target_modules
from adaptertool.operations.check_merge import check_merge
from tests.checkpoints import WEIGHTS
from tests.merge.models import RECIPES, SMALL, Recipe, load_base, merge_by_peft, save_adapter, save_base

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from adaptertool.merge.result import WayOut

_PART = {
    **dict.fromkeys(("hidden_size", "intermediate_size"), 16),
    "vocab_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
_T5GEMMA = Recipe(
    "T5GemmaConfig",
    "T5GemmaForConditionalGeneration",
    {"encoder": _PART, "decoder": _PART, "vocab_size": 64},
    ["v_proj"],
    "SEQ_2_SEQ_LM",
)

FIELDS: dict[str, tuple[Recipe, list[str], dict[str, bool]]] = {
    "llama": (RECIPES["llama"], ["v_proj"], {"attention_bias": True}),
    "llama, two fields": (
        RECIPES["llama"],
        ["v_proj", "down_proj"],
        {"attention_bias": True, "mlp_bias": True},
    ),
    "qwen3": (RECIPES["qwen3"], ["q_proj", "o_proj"], {"attention_bias": True}),
    "qwen3.5": (RECIPES["qwen3.5"], ["v_proj"], {"attention_bias": True}),
    "gemma3": (RECIPES["gemma3"], ["v_proj"], {"attention_bias": True}),
    "gemma3 with images": (RECIPES["gemma3-vision"], ["v_proj"], {"text_config.attention_bias": True}),
    "llava": (RECIPES["llava"], ["v_proj"], {"text_config.attention_bias": True}),
    "t5gemma": (_T5GEMMA, ["v_proj"], {"encoder.attention_bias": True, "decoder.attention_bias": True}),
    "falcon": (RECIPES["falcon"], ["dense"], {"bias": True}),
    "gpt-neox": (RECIPES["gpt-neox-no-bias"], ["query_key_value"], {"attention_bias": True}),
    "modernbert": (RECIPES["modernbert"], ["Wqkv"], {"attention_bias": True}),
    "vit": (RECIPES["vit-no-bias"], ["v_proj"], {"qkv_bias": True}),
    "granite": (
        Recipe("GraniteConfig", "GraniteForCausalLM", SMALL, ["v_proj"]),
        ["v_proj"],
        {"attention_bias": True},
    ),
    "deepseek": (
        Recipe(
            "DeepseekV3Config",
            "DeepseekV3ForCausalLM",
            {**RECIPES["deepseek-v3"].fields, "attention_bias": False},
            ["q_a_proj"],
        ),
        ["q_a_proj"],
        {"attention_bias": True},
    ),
}
"""A base, targets, and the fields of its config that give them a bias."""

INSTEAD: dict[str, tuple[Recipe, list[str]]] = {
    "qwen2": (RECIPES["qwen2"], ["o_proj"]),
    "gemma3 with images": (RECIPES["gemma3-vision"], ["down_proj"]),
    "llava with qwen2": (RECIPES["llava-qwen2"], ["o_proj"]),
    "qwen2-vl": (RECIPES["qwen2-vl"], ["o_proj"]),
    "idefics3": (
        Recipe("Idefics3Config", "Idefics3ForConditionalGeneration", RECIPES["idefics3"].fields, ["connector"]),
        ["connector.modality_projection.proj"],
    ),
    "internvl": (RECIPES["internvl"], ["o_proj"]),
    "gptj": (RECIPES["gptj"], ["v_proj"]),
    "gpt-neo": (RECIPES["gpt-neo"], ["v_proj"]),
    "whisper": (RECIPES["whisper"], ["k_proj"]),
    "deepseek": (RECIPES["deepseek-v3"], ["q_b_proj"]),
    "stablelm": (RECIPES["stablelm"], ["o_proj"]),
}
"""A base with biases, and targets that no field gives one."""


def trained(recipe: Recipe, base: Path, folder: Path, **fields: Any) -> Path:
    model = get_peft_model(load_base(recipe, base, torch.float32), BeftConfig(**fields))
    for name, parameter in model.named_parameters():
        if "beft_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(str(folder))
    return folder


def with_settings(base: Path, settings: tuple[tuple[str, bool], ...]) -> None:
    config = json.loads((base / "config.json").read_text())
    for name, value in settings:
        *path, field = name.split(".")
        part = config
        for step in path:
            part = part[step]
        part[field] = value
    (base / "config.json").write_text(json.dumps(config))


def biases(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name[: -len(".bias")]: one for name, one in model.named_parameters() if name.endswith(".bias")}


def the_way(adapter: Path, base: Path, **options: Any) -> WayOut:
    report = check_merge(adapter, base, **options)
    assert report.verdict == "not-mergeable"
    (way,) = report.ways_out
    return way


@pytest.mark.parametrize("name", FIELDS)
def test_fields_that_create_the_missing_biases(name: str, tmp_path: Path) -> None:
    recipe, targets, fields = FIELDS[name]
    base = save_base(recipe, tmp_path / "base")
    adapter = trained(recipe, base, tmp_path / "adapter", target_modules=targets)
    way = the_way(adapter, base)
    assert dict(way.settings) == fields
    assert all(f"{field}: {json.dumps(value)}" in way.text for field, value in fields.items())
    before = biases(load_base(recipe, base))
    # Each of several fields alone still leaves the merge to fail.
    for setting in way.settings if len(way.settings) > 1 else ():
        with_settings(base, (setting,))
        assert any(merge_by_peft(recipe, base, adapter).fails.values())
        with_settings(base, ((setting[0], not setting[1]),))
    with_settings(base, way.settings)
    assert check_merge(adapter, base).verdict == "mergeable"
    made = {path: bias for path, bias in biases(load_base(recipe, base)).items() if path not in before}
    merged: Any = PeftModel.from_pretrained(load_base(recipe, base), str(adapter)).merge_and_unload(safe_merge=True)
    others = {path: bias for path, bias in biases(merged).items() if path in made and not bias.any()}
    assert {pattern_of(path) for path in others} == set(way.other_biases)
    updates = {key.split("model.", 2)[-1] for key in load_file(adapter / WEIGHTS)}
    assert len(made) == len(others) + sum(any(path.endswith(key[:-10]) for key in updates) for path in made)


@pytest.mark.parametrize("name", INSTEAD)
def test_layers_that_can_be_trained_instead(name: str, tmp_path: Path) -> None:
    recipe, targets = INSTEAD[name]
    base = save_base(recipe, tmp_path / "base")
    adapter = trained(recipe, base, tmp_path / "adapter", target_modules=targets)
    way = the_way(adapter, base)
    assert way.settings == ()
    assert way.target_modules is not None
    names = way.target_modules if isinstance(way.target_modules, str) else [*way.target_modules]
    again = trained(recipe, base, tmp_path / "again", target_modules=names)
    assert check_merge(again, base).verdict == "mergeable"
    outcome = merge_by_peft(recipe, base, again)
    assert not any(outcome.fails.values())
    assert {pattern_of(path) for path in outcome.fails} <= {*way.biased_layers}
    with_bias = {
        pattern_of(path)
        for path, module in load_base(recipe, base).named_modules()
        if isinstance(module, torch.nn.Linear) and module.bias is not None
    }
    assert {*way.biased_layers} <= with_bias
    in_stacks = {one for one in with_bias if "#" in one.rpartition(".")[0]}
    assert in_stacks <= {pattern_of(path) for path in outcome.fails}


def test_of_layers_adapted_in_part_the_rest_get_zeros(tmp_path: Path) -> None:
    recipe = RECIPES["llama"]
    base = save_base(recipe, tmp_path / "base")
    adapter = trained(recipe, base, tmp_path / "adapter", target_modules=["layers.1.self_attn.v_proj"])
    way = the_way(adapter, base)
    assert set(way.other_biases) == {f"model.layers.#.self_attn.{one}_proj" for one in "qkvo"}


def test_no_field_leads_out_where_a_layer_has_none(base_of: Callable[[str], Path], tmp_path: Path) -> None:
    """What is said of a field then holds for the adapter without these layers."""
    recipe, base = RECIPES["qwen3"], save_base(RECIPES["qwen3"], tmp_path / "base")
    adapter = trained(recipe, base, tmp_path / "adapter", target_modules=["v_proj", "down_proj"])
    way = the_way(adapter, base)
    assert way.settings == ()
    assert "Trained without model.layers.#.mlp.down_proj, it would merge" in way.text
    assert "says attention_bias: true" in way.text
    way = the_way(
        trained(RECIPES["mistral"], base_of("mistral"), tmp_path / "m", target_modules=["v_proj"]), base_of("mistral")
    )
    assert (way.settings, way.biased_layers, way.target_modules) == ((), (), None)
    assert "No linear layer of this base has a bias." in way.text
    assert "Trained without" not in way.text


def test_biases_that_the_file_stores_are_no_zeros(tmp_path: Path) -> None:
    """Turned on, the field loads what the file holds, and the base is another."""
    recipe = RECIPES["llama-attention-bias"]
    base = save_base(recipe, tmp_path / "base")
    with_settings(base, (("attention_bias", False),))
    adapter = trained(recipe, base, tmp_path / "adapter", target_modules=["v_proj"])
    way = the_way(adapter, base)
    assert way.settings == (("attention_bias", True),)
    assert way.other_biases == ()
    assert "zero" not in way.text
    assert "the base computes something else" in way.text


def test_a_base_whose_code_is_not_known(
    base_of: Callable[[str], Path], beft_of: Callable[[str], Path], tmp_path: Path
) -> None:
    base = save_base(RECIPES["llama"], tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "model_type": "of-its-own"}))
    way = the_way(beft_of("llama"), base)
    assert (way.settings, way.target_modules) == ((), None)
    assert "is not known here" in way.text
    assert "No linear layer" not in way.text


def test_a_model_that_was_built_has_the_same_way_out(
    base_of: Callable[[str], Path], beft_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """An entry that files can't decide makes check-merge ask the model."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for file in beft_of("llama").iterdir():
        (adapter / file.name).write_bytes(file.read_bytes())
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "modules_to_save": ["rotary_emb"]}))
    report = check_merge(adapter, base_of("llama"))
    assert report.base is not None
    assert report.base.source == "model"
    (way,) = report.ways_out
    assert way.settings == (("attention_bias", True),)
    assert set(way.other_biases) == {f"model.layers.#.self_attn.{one}_proj" for one in "qko"}


def test_lora_with_a_bias_can_do_without(base_of: Callable[[str], Path], tmp_path: Path) -> None:
    recipe = RECIPES["mistral"]
    adapter = save_adapter(recipe, base_of("mistral"), tmp_path / "adapter", lora_bias=True)
    assert "train it again with lora_bias=False" in the_way(adapter, base_of("mistral")).text
    model = get_peft_model(
        load_base(recipe, base_of("mistral")), LoraConfig(target_modules=recipe.target, lora_bias=False)
    )
    model.save_pretrained(str(tmp_path / "again"))
    assert check_merge(tmp_path / "again", base_of("mistral")).verdict == "mergeable"


@pytest.mark.parametrize(
    ("wanted", "others", "names"),
    [
        ([], ["a.b"], None),
        (["h.#.attn.q", "h.#.attn.k"], ["h.#.mlp.up", "h.#.attn"], ("q", "k")),
        (["h.#.attn.proj"], ["h.#.mlp.proj"], ("attn.proj",)),
        (["v.h.#.q", "v.h.#.k.c"], ["t.h.#.q", "t.h.#.k"], r"v\.h\.\d+\.q|v\.h\.\d+\.k\.c"),
        (["v.h.#.q", "v.h.#.k"], ["t.h.#.q", "t.h.#.k"], r"v\.h\.\d+\.(q|k)"),
        (["pooler.dense"], ["h.#.dense"], ("pooler.dense",)),
        (["net.#"], ["up"], r"net\.\d+"),
        (["head"], ["x.head"], "head"),
    ],
)
def test_names_that_peft_finds(wanted: list[str], others: list[str], names: tuple[str, ...] | str | None) -> None:
    """Held against PEFT's own rule."""
    from peft.tuners.tuners_utils import check_target_module_exists

    assert target_modules(wanted, others) == names
    config = BeftConfig(target_modules=[*names] if isinstance(names, tuple) else names)
    for pattern in (*wanted, *others) if names is not None else ():
        found = check_target_module_exists(config, pattern.replace("#", "7"))
        assert bool(found) is (pattern in wanted)
