"""Files that lack tensors, and configs of another shape than the file: nothing is called mergeable that was not trained."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from peft import PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file, save_file

import adaptertool
from tests.merge.models import SMALL
from tests.methods.written import ARGUMENTS, UNTARGETED, Written, logits, peft_types, shake, write

if TYPE_CHECKING:
    from pathlib import Path

    from tests.merge.conftest import Bases

TYPES = [one for one in peft_types() if one not in UNTARGETED and one not in ("LILY", "POLY")]
ERRORS = (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)


def merged(written: Written) -> dict[str, torch.Tensor] | None:
    """The merged model's tensors; None where PEFT raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = written.loaded(written.folder).merge_and_unload(safe_merge=True)
        except ERRORS:
            return None
    return dict(model.state_dict())


def kinds(state: dict[str, torch.Tensor]) -> dict[str, list[str]]:
    """The names of the shared tensors and those of one layer, by what they are."""
    found: dict[str, list[str]] = {}
    for name in state:
        if ".layers." not in name or ".layers.0.self_attn.q_proj." in name:
            found.setdefault(name.rpartition("q_proj.")[2], []).append(name)
    return found


@pytest.mark.parametrize("peft_type", TYPES)
def test_a_file_of_the_default_rank_lacks_nothing(peft_type: str, bases: Bases, tmp_path: Path) -> None:
    family = "opt" if peft_type == "BEFT" else "llama"
    rank = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(peft_type)].__dataclass_fields__.get("r")
    chosen: dict[str, Any] = {}
    if rank is not None and "r" not in ARGUMENTS.get(peft_type, {}):
        default: Any = rank.default
        chosen["r"] = default and min(default, 8)
    written = write(tmp_path, peft_type, family, **chosen)
    assert merged(written) is not None
    codes = {finding.code for finding in adaptertool.check_merge(tmp_path, bases(family)).findings}
    assert codes.isdisjoint({"ADP203", "ADP207", "ADP210", "ADP211"})


@pytest.mark.parametrize("peft_type", [one for one in TYPES if one != "BEFT"])
def test_a_small_head_that_the_base_does_not_hold(peft_type: str, tmp_path: Path) -> None:
    """Its sizes are not known, and may be less than the rank: what PEFT makes of it is no misfit."""
    fields: dict[str, Any] = {**SMALL, "num_labels": 2}
    small = transformers.LlamaConfig(**fields)
    torch.manual_seed(0)
    auto: Any = transformers.AutoModelForSequenceClassification
    made = auto.from_config(small)
    made.model.save_pretrained(tmp_path / "base")
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(peft_type)]
    chosen = {**ARGUMENTS.get(peft_type, {}), "target_modules": ["score", "q_proj"]}
    if "r" in kind.__dataclass_fields__ and "r" not in chosen:
        chosen["r"] = 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = get_peft_model(made, kind(**chosen))
        except ERRORS as error:
            pytest.skip(f"PEFT does not attach it: {error}")
        shake(model)
        model.save_pretrained(str(tmp_path / "adapter"))
        model.merge_and_unload(safe_merge=True)
    report = adaptertool.check_merge(tmp_path / "adapter", tmp_path / "base")
    assert {layer.status for layer in report.layers} <= {"ok", "unknown"}


@pytest.mark.parametrize(("written_for", "loaded_for"), [(64, 64), (64, 16), (16, 64), (64, 15), (12, 64), (12, 12)])
def test_deft_of_a_rank_beyond_the_layer(written_for: int, loaded_for: int, bases: Bases, tmp_path: Path) -> None:
    """PEFT makes it as wide as the layer has outputs: 16 here, 8 and 24."""
    written = write(tmp_path, "DEFT", r=written_for)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "r": loaded_for}))
    verdict = adaptertool.check_merge(tmp_path, bases("llama")).verdict
    assert verdict == ("not-mergeable" if merged(written) is None else "mergeable")


def own_names(written: Written) -> dict[str, torch.Tensor]:
    """A file's tensors under the names that they have in the model's own state dict."""
    live = {name.replace(".default", ""): name for name in written.model.state_dict() if ".default" in name}
    state = load_file(written.folder / "adapter_model.safetensors")
    return {live.get(name, live.get(f"{name}.weight", name)): tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("peft_type", "family", "arguments"),
    [
        *((peft_type, "opt" if peft_type == "BEFT" else "llama", {}) for peft_type in TYPES),
        ("LORA", "llama", {"use_dora": True}),
        ("LORA", "gpt2", {"lora_bias": True}),
        ("LORA", "llama", {"target_modules": ["q_proj"], "target_parameters": ["v_proj.weight"]}),
        ("LORA", "llama", {"modules_to_save": ["lm_head"]}),
        ("LORA", "llama", {"trainable_token_indices": [1, 2]}),
    ],
)
def test_names_with_the_adapters_own_in_them(
    peft_type: str, family: str, arguments: dict[str, Any], bases: Bases, tmp_path: Path
) -> None:
    """As in the state dict of a PeftModel: PEFT 0.21 loads them into an adapter that it gives that name."""
    written = write(tmp_path, peft_type, family, **arguments)
    state = own_names(written)
    save_file(state, tmp_path / "adapter_model.safetensors", {"format": "pt"})
    report = adaptertool.check_merge(tmp_path, bases(family))
    try:
        loaded = logits(written.loaded(tmp_path))
    except KeyError:
        assert report.verdict == "not-mergeable"
        return
    shared = any("default" in name.split(".") for name in state if not name.startswith("base_model.model."))
    unsure = shared or peft_type == "TRAINABLE_TOKENS"
    assert torch.equal(loaded, written.logits) or (unsure and report.verdict == "unknown")
    assert report.verdict == ("unknown" if unsure else "mergeable"), report.findings
    assert "ADP210" in {finding.code for finding in report.findings}


def test_names_with_the_adapters_own_in_them_beside_saved_ones(bases: Bases, tmp_path: Path) -> None:
    """What is loaded last stays, and that is decided by the order of the file."""
    written = write(tmp_path, "LORA")
    state = load_file(tmp_path / "adapter_model.safetensors")
    both = {name: tensor + 1 for name, tensor in own_names(written).items()} | state
    save_file(both, tmp_path / "adapter_model.safetensors", {"format": "pt"})
    assert adaptertool.check_merge(tmp_path, bases("llama")).verdict == "unknown"


@pytest.mark.parametrize("name", ["lora_magnitude_vector.default", "lora_magnitude_vector.other.weight"])
def test_magnitudes_under_a_name_that_no_model_has(name: str, bases: Bases, tmp_path: Path) -> None:
    written = write(tmp_path, "LORA", use_dora=True)
    state = load_file(tmp_path / "adapter_model.safetensors")
    state = {key.replace("lora_magnitude_vector", name): tensor for key, tensor in state.items()}
    save_file(state, tmp_path / "adapter_model.safetensors", {"format": "pt"})
    assert not torch.equal(logits(written.loaded(tmp_path)), written.logits)
    assert adaptertool.check_merge(tmp_path, bases("llama")).verdict == "unknown"


@pytest.mark.parametrize("leaf", ["weight", "bias"])
def test_a_tensor_of_a_norm_that_is_missing(leaf: str, bases: Bases, tmp_path: Path) -> None:
    """PEFT keeps the base's own in its place: what was trained is lost."""
    written = write(tmp_path, "LN_TUNING", "opt")
    report = adaptertool.check_merge(tmp_path, bases("opt"))
    assert (report.verdict, report.findings) == ("mergeable", ())
    path = tmp_path / "adapter_model.safetensors"
    state = load_file(path)
    lost = next(name for name in state if name.endswith(f".ln_tuning_layers.{leaf}"))
    save_file({name: tensor for name, tensor in state.items() if name != lost}, path, {"format": "pt"})
    assert not torch.equal(logits(written.loaded(tmp_path)), written.logits)
    report = adaptertool.check_merge(tmp_path, bases("opt"))
    assert (report.verdict, [one.code for one in report.findings]) == ("unknown", ["ADP211"])
    assert report.findings[0].count == 1


@pytest.mark.parametrize("peft_type", TYPES)
def test_a_tensor_that_is_missing(peft_type: str, bases: Bases, tmp_path: Path) -> None:
    family = "opt" if peft_type == "BEFT" else "llama"
    written = write(tmp_path, peft_type, family)
    whole = merged(written)
    assert whole is not None
    path = tmp_path / "adapter_model.safetensors"
    state = load_file(path)
    for names in kinds(state).values():
        save_file({name: tensor for name, tensor in state.items() if name not in names}, path, {"format": "pt"})
        report = adaptertool.check_merge(tmp_path, bases(family))
        now = merged(written)
        if now is None:
            assert report.verdict in ("not-mergeable", "unknown"), names
        elif all(torch.equal(now[name], whole[name]) for name in whole):
            assert report.verdict != "not-mergeable", names
        elif report.verdict == "mergeable":
            assert "ADP211" in {finding.code for finding in report.findings}, names


@pytest.mark.parametrize(
    ("peft_type", "field", "value"),
    [
        ("LORA", "alpha_pattern", None),
        ("LORA", "arrow_config", {}),
        ("LORA", "bias", "bogus"),
        ("LORA", "corda_config", True),
        ("LORA", "lora_dropout", 1.5),
        ("LORA", "modules_to_save", "all"),
        ("LORA", "task_type", "bogus"),
        ("LORA", "use_bdlora", {}),
        ("ADALORA", "use_dora", True),
        ("ADALORA", "modules_to_save", ["v_proj"]),
        ("C3A", "init_weights", None),
        ("FOURIERFT", "random_loc_seed", None),
        ("IA3", "feedforward_modules", []),
        ("OFT", "r", None),
        ("OFT", "block_share", True),
        ("OSF", "effective_rank", 2),
        ("PEANUT", "act_fn", "bogus"),
        ("PSOFT", "psoft_alpha", 0),
        ("UNILORA", "unilora_dropout", None),
        ("WAVEFT", "proportional_parameters", True),
    ],
)
def test_a_config_that_peft_does_not_take(peft_type: str, field: str, value: Any, bases: Bases, tmp_path: Path) -> None:
    """Or under which it makes other tensors than the file's."""
    written = write(tmp_path, peft_type)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    assert merged(written) is None
    assert adaptertool.check_merge(tmp_path, bases("llama")).verdict in ("not-mergeable", "unknown")


@pytest.mark.parametrize("more", [1, 2])
@pytest.mark.parametrize("peft_type", TYPES)
def test_a_config_of_another_size(peft_type: str, more: int, bases: Bases, tmp_path: Path) -> None:
    """Every whole number of the config, one or two more than it was."""
    family = "opt" if peft_type == "BEFT" else "llama"
    written = write(tmp_path, peft_type, family)
    path = tmp_path / "adapter_config.json"
    fields: dict[str, Any] = json.loads(path.read_text())
    for name, value in fields.items():
        if type(value) is not int:
            continue
        path.write_text(json.dumps({**fields, name: value + more}))
        try:
            verdict = adaptertool.check_merge(tmp_path, bases(family)).verdict
        except adaptertool.AdapterToolError:
            continue
        if merged(written) is None:
            assert verdict != "mergeable", name
        else:
            assert verdict != "not-mergeable", name


@pytest.mark.parametrize("number", ["9" * 5000, "999999999"], ids=["5000 digits", "9 digits"])
@pytest.mark.parametrize("stack", ["layers", "others"])
def test_layer_numbers_that_no_model_has(stack: str, number: str, bases: Bases, tmp_path: Path) -> None:
    write(tmp_path, "LORA", "llama")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    there = {name.replace("layers.1.", f"{stack}.{number}."): tensor for name, tensor in tensors.items()}
    assert there.keys() != tensors.keys()
    save_file(there, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    report = adaptertool.check_merge(tmp_path, bases("llama"))
    assert report.verdict != "mergeable"
    assert report.layers
    assert str(report)
