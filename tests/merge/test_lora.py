"""LoRA in all its forms: what headers and factors tell of its merge is what PEFT does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adaptertool.merge.trial import base_values
from adaptertool.operations.check_merge import MergeReport, check_merge
from tests.merge.models import RECIPES, Recipe, load_failure, merge_by_peft, save_adapter, save_base, whole_merge_fails

if TYPE_CHECKING:
    from collections.abc import Callable

FINITE = "The values of the base's weights, of which headers alone were read: that they are finite is assumed."


def retargeted(name: str, target: list[str], **fields: Any) -> Recipe:
    recipe = RECIPES[name]
    return Recipe(recipe.config, recipe.model, {**recipe.fields, **fields}, target, recipe.task)


def rewritten(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor | None], **config: Any) -> None:
    """Change an adapter's or base's tensors (None drops one) and config, in place."""
    weights = next(folder.glob("*model.safetensors"))
    tensors = {
        name: new.contiguous()
        for name, tensor in load_file(weights).items()
        if (new := change(name, tensor)) is not None
    }
    save_file(tensors, weights, {"format": "pt"})
    path = folder / ("config.json" if weights.name == "model.safetensors" else "adapter_config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


def as_peft_does(report: MergeReport, recipe: Recipe, base: Path, adapter: Path, dtype: Any = "auto") -> None:
    """Layer by layer, and as a whole."""
    outcome = merge_by_peft(recipe, base, adapter, dtype)
    assert {layer.module: layer.status for layer in report.layers} == {
        path: "ok" if error is None else "blocked"
        for path, error in outcome.fails.items()
        if not path.endswith(".base_layer")  # a module with adapters on two of its parameters is wrapped twice
    }
    fails = whole_merge_fails(recipe, base, adapter, dtype)
    assert report.verdict == ("mergeable" if fails is None else "not-mergeable")


FORMS: dict[str, tuple[Recipe, dict[str, Any]]] = {
    "embedding": (retargeted("llama", ["embed_tokens", "q_proj"]), {"lora_alpha": 4}),
    "output layer": (retargeted("llama", ["lm_head"]), {"lora_alpha": 4}),
    "dora": (retargeted("llama", ["q_proj", "down_proj"]), {"use_dora": True}),
    "dora on a Conv1D": (retargeted("gpt2", ["c_attn"]), {"use_dora": True}),
    "rslora": (retargeted("qwen2", ["v_proj", "o_proj"]), {"use_rslora": True, "lora_alpha": 3}),
    "convolution": (retargeted("vit", ["projection", "v_proj"]), {"lora_alpha": 4}),
    "convolution with a bias": (retargeted("vit", ["projection", "v_proj"]), {"lora_bias": True}),
    "all linear layers": (retargeted("qwen2", "all-linear"), {"lora_alpha": 4}),  # type: ignore[arg-type]
    "all linear layers with a bias": (retargeted("opt", "all-linear"), {"lora_bias": True}),  # type: ignore[arg-type]
    "parameters": (
        retargeted("mixtral", ["v_proj"]),
        {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    ),
    "one parameter": (retargeted("mixtral", ["v_proj"]), {"target_parameters": ["mlp.experts.down_proj"]}),
    "parameters with patterns of ranks": (
        retargeted("mixtral", ["v_proj"]),
        {
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
            "rank_pattern": {"gate_up_proj": 3, "experts": 5},
        },
    ),
    "a rank for a parameter's own name": (
        retargeted("qwen2", ["v_proj"]),
        {"target_parameters": ["q_proj.weight", "k_proj.weight"], "rank_pattern": {"q_proj.weight": 3, "k_proj": 5}},
    ),
    "a saved module": (retargeted("llama", ["q_proj"]), {"modules_to_save": ["lm_head"]}),
    "trained biases": (retargeted("qwen2", ["v_proj"]), {"bias": "lora_only"}),
    "one layer": (retargeted("qwen2", ["v_proj"]), {"layers_to_transform": [1], "lora_bias": True}),
    "a pattern": (retargeted("qwen2", r".*layers\.[01]\.self_attn\.v_proj"), {"lora_bias": True}),  # type: ignore[arg-type]
    "patterns of ranks": (
        retargeted("qwen2", ["v_proj", "q_proj"]),
        {"lora_bias": True, "rank_pattern": {"q_proj": 5}, "alpha_pattern": {"^model.layers.0.*": 3}},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_merges_where_peft_merges_it(form: str, tmp_path: Path) -> None:
    recipe, lora = FORMS[form]
    base = save_base(recipe, tmp_path / "base")
    adapter = save_adapter(recipe, base, tmp_path / "adapter", **lora)
    report = check_merge(adapter, base, threshold=1.0)
    as_peft_does(report, recipe, base, adapter)
    assert not [finding for finding in report.findings if finding.code in ("ADP210", "ADP211")]


@pytest.mark.parametrize(
    ("pattern", "raises"), [("gate_up_proj", True), ("down_proj", True), ("w1", False), ("experts", False)]
)
def test_a_parameter_of_another_rank(pattern: str, raises: bool, tmp_path: Path) -> None:
    recipe = retargeted("mixtral", ["v_proj"])
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    base = save_base(recipe, tmp_path / "base")
    adapter = save_adapter(recipe, base, tmp_path / "adapter", target_parameters=parameters)
    rewritten(adapter, lambda _, tensor: tensor, rank_pattern={pattern: 3})
    if raises:
        assert "size mismatch" in load_failure(recipe, base, adapter)
    else:
        assert whole_merge_fails(recipe, base, adapter, "auto") is None
    assert check_merge(adapter, base).verdict == ("not-mergeable" if raises else "mergeable")


def test_another_vocabulary_does_not_fit(tmp_path: Path) -> None:
    recipe = retargeted("llama", ["embed_tokens"])
    base = save_base(recipe, tmp_path / "base")
    adapter = save_adapter(recipe, base, tmp_path / "adapter", lora_alpha=4)
    longer = retargeted("llama", ["embed_tokens"], vocab_size=80)
    other = save_base(longer, tmp_path / "other")
    assert "size mismatch" in load_failure(longer, other, adapter)
    report = check_merge(adapter, other)
    assert [layer.code for layer in report.layers] == ["ADP203"]


def test_a_bias_for_an_embedding_is_refused(tmp_path: Path) -> None:
    recipe = retargeted("llama", ["embed_tokens"])
    base = save_base(recipe, tmp_path / "base")
    adapter = save_adapter(recipe, base, tmp_path / "adapter", lora_alpha=4)
    rewritten(adapter, lambda _, tensor: tensor, lora_bias=True)
    assert "not supported" in load_failure(recipe, base, adapter)
    assert check_merge(adapter, base).verdict == "not-mergeable"


@pytest.mark.parametrize("fields", [{"use_dora": True}, {"init_lora_weights": "gaussian"}])
def test_settings_that_peft_refuses_with_a_bias(fields: dict[str, Any], tmp_path: Path) -> None:
    recipe = RECIPES["qwen2"]
    base = save_base(recipe, tmp_path / "base")
    adapter = save_adapter(recipe, base, tmp_path / "adapter", lora_bias=True)
    rewritten(adapter, lambda _, tensor: tensor, **fields)
    assert "lora_bias=True" in load_failure(recipe, base, adapter)
    report = check_merge(adapter, base)
    assert [finding.code for finding in report.findings] == ["ADP206"]


def test_a_magnitude_that_the_config_has_no_place_for(tmp_path: Path) -> None:
    recipe = RECIPES["llama"]
    base = save_base(recipe, tmp_path / "base")
    adapter = save_adapter(recipe, base, tmp_path / "adapter", use_dora=True)
    rewritten(adapter, lambda _, tensor: tensor, use_dora=False)
    report = check_merge(adapter, base)
    as_peft_does(report, recipe, base, adapter)
    assert [finding.code for finding in report.findings] == ["ADP210"]


class TestOverflow:
    """float16 ends at 65504, and safe_merge looks at the merged weight in the base's dtype."""

    def check(
        self, tmp_path: Path, largest: float, weight: float, monkeypatch: pytest.MonkeyPatch | None = None
    ) -> MergeReport:
        """A LoRA whose largest update is that large, on a base whose weights are all `weight`, in float16."""
        recipe = RECIPES["llama"]
        base = save_base(recipe, tmp_path / "base")
        rewritten(base, lambda name, one: torch.full_like(one, weight) if "v_proj" in name else one)
        adapter = save_adapter(recipe, base, tmp_path / "adapter", lora_alpha=2)
        rewritten(
            adapter,
            lambda name, one: torch.ones_like(one) if "lora_A" in name else torch.full_like(one, largest / 2),
        )
        if monkeypatch is not None:
            monkeypatch.setattr(base_values, "WEIGHT_BYTES", 0)
        report = check_merge(adapter, base, dtype="float16")
        if {layer.status for layer in report.layers} != {"unknown"}:
            as_peft_does(report, recipe, base, adapter, torch.float16)
        return report

    def test_an_update_that_fits(self, tmp_path: Path) -> None:
        assert self.check(tmp_path, 30000.0, 30000.0).verdict == "mergeable"

    def test_an_update_that_is_too_large(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        report = self.check(tmp_path, 66000.0, 0.0, monkeypatch)
        assert {layer.code for layer in report.layers} == {"ADP204"}

    def test_a_sum_that_is_too_large(self, tmp_path: Path) -> None:
        report = self.check(tmp_path, 40000.0, 40000.0)
        assert {layer.code for layer in report.layers} == {"ADP204"}

    def test_a_sum_that_just_fits(self, tmp_path: Path) -> None:
        assert self.check(tmp_path, 60000.0, 5000.0).verdict == "mergeable"

    def test_a_large_base_leaves_a_sum_open(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        report = self.check(tmp_path, 40000.0, 40000.0, monkeypatch)
        assert (report.verdict, report.exit_code) == ("unknown", 3)

    def test_a_large_base_is_said_not_to_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.check(tmp_path, 1.0, 1.0, monkeypatch).not_examined == (FINITE,)

    def test_a_small_base_is_read(self, tmp_path: Path) -> None:
        assert self.check(tmp_path, 1.0, 1.0).not_examined == ()


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("form", ["rslora", "dora", "dora on a Conv1D", "convolution"])
def test_a_base_weight_that_is_not_finite(form: str, value: float, tmp_path: Path) -> None:
    recipe, lora = FORMS[form]
    base = save_base(recipe, tmp_path / "base")
    adapter = save_adapter(recipe, base, tmp_path / "adapter", **lora)
    target = check_merge(adapter, base).layers[0]
    assert target.status == "ok"
    stem = (target.base_tensor or "").rpartition(".")[0]

    def spoiled(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name == f"{stem}.weight":
            tensor.view(-1)[7] = value
        return tensor

    rewritten(base, spoiled)
    report = check_merge(adapter, base)
    as_peft_does(report, recipe, base, adapter)
    assert report.layers[0].code == "ADP204"


@pytest.mark.parametrize("spoil_copy", [True, False])
def test_an_embedding_of_which_the_adapter_holds_a_copy(spoil_copy: bool, tmp_path: Path) -> None:
    recipe, lora = FORMS["embedding"]
    base = save_base(recipe, tmp_path / "base")
    adapter = save_adapter(recipe, base, tmp_path / "adapter", **lora)

    def spoiled(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name.endswith(("embed_tokens.weight", "embed_tokens.base_layer.weight")):
            tensor[3, 1] = float("nan")
        return tensor

    rewritten(adapter if spoil_copy else base, spoiled)
    report = check_merge(adapter, base)
    as_peft_does(report, recipe, base, adapter)
    assert report.verdict == ("not-mergeable" if spoil_copy else "mergeable")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_base_bias_that_is_not_finite(dtype: str, tmp_path: Path, beft_of: Callable[[str], Path]) -> None:
    recipe = RECIPES["qwen2"]
    base = save_base(recipe, tmp_path / "base")

    def spoiled(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name == "model.layers.1.self_attn.v_proj.bias":
            tensor.view(torch.int32)[2] = -1  # a NaN of all ones, which careless rounding carries over into a zero
        return tensor

    rewritten(base, spoiled)
    report = check_merge(beft_of("qwen2"), base, dtype=dtype, threshold=10.0)
    as_peft_does(report, recipe, base, beft_of("qwen2"), getattr(torch, dtype))
    assert [layer.code for layer in report.layers] == [None, "ADP204"]


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_factors_of_any_stored_dtype(stored: torch.dtype, value: float, tmp_path: Path) -> None:
    recipe = RECIPES["llama"]
    base = save_base(recipe, tmp_path / "base")
    adapter = save_adapter(recipe, base, tmp_path / "adapter", lora_alpha=4)

    def narrow(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name.endswith("1.self_attn.v_proj.lora_B.weight"):
            tensor[0, 1] = value
        return tensor.to(stored)

    rewritten(adapter, narrow)
    report = check_merge(adapter, base)
    as_peft_does(report, recipe, base, adapter)
    assert report.verdict == ("mergeable" if value == 1.0 else "not-mergeable")


def test_a_lora_that_changes_nothing_says_so(tmp_path: Path) -> None:
    recipe = RECIPES["llama"]
    base = save_base(recipe, tmp_path / "base")
    adapter = save_adapter(recipe, base, tmp_path / "adapter", lora_alpha=4)
    assert check_merge(adapter, base).note is None
    rewritten(adapter, lambda name, tensor: torch.zeros_like(tensor) if "lora_B" in name else tensor)
    report = check_merge(adapter, base)
    assert report.verdict == "mergeable"
    assert "zero in every layer" in (report.note or "")


class TestBasesOfSpecialKinds:
    def base(self, tmp_path: Path, base_of: Callable[[str], Path], name: str, **config: Any) -> Path:
        folder = tmp_path / "base"
        shutil.copytree(base_of(name), folder)
        rewritten(folder, lambda _, tensor: tensor, **config)
        return folder

    def test_code_of_its_own_that_agrees(
        self, tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
    ) -> None:
        own = {"AutoModelForCausalLM": "modeling.Model"}
        base = self.base(tmp_path, base_of, "qwen2", auto_map=own)
        assert check_merge(beft_of("qwen2"), base).verdict == "mergeable"

    @pytest.mark.parametrize(("name", "flag"), [("llama", True), ("llama-attention-bias", False)])
    def test_code_of_its_own_that_may_differ(
        self, name: str, flag: bool, tmp_path: Path, base_of: Callable[[str], Path], beft_of: Callable[[str], Path]
    ) -> None:
        own = {"AutoModelForCausalLM": "modeling.Model"}
        base = self.base(tmp_path, base_of, name, auto_map=own, attention_bias=flag)
        report = check_merge(beft_of("llama"), base)
        assert (report.verdict, report.exit_code) == ("unknown", 3)

    @pytest.mark.parametrize(
        ("settings", "status"),
        [
            ({"quant_method": "fp8"}, "unknown"),
            ({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}, "ok"),
            ({"quant_method": "compressed-tensors", "ignore": ["re:.*self_attn.*"]}, "ok"),
            ({"quant_method": "torchao"}, "unknown"),
            ({"quant_method": "bitsandbytes"}, "unknown"),
            ({"quant_method": "bitsandbytes", "llm_int8_skip_modules": ["self_attn"]}, "ok"),
        ],
    )
    def test_layers_that_a_config_quantises_at_loading(
        self,
        settings: dict[str, Any],
        status: str,
        tmp_path: Path,
        base_of: Callable[[str], Path],
        beft_of: Callable[[str], Path],
    ) -> None:
        base = self.base(tmp_path, base_of, "qwen2", quantization_config=settings)
        report = check_merge(beft_of("qwen2"), base, threshold=10.0)
        assert {layer.status for layer in report.layers} == {status}

    def test_a_parametrised_weight_is_open(self, tmp_path: Path, base_of: Callable[[str], Path]) -> None:
        adapter = save_adapter(RECIPES["llama"], base_of("llama"), tmp_path / "adapter", lora_alpha=4)
        base = self.base(tmp_path, base_of, "llama")
        tensors = load_file(base / "model.safetensors")
        for name in [name for name in tensors if name.endswith("v_proj.weight")]:
            weight = tensors.pop(name)
            stem = name.removesuffix(".weight")
            tensors[f"{stem}.parametrizations.weight.original0"] = weight[:, :1].clone()
            tensors[f"{stem}.parametrizations.weight.original1"] = weight
        save_file(tensors, base / "model.safetensors", {"format": "pt"})
        assert check_merge(adapter, base, ask_model=False).verdict == "unknown"
