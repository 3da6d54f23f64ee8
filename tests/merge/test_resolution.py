"""Layers are found under the names of other layouts, and the table of flags says what transformers' own code says."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from adaptertool.merge.base.code import ModelCode
from adaptertool.merge.base.code_table import table_version
from adaptertool.merge.base.names import Names, Resolution, is_quantized, modules_of, split_tensor
from tests.tools.generate_bias_table import TABLE, bias_flags, entry_of, turned
from tests.tools.model_trees import build, classes_of, default_config, layers_of, model_types, quiet, shrunk
from tests.tools.sweep_resolution import answers, asked_of, samples

if TYPE_CHECKING:
    from collections.abc import Mapping

EVERY = 8
"""Of so many model types one is looked at here; `sweep_resolution` looks at all."""

ALWAYS = (
    "bert",
    "gpt2",
    "llama",
    "llava",
    "mixtral",
    "opt",
    "qwen2_vl",
    "qwen3_5",
    "swin",
    "t5",
    "vit",
    "videomae",
    "xlstm",
)
"""Model types that are looked at whatever the count."""

SAMPLE = sorted({*model_types()[::EVERY], *ALWAYS})


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    quiet()


@pytest.fixture(scope="module")
def sampled() -> list[Mapping[str, Any]]:
    """Classes of every eighth model type, with their linear layers and the names of their tensors in each layout."""
    return list(samples(SAMPLE, most=2))


def test_many_architectures_in_every_layout(sampled: list[Mapping[str, Any]]) -> None:
    total: dict[str, Counter[str]] = {}
    for sample in sampled:
        for layout, names in sample["layouts"].items():
            count = answers(sample["config"], names, asked_of(sample, layout))
            assert not {kind for kind in count if kind.startswith("wrong")}, (sample["class"], layout)
            total.setdefault(layout, Counter()).update(count)
    assert len({sample["config"]["model_type"] for sample in sampled}) > 50
    assert total.keys() == {"native", "hub", "headless"}
    for layout, count in total.items():
        assert count.total() > 1000
        assert count["unknown"] <= 0.07 * count.total(), (layout, count)


def test_names_alone_never_find_a_bias_that_is_not_there(sampled: list[Mapping[str, Any]]) -> None:
    total: Counter[str] = Counter()
    for sample in sampled:
        for layout, names in sample["layouts"].items():
            total.update(answers({"model_type": None}, names, asked_of(sample, layout)))
    assert total["wrong has"] == 0
    assert total["right"] > 0.85 * total.total()


def test_the_numbers_of_layers_are_the_models_own(sampled: list[Mapping[str, Any]]) -> None:
    counted = 0
    for sample in sampled:
        code = ModelCode(sample["config"])
        for module in sample["linear"]:
            number = next((int(part) for part in module.split(".") if part.isdecimal()), None)
            count = code.layer_count(module)
            if count is not None:
                assert number is not None
                assert number < count, (sample["class"], module)
                counted += 1
    assert counted > 3000


TYPES = ["llama", "qwen3_5_text", "gpt2", "t5", "deepseek_v3", "llava", "vit", "dots1", "musicgen"]


@pytest.mark.parametrize("model_type", TYPES)
def test_the_table_is_what_the_script_makes(model_type: str) -> None:
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    assert json.loads(json.dumps(entry_of(model_type))) == table["models"][model_type]


def test_the_table_knows_hundreds_of_models() -> None:
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    assert table["transformers"] == table_version()
    assert len(table["models"]) > 500


@pytest.mark.parametrize(
    ("model_type", "flag"),
    [
        ("llama", "attention_bias"),
        ("llama", "mlp_bias"),
        ("qwen3", "attention_bias"),
        ("qwen3_5_text", "attention_bias"),
        ("gemma3", "text_config.attention_bias"),
        ("deepseek_v3", "attention_bias"),
        ("gpt_neox", "attention_bias"),
        ("falcon", "bias"),
        ("opt", "enable_bias"),
        ("stablelm", "use_qkv_bias"),
        ("starcoder2", "use_bias"),
        ("vit", "qkv_bias"),
    ],
)
def test_a_flag_turned_around_is_read_as_the_model_reads_it(model_type: str, flag: str) -> None:
    config = turned(shrunk(default_config(model_type)), flag)
    assert bias_flags(config)[flag] is not bias_flags(default_config(model_type))[flag]
    code = ModelCode(json.loads(json.dumps(config.to_dict(), default=str)))
    asked = 0
    for path, layer in layers_of(build(classes_of(model_type)[0], config)).items():
        answer = code.layer(path)
        if layer.kind == "linear" and answer is not None:
            assert answer.bias is layer.bias, path
            asked += 1
    assert asked > 0


@pytest.mark.parametrize("model_type", ["bailing_hybrid", "kimi_linear"])
@pytest.mark.parametrize("value", [False, True])
def test_a_flag_of_some_layers_of_a_name_says_nothing_of_all(model_type: str, value: bool) -> None:
    """Linear and full attention have an `o_proj` each, and the flag is about one of them."""
    config = default_config(model_type)
    config.attention_bias = value
    code = ModelCode(json.loads(json.dumps(config.to_dict(), default=str)))
    asked = [path for path in layers_of(build(classes_of(model_type)[-1], config)) if path.endswith("self_attn.o_proj")]
    assert asked
    for path in asked:
        answer = code.layer(path)
        assert answer is not None
        assert answer.bias is (None if value else False)
        assert answer.flag is None


def test_a_part_of_another_type_is_asked_for_itself() -> None:
    llava = {"model_type": "llava", "text_config": {"model_type": "qwen2"}, "vision_config": {}}
    value = "model.language_model.layers.0.self_attn.v_proj"
    assert (answer := ModelCode(llava).layer(value)) is not None
    assert answer.bias is True
    gemma = {"model_type": "llava", "text_config": {"model_type": "gemma2", "attention_bias": True}}
    assert (answer := ModelCode(gemma).layer(value)) is not None
    assert (answer.bias, answer.flag) == (True, "text_config.attention_bias")
    foreign = {"model_type": "llava", "text_config": {"model_type": "of-a-remote-repo"}}
    assert ModelCode(foreign).layer(value) is None
    assert ModelCode({"model_type": "of-a-remote-repo"}).layer(value) is None


@pytest.mark.parametrize(
    ("stored", "asked", "found"),
    [
        (["model.layers.0.q"], "model.layers.0.q", Resolution("exact", "model.layers.0.q")),
        (["layers.0.q"], "model.layers.0.q", Resolution("wrapper", "layers.0.q")),
        (["language_model.model.layers.0.q"], "model.language_model.layers.0.q", None),
        (["h.0.attn"], "transformer.h.0.attn", Resolution("wrapper", "h.0.attn")),
        (["vision_model.layers.0.q"], "model.layers.0.q", Resolution("missing")),
        (["vision_tower.vision_model.encoder.layers.0.q"], "model.vision_tower.encoder.layers.0.q", None),
        (["encoder.layers.0.q"], "decoder.layers.0.q", Resolution("missing")),
        (["decoder.layers.0.q"], "model.layers.0.q", Resolution("missing")),
        (
            ["a.layers.0.q", "b.layers.0.q"],
            "layers.0.q",
            Resolution("ambiguous", None, ("a.layers.0.q", "b.layers.0.q")),
        ),
        (["model.layers.1.q"], "model.layers.0.q", Resolution("missing")),
        (["model.layers.0.q"], "model.layers.0.qq", Resolution("missing")),
    ],
)
def test_names(stored: list[str], asked: str, found: Resolution | None) -> None:
    assert Names(stored).find(asked) == (found or Resolution("wrapper", stored[0]))


def test_a_model_types_own_prefix_is_a_wrapper_though_it_is_named_like_a_tower() -> None:
    names = Names(["encoder.layer.0.query"], ["vit"], ["vit"])
    assert names.find("vit.encoder.layer.0.query").how == "wrapper"
    assert Names(["encoder.layer.0.query"], ["vit"]).find("vit.encoder.layer.0.query").how == "missing"


@pytest.mark.parametrize(
    ("tensor", "parts", "quantised"),
    [
        ("model.layers.0.q_proj.weight", ("model.layers.0.q_proj", "weight"), False),
        ("model.layers.0.q_proj.weight.absmax", ("model.layers.0.q_proj", "weight.absmax"), True),
        (
            "model.layers.0.q_proj.weight.quant_state.bitsandbytes__nf4",
            ("model.layers.0.q_proj", "weight.quant_state.bitsandbytes__nf4"),
            True,
        ),
        ("model.layers.0.q_proj.qweight", ("model.layers.0.q_proj", "qweight"), True),
        ("model.layers.0.q_proj.weight_scale_inv", ("model.layers.0.q_proj", "weight_scale_inv"), True),
        ("cls_token", ("", "cls_token"), False),
    ],
)
def test_what_a_tensor_is_in_its_module(tensor: str, parts: tuple[str, str], quantised: bool) -> None:
    assert split_tensor(tensor) == parts
    assert is_quantized(modules_of([tensor])[parts[0]]) is quantised
