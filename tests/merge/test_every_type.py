"""Every PEFT type on every tiny base: check-merge's verdict is what `merge_and_unload(safe_merge=True)` does.

What it does is one of three: it raises, it gives a model that computes what the adapter computes, as it was trained and as it
was loaded, or it gives one that computes something else and says nothing.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import ArrowConfig, PeftModel, create_arrow_model
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from safetensors.torch import load_file, save_file

import adaptertool
from tests.methods.written import (
    ALL_FAMILIES,
    EMBEDDINGS,
    UNTARGETED,
    Written,
    base,
    cases,
    logits,
    peft_types,
    write,
    write_xlora,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.merge.conftest import Bases

VERDICTS = {"raises": "not-mergeable", "right": "mergeable", "wrong": "lossy"}


@cache
def plain_logits(family: str, tied: bool | None) -> torch.Tensor:
    """What the base computes."""
    return logits(base(family, tied=tied))


def outcome(written: Written) -> str:
    """What PEFT's merge of the saved adapter does: `raises`, `right` or `wrong`."""
    model = written.loaded(written.folder)
    plain = plain_logits(written.family, written.tied)
    try:
        before, trained = logits(model), written.logits
    except (AttributeError, ValueError):
        # Some need more than tokens: a task, or experts.
        before = trained = plain
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            merged = model.merge_and_unload(safe_merge=True)
        except (AttributeError, KeyError, NotImplementedError, RuntimeError, ValueError):
            return "raises"
    effect = float((before - plain).abs().max())
    assert effect > 1e-4, "an adapter that changes nothing proves nothing"
    off = max(float((logits(merged) - one).abs().max()) for one in (before, trained))
    return "right" if off <= 1e-3 * effect else "wrong"


def agree(written: Written, bases: Bases) -> adaptertool.MergeReport:
    """The verdict is what PEFT does."""
    report = adaptertool.check_merge(written.folder, bases(written.family, tied=written.tied))
    did = outcome(written)
    assert report.verdict == VERDICTS[did], (did, report.verdict, report.note, report.findings, report.layers)
    codes = {one.code for one in report.findings if one.severity == "error"}
    assert bool(codes) == (did != "right"), codes
    assert ("ADP209" in codes) == (did == "wrong"), codes
    return report


@pytest.mark.parametrize(("peft_type", "family"), cases(ALL_FAMILIES))
def test_every_type_on_every_base(peft_type: str, family: str, bases: Bases, tmp_path: Path) -> None:
    report = agree(write(tmp_path, peft_type, family), bases)
    assert report.layers or report.verdict == "not-mergeable"


@dataclass(frozen=True)
class Variant:
    """A setting that changes what is merged, or whether."""

    arguments: dict[str, Any]
    family: str = "llama"
    tied: bool | None = None
    peft_type: str = "LORA"
    does: str = "right"

    def __str__(self) -> str:
        return f"{self.peft_type}-{self.family}-{'tied-' if self.tied else ''}{self.arguments}"


def embedding(family: str) -> dict[str, Any]:
    return {"target_modules": [EMBEDDINGS[family]]}


BESIDE = (
    {"bias": "all"},
    {"bias": "lora_only"},
    {"modules_to_save": ["lm_head"]},
    {"trainable_token_indices": [1, 2]},
    {"use_dora": True},
    {"use_rslora": True},
    {"target_modules": "all-linear"},
)
INITS = ("pissa", "orthogonal", "gaussian", "mica", False)
VARIANTS = [
    *(Variant(arguments, family) for arguments in BESIDE for family in ALL_FAMILIES),
    *(Variant({"init_lora_weights": init}, family) for init in INITS for family in ("llama", "gpt2")),
    *(Variant({"init_lora_weights": "pissa_niter_2"}, family, does="wrong") for family in ("llama", "gpt2")),
    Variant({"init_lora_weights": "pissa", "use_dora": True}),
    Variant({"init_lora_weights": "pissa", "use_rslora": True}),
    Variant({"init_lora_weights": "olora"}),
    *(
        Variant({"lora_bias": True}, family, does="right" if family in ("opt", "gpt2") else "raises")
        for family in ALL_FAMILIES
    ),
    *(Variant({"modules_to_save": [EMBEDDINGS[family]]}, family) for family in ALL_FAMILIES),
    *(Variant({"modules_to_save": [EMBEDDINGS[family], "lm_head"]}, family, True) for family in ALL_FAMILIES),
    *(Variant({"trainable_token_indices": [1, 2]}, family, True) for family in ALL_FAMILIES),
    *(Variant(embedding(family), family, False) for family in ALL_FAMILIES),
    *(Variant(embedding(family) | {"use_dora": True}, family, False) for family in ALL_FAMILIES),
    *(Variant(embedding(family), family, True, does="wrong") for family in ALL_FAMILIES),
    *(Variant({"target_modules": ["lm_head"]}, family, True, does="wrong") for family in ALL_FAMILIES),
    *(Variant(embedding(one) | {"ensure_weight_tying": True}, one, True, does="wrong") for one in ALL_FAMILIES),
    Variant({"target_modules": ["lm_head"]}),
    *(
        Variant({"target_modules": [one], "modules_to_save": [other]}, "qwen2", True)
        for one, other in (("lm_head", "embed_tokens"), ("embed_tokens", "lm_head"))
    ),
    Variant({"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 3}}),
    Variant({"target_modules": [], "target_parameters": ["q_proj.weight"]}),
    Variant({"target_modules": [], "target_parameters": ["c_attn.weight"]}, "gpt2"),
    Variant({"alora_invocation_tokens": [1, 2]}, does="raises"),
    Variant({"monteclora_config": MontecloraConfig()}),
    Variant({"velora_config": VeloraConfig()}),
    Variant({"kasa_config": KasaConfig()}),
    Variant(
        {
            "use_bdlora": BdLoraConfig(target_modules_bd_a=["q_proj"], target_modules_bd_b=["v_proj"], nblocks=2),
            "target_modules": ["q_proj", "v_proj"],
        }
    ),
    Variant({"target_modules": ["lm_head"]}, "llama", True, "TRAINABLE_TOKENS", "wrong"),
    Variant({}, "llama", True, "TRAINABLE_TOKENS"),
    *(Variant(embedding("gemma3"), "gemma3", False, one, "wrong") for one in ("HIRA", "TINYLORA")),
    *(Variant(embedding("opt"), "opt", False, one) for one in ("HIRA", "TINYLORA", "OFT")),
    Variant({"config_A_B": "vector", "config_C": "vector", "config_D_E": "constant"}, "opt", None, "GLORA"),
    Variant({"config_A_B": "none", "config_C": "lora", "config_D_E": "vector"}, "opt", None, "GLORA"),
    *(Variant({"variant": one}, "llama", None, "ROAD") for one in ("road_2", "road_4")),
    *(Variant({"init_weights": one}, "llama", None, "MISS") for one in ("bat", "mini")),
    *(Variant({"save_indices": one}, family, None, "UNILORA") for one in (True, False) for family in ALL_FAMILIES),
    *(Variant({"save_projection": False}, "llama", None, one) for one in ("VERA", "PVERA", "RANDLORA", "TINYLORA")),
    Variant({"layer_replication": [(0, 2), (1, 2)]}, does="wrong"),
    Variant({"layer_replication": [(0, 1), (1, 2)]}),
    Variant({"exclude_modules": ["v_proj"]}),
    Variant({"layers_to_transform": [1]}),
    Variant({"block_share": True}, "llama", None, "OFT"),
    Variant({"decompose_factor": 4, "decompose_both": True}, "llama", None, "LOKR"),
    Variant({"save_only_topk_weights": True}, "llama", None, "VBLORA"),
    Variant({"layer_replication": [(0, 2), (1, 2)]}, "llama", None, "ADALORA", "wrong"),
    Variant({"sample_at_inference": True}, "llama", None, "PVERA", "wrong"),
    Variant({"r": 4, "hybrid_r": 2}, "gpt2", None, "GRALORA"),
    Variant({"decomposition_method": "qr", "para": True}, "gpt2", None, "DEFT"),
    Variant({"block_size_pattern": {"q_proj": 4}}, "llama", None, "C3A"),
    Variant({"rank_pattern": {"q_proj": 4}, "lambda_pattern": {"v_proj": 3}}, "llama", None, "DELORA"),
    Variant({"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 3}}, "llama", None, "LOHA"),
    Variant({"boft_n_butterfly_factor": 2}, "llama", None, "BOFT"),
    Variant({"r": 3, "apply_GS": True}, "llama", None, "HRA"),
    Variant({"r": 2, "oft_block_size": 0, "use_cayley_neumann": False}, "llama", None, "OFT"),
    Variant({"rank_pattern": {"q_proj": 3}}, "llama", None, "OSF"),
    Variant({"depth": 2}, "llama", None, "PEANUT"),
    Variant({"psoft_svd": "lowrank", "psoft_mag_a": False, "psoft_orth": False}, "llama", None, "PSOFT"),
    Variant({"r": 2, "lora_alpha": 4, "sparsity": 0.5}, "llama", None, "SUPERTUNING"),
    Variant({"proportional_parameters": True, "wavelet_family": "sym3", "use_idwt": False}, "llama", None, "WAVEFT"),
    Variant({"feedforward_modules": ["c_attn"], "fan_in_fan_out": True}, "gpt2", None, "IA3"),
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_settings(variant: Variant, bases: Bases, tmp_path: Path) -> None:
    written = write(tmp_path, variant.peft_type, variant.family, tied=variant.tied, **variant.arguments)
    assert agree(written, bases).verdict == VERDICTS[variant.does]


TARGETED = [one for one in peft_types() if one not in UNTARGETED]


@pytest.mark.parametrize("peft_type", [one for one in TARGETED if one not in ("LILY", "LN_TUNING", "POLY")])
@pytest.mark.parametrize("tied", [True, False])
def test_the_output_layer(tied: bool, peft_type: str, bases: Bases, tmp_path: Path) -> None:
    """Merged into a tied one, the update changes the embedding as well."""
    arguments: dict[str, Any] = {"target_modules": ["lm_head"]}
    if peft_type == "IA3":
        arguments["feedforward_modules"] = []
    report = agree(write(tmp_path, peft_type, tied=tied, **arguments), bases)
    assert report.verdict == "not-mergeable" if peft_type == "BEFT" else VERDICTS["wrong" if tied else "right"]


@pytest.mark.parametrize("peft_type", [one for one in TARGETED if one not in ("LILY", "POLY")])
@pytest.mark.parametrize("module", ["lm_head", "self_attn", "attn", "norm", "act_fn", "no_such_module"])
def test_saved_modules(module: str, peft_type: str, bases: Bases, tmp_path: Path) -> None:
    """A module of several layers has no weight of its own, and most methods' merge fails at putting it back.

    PEFT takes all modules whose names end so, `delora_w_norm` as well.
    """
    if (peft_type, module) == ("LN_TUNING", "norm"):
        pytest.skip("PEFT attaches to none then")
    targets: dict[str, Any] = {"target_modules": ["up_proj", "down_proj"]} if peft_type != "LN_TUNING" else {}
    if peft_type == "IA3":
        targets["feedforward_modules"] = ["down_proj"]
    written = write(tmp_path, peft_type, modules_to_save=[module], **targets)
    if (peft_type, module) == ("DELORA", "norm"):
        with pytest.raises(KeyError, match="delora_w_norm"):
            written.loaded(tmp_path)
        assert adaptertool.check_merge(tmp_path, bases("llama")).verdict == "not-mergeable"
    else:
        agree(written, bases)


def test_a_saved_module_that_the_file_holds_nothing_of(bases: Bases, tmp_path: Path) -> None:
    """An activation has no parameters; whether the model has one of that name only the model itself can tell."""
    write(tmp_path, "LOHA", modules_to_save=["act_fn"])
    report = adaptertool.check_merge(tmp_path, bases("llama"), ask_model=False)
    assert (report.verdict, report.layers[-1].module) == ("unknown", "act_fn")


@pytest.mark.parametrize("peft_type", TARGETED)
def test_another_base(peft_type: str, bases: Bases, tmp_path: Path) -> None:
    """What does not fit a wider base PEFT refuses to load; what fits it merges."""
    written = write(tmp_path / "adapter", peft_type)
    wide = base("llama", wide=True)
    wide.save_pretrained(tmp_path / "base")
    try:
        PeftModel.from_pretrained(wide, written.folder).merge_and_unload(safe_merge=True)
        fails = False
    except (KeyError, NotImplementedError, RuntimeError, ValueError):
        fails = True
    report = adaptertool.check_merge(written.folder, tmp_path / "base")
    assert report.verdict == ("not-mergeable" if fails else "mergeable"), report.findings


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("peft_type", [one for one in TARGETED if one not in ("LILY", "POLY")])
def test_what_is_not_finite(peft_type: str, value: float, bases: Bases, tmp_path: Path) -> None:
    """safe_merge=True raises wherever it looks. LN tuning's does not look, and the merged model is broken without a word."""
    written = write(tmp_path, peft_type, "opt" if peft_type == "BEFT" else "llama")
    path = tmp_path / "adapter_model.safetensors"
    state = load_file(path)
    trained = [name for name in state if state[name].is_floating_point() and not name.endswith("zeros")]
    name = max(trained, key=lambda one: ("layers.1" in one, one))
    state[name].view(-1)[0] = value
    save_file(state, path, metadata={"format": "pt"})
    report = adaptertool.check_merge(tmp_path, bases(written.family))
    assert report.verdict == "not-mergeable"
    assert {one.code for one in report.findings if one.severity == "error"} - {"ADP201"} == {"ADP204"}
    model = written.loaded(tmp_path)
    if peft_type == "LN_TUNING":
        assert "never looks" in report.findings[0].message
        assert not torch.isfinite(logits(model.merge_and_unload(safe_merge=True))).all()
    else:
        with pytest.raises(ValueError, match="NaNs detected"):
            model.merge_and_unload(safe_merge=True)


def test_arrow(bases: Bases, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        experts = [str(write(tmp_path / name, "LORA", target_modules=["q_proj"]).folder) for name in ("one", "two")]
        model = create_arrow_model(base("llama"), experts, ArrowConfig(top_k=1))
        model.save_pretrained(str(tmp_path), selected_adapters=["arrow_router"])
    report = adaptertool.check_merge(tmp_path / "arrow_router", bases("llama"))
    assert [one.code for one in report.findings] == ["ADP206"]
    with pytest.raises(RuntimeError, match="Cannot merge an active Arrow router"):
        model.merge_and_unload(safe_merge=True)


@pytest.mark.parametrize("names", [("0", "1"), ("one", "two")])
def test_xlora(names: tuple[str, ...], bases: Bases, tmp_path: Path) -> None:
    """The experts are merged without their weights; not at all where they have names that are no numbers."""
    model = write_xlora(tmp_path, names)
    report = adaptertool.check_merge(tmp_path, bases("llama"))
    assert report.verdict == "lossy"
    assert [one.code for one in report.findings] == ["ADP209"]
    if names == ("0", "1"):
        before = logits(model)
        assert float((logits(model.merge_and_unload(safe_merge=True)) - before).abs().max()) > 1e-3
    else:
        assert torch.equal(logits(model.merge_and_unload(safe_merge=True)), logits(base("llama")))
