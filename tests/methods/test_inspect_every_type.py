"""`inspect` on every PEFT type: roles and parameter counts as the model that was saved has them."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import KasaConfig, MontecloraConfig, VeloraConfig
from safetensors.torch import load_file, save_file

import adaptertool
from adaptertool.checkpoint.adapter import open_adapter
from adaptertool.checkpoint.target import open_target
from adaptertool.methods import PEFT_TYPES
from adaptertool.operations.inspect import roles_of
from tests.methods.written import (
    CANNOT_ATTACH,
    Written,
    base,
    cases,
    configured,
    peft_types,
    shake,
    trainable,
    write,
    write_xlora,
)

if TYPE_CHECKING:
    from pathlib import Path

NOT_TRAINED = {
    "ADAMSS": {"adamss_newB": "other"},
    "DELORA": {"delora_w_norm": "other"},
    "FROD": {"frod_V": "other", "frod_s_indices": "projection", "frod_s_size": "projection"},
    "GLORA": {"zeros": "projection"},
    "PVERA": {"pvera_A": "projection", "pvera_B": "projection"},
    "RANDLORA": {"randlora_A": "projection", "randlora_B": "projection"},
    "SHIRA": {"shira_indices": "projection"},
    "SUPERTUNING": {"supertuning_indices": "other"},
    "TINYLORA": {"tinylora_A": "other", "tinylora_B": "other", "tinylora_P": "projection"},
    "UNILORA": {
        "unilora_indices_A": "projection",
        "unilora_indices_B": "projection",
        "unilora_scales_A": "projection",
        "unilora_scales_B": "projection",
    },
    "VERA": {"vera_A": "projection", "vera_B": "projection"},
}
"""Tensors that PEFT does not train, by the last part of their name that is telling, and their role."""


BEYOND_THE_TARGETS = ("ADAPTION_PROMPT", "TRAINABLE_TOKENS")
"""Types that train layers which PEFT does not list as targeted: whole attentions, and heads that are tied."""


def roles(folder: Path) -> dict[str, str]:
    return dict(roles_of(open_adapter(open_target(folder))))


def test_every_type_of_the_installed_peft_is_known() -> None:
    assert set(peft_types()) == PEFT_TYPES


@pytest.mark.parametrize(("peft_type", "family"), cases())
def test_roles_and_parameters(peft_type: str, family: str, tmp_path: Path) -> None:
    written = write(tmp_path, peft_type, family)
    result = adaptertool.inspect(tmp_path, verify="none")
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert result.adapter.peft_type == peft_type
    assert sum(one.tensors for one in result.roles) == len(stored)

    # P-tuning trains an encoder and saves what it gives.
    expected = (
        sum(tensor.numel() for tensor in stored.values())
        if peft_type == "P_TUNING"
        else sum(parameter.numel() for parameter in trainable(written.model).values())
    )
    assert result.adapter.parameters == expected
    if peft_type not in BEYOND_THE_TARGETS:
        targeted = getattr(written.model.base_model, "targeted_module_names", ())
        assert result.adapter.targets == Counter(name.rpartition(".")[2] for name in targeted)

    for name, role in roles(tmp_path).items():
        due = [role for part, role in NOT_TRAINED.get(peft_type, {}).items() if part in name.split(".")]
        if due:
            assert role in (due[0], "projection-copy"), name
        elif role == "projection-copy":
            assert peft_type in ("LILY", "TRAINABLE_TOKENS"), name
        else:
            assert role == "trainable", name


@pytest.mark.parametrize(
    ("peft_type", "family"), [(one, family) for one in CANNOT_ATTACH for family in CANNOT_ATTACH[one]]
)
def test_types_that_are_left_out_cannot_attach(peft_type: str, family: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if peft_type == "OSF":
            # It attaches to nothing, without an error.
            assert not trainable(get_peft_model(base(family), configured(peft_type, family)))
            return
        with pytest.raises((ImportError, ValueError, TypeError, NotImplementedError)):
            get_peft_model(base(family), configured(peft_type, family))


def test_xlora(tmp_path: Path) -> None:
    model = write_xlora(tmp_path, ("one", "two"))
    result = adaptertool.inspect(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    kept = [tensor.numel() for name, tensor in trainable(model).items() if name in stored]
    assert len(kept) == len(stored) == 4
    assert result.adapter.parameters == sum(kept)
    assert {one.role for one in result.roles} == {"trainable"}


@pytest.mark.parametrize(("names", "depth"), [(("one", "two"), 2), (("one", "two"), 4), (("0", "1", "2", "3"), 3)])
def test_layers_that_xloras_file_lacks_are_named(names: tuple[str, ...], depth: int, tmp_path: Path) -> None:
    """What PEFT leaves out of the file is not what was trained after loading; with all of it there is nothing to report."""
    model = write_xlora(tmp_path, names, depth)
    classifier = {name: one.clone() for name, one in model.state_dict().items() if "xlora_classifier" in name}

    def differing() -> set[str]:
        bare = base("llama")
        bare.config.use_cache = False
        loaded = PeftModel.from_pretrained(bare, str(tmp_path)).state_dict()
        return {name for name, one in classifier.items() if not torch.equal(loaded[name], one)}

    (finding,) = adaptertool.inspect(tmp_path).findings
    numbers = sorted({name.split(".layers.")[1].split(".")[0] for name in differing()}, key=int)
    assert finding.code == "ADP305"
    assert f" {' and '.join(numbers)} of the classifier" in finding.message
    save_file(classifier, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    assert not differing()
    assert adaptertool.inspect(tmp_path).findings == ()


@pytest.mark.parametrize(
    "arguments",
    [
        {"bias": "all"},
        {"bias": "lora_only"},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["mlp"]},
        {"trainable_token_indices": [1, 2]},
        {"use_dora": True},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"modules_to_save": ["embed_tokens"], "bias": "all"},
    ],
    ids=str,
)
def test_what_is_saved_beside_a_lora(arguments: dict[str, Any], tmp_path: Path) -> None:
    written = write(tmp_path, "LORA", "opt", **{"modules_to_save": None, **_for_opt(arguments)})
    result = adaptertool.inspect(tmp_path)
    assert result.adapter.parameters == sum(parameter.numel() for parameter in trainable(written.model).values())
    found = set(roles(tmp_path).values())
    assert found <= {"trainable", "bias", "saved-module", "other"}
    assert ("bias" in found) == ("bias" in arguments)
    assert ("saved-module" in found) == ("modules_to_save" in arguments)
    assert ("other" in found) == ("target_modules" in arguments)


def _for_opt(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: ["fc2"] if value == ["mlp"] else value for key, value in arguments.items()}


def test_a_targeted_embedding_is_saved_with_a_frozen_copy_of_the_base(tmp_path: Path) -> None:
    write(tmp_path, "LORA", target_modules=["embed_tokens", "q_proj"])
    (finding,) = adaptertool.inspect(tmp_path).findings
    assert finding.code == "ADP110"
    assert finding.tensors == ("base_model.model.model.embed_tokens.base_layer.weight",)
    assert finding.bytes == 64 * 16 * 4
    assert "only the base can tell" in finding.message


def test_a_resized_embedding_is_saved_and_not_trained(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base("llama"), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
        model.save_pretrained(str(tmp_path), save_embedding_layers=True)
    result = adaptertool.inspect(tmp_path)
    assert result.adapter.parameters == sum(parameter.numel() for parameter in trainable(model).values())
    assert {one.role: one.tensors for one in result.roles} == {"trainable": 4, "saved-module": 2}


@pytest.mark.parametrize("peft_type", ["ADAMSS", "DELORA", "FROD", "SUPERTUNING", "TINYLORA"])
def test_what_needs_the_base_is_noted_with_its_size(peft_type: str, tmp_path: Path) -> None:
    write(tmp_path, peft_type)
    result = adaptertool.inspect(tmp_path, verify="none")
    other = {one.role: one.bytes for one in result.roles}["other"]
    assert sum(note.bytes for note in result.notes) == other
    assert all("base model" in note.message for note in result.notes)


@pytest.mark.parametrize("rank", [8, None, "eight", {"layers": 2}])
def test_a_future_type_is_listed_and_nothing_is_claimed(rank: object, tmp_path: Path) -> None:
    written: Written = write(tmp_path, "VERA", modules_to_save=["lm_head"])
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "FUTURETUNER", "r": rank}))
    result = adaptertool.inspect(tmp_path)
    assert result.adapter.peft_type == "FUTURETUNER"
    assert result.adapter.parameters is None
    assert result.adapter.rank == (8 if rank == 8 else None)
    assert result.projections is None
    assert {one.role for one in result.roles} == {"saved-module", "other"}
    assert sum(one.tensors for one in result.roles) == len(load_file(written.folder / "adapter_model.safetensors"))
    assert "FUTURETUNER" in result.notes[0].message


@pytest.mark.parametrize(
    ("peft_type", "rank"),
    [("LORA", 2), ("ADALORA", 3), ("VERA", 2), ("OFT", None), ("BEFT", None), ("MULTITASK_PROMPT_TUNING", 2)],
)
def test_rank(peft_type: str, rank: int | None, tmp_path: Path) -> None:
    write(tmp_path, peft_type)
    assert adaptertool.inspect(tmp_path, verify="none").adapter.rank == rank


def test_shaken_models_differ_from_their_base(tmp_path: Path) -> None:
    """The tests compare logits; adapters that do nothing would prove nothing."""
    written = write(tmp_path, "VERA")
    plain = base("llama")
    shake(plain)
    assert not torch.equal(written.logits, written.loaded(tmp_path).get_base_model()(torch.ones(2, 6).long()).logits)


@pytest.mark.parametrize(
    ("peft_type", "arguments", "other"),
    [
        ("LORA", {"init_lora_weights": "mica"}, 6),
        ("LORA", {"monteclora_config": MontecloraConfig()}, 12),
        ("LORA", {"velora_config": VeloraConfig()}, 6),
        ("LORA", {"kasa_config": KasaConfig()}, 0),
        ("VBLORA", {"save_only_topk_weights": True}, 0),
    ],
    ids=str,
)
def test_what_a_setting_freezes_was_not_trained(
    peft_type: str, arguments: dict[str, Any], other: int, tmp_path: Path
) -> None:
    written = write(tmp_path, peft_type, **arguments)
    result = adaptertool.inspect(tmp_path, verify="none")
    assert result.adapter.parameters == sum(parameter.numel() for parameter in trainable(written.model).values())
    assert {one.role: one.tensors for one in result.roles}.get("other", 0) == other
