"""Copies of the base model's embeddings in an adapter's file: with the base at hand they go, and come back, byte for byte."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import adaptertool
from adaptertool.errors import CorruptError
from tests.checkpoints import read_config
from tests.methods.rewriting import assert_same_bytes, changed, tensors
from tests.methods.written import EMBEDDINGS, base, configured, logits, shake

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

    from tests.conftest import Run

FAMILIES = ("llama", "opt", "qwen2", "gemma3")
LOADINGS: tuple[dict[str, Any], ...] = ({}, {"low_cpu_mem_usage": True}, {"autocast_adapter_dtype": False})


class Case:
    """An adapter that real PEFT saved together with tensors of its base, which is on disk."""

    def __init__(
        self,
        place: Path,
        family: str = "llama",
        peft_type: str = "LORA",
        *,
        tied: bool | None = None,
        dtype: torch.dtype = torch.float32,
        tokens: int | None = None,
        save: Any = "auto",
        **arguments: Any,
    ) -> None:
        self.base_folder, self.folder = place / "base", place / "adapter"
        self.tokens = tokens
        bare = base(family, dtype, tied=tied)
        bare.save_pretrained(self.base_folder)
        self.model_class = type(bare)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = self.base()
            loaded.name_or_path = str(self.base_folder)
            torch.manual_seed(1)
            model = get_peft_model(loaded, configured(peft_type, family, **arguments))
            shake(model)
            model.save_pretrained(str(self.folder), save_embedding_layers=save)
        self.logits = logits(model.eval())

    def base(self, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
        """As a user loads it, with the vocabulary resized where that belongs to the case."""
        model: PreTrainedModel = self.model_class.from_pretrained(self.base_folder, dtype=dtype)
        if self.tokens is not None:
            torch.manual_seed(torch.seed() % 1000)
            model.resize_token_embeddings(self.tokens)
        return model

    def loads_alike(self, folder: Path, *, any_dtype: bool = True) -> None:
        """The folder loads without an error to what the original loads to, onto a base of any dtype.

        With low_cpu_mem_usage=True PEFT puts the stored tensor in the place of the base's: in a base of another dtype the
        original raises, or computes in two dtypes.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for dtype in ("auto", torch.float32, torch.bfloat16, torch.float16) if any_dtype else ("auto",):
                for arguments in LOADINGS if dtype == "auto" else ({}, {"autocast_adapter_dtype": False}):
                    one, other = (
                        logits(PeftModel.from_pretrained(self.base(dtype), str(place), **arguments).eval())
                        for place in (self.folder, folder)
                    )
                    assert torch.equal(one, other), (dtype, arguments)
            again = PeftModel.from_pretrained(self.base(), str(folder)).eval()
        assert torch.equal(logits(again), self.logits)

    def loads_untied(self, folder: Path) -> None:
        """The folder gives an untied base, whose head no file has, the outputs of the training run."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: Any = self.model_class.from_pretrained(self.base_folder, tie_word_embeddings=False)
            assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
            assert torch.equal(logits(PeftModel.from_pretrained(model, str(folder)).eval()), self.logits)


def assert_goes_and_comes_back(case: Case, names: set[str], work: Path, *, stays: frozenset[str] = frozenset()) -> None:
    (finding,) = [one for one in adaptertool.inspect(case.folder).findings if one.code == "ADP110"]
    assert set(finding.tensors) == names | stays
    assert finding.bytes == sum(tensors(case.folder)[name].nbytes for name in names | stays)
    assert "--base" in str(finding.fix)
    assert adaptertool.slim(case.folder, dry_run=True).action == "nothing-to-do"

    slimmed = work / "slim"
    result = adaptertool.slim(case.folder, output=slimmed, base=str(case.base_folder))
    assert result.action == "stripped"
    assert result.bytes_changed == sum(tensors(case.folder)[name].nbytes for name in names)
    assert result.base_copies is not None
    assert set(result.base_copies.same) == names
    assert set(result.base_copies.others) == stays
    assert set(tensors(case.folder)) - set(tensors(slimmed)) == names
    assert read_config(slimmed) == read_config(case.folder)
    case.loads_alike(slimmed)

    assert {name for one in adaptertool.inspect(slimmed).findings for name in one.tensors} == stays
    assert adaptertool.slim(slimmed, base=str(case.base_folder), dry_run=True).action == "nothing-to-do"
    restored = work / "restored"
    assert adaptertool.restore(slimmed, output=restored).action == "restored"
    assert_same_bytes(restored, case.folder)


def lora_on(family: str) -> dict[str, Any]:
    return {"target_modules": [EMBEDDINGS[family], "q_proj"]}


def embedding(family: str) -> str:
    return f"base_model.model.model.{'decoder.' if family == 'opt' else ''}embed_tokens"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_targeted_embedding(family: str, tied: bool, tmp_path: Path) -> None:
    case = Case(tmp_path, family, tied=tied, **lora_on(family))
    assert_goes_and_comes_back(case, {f"{embedding(family)}.base_layer.weight"}, tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_in_16_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    case = Case(tmp_path, dtype=dtype, **lora_on("llama"))
    assert_goes_and_comes_back(case, {f"{embedding('llama')}.base_layer.weight"}, tmp_path)


@pytest.mark.parametrize("peft_type", ["HIRA", "OFT", "TINYLORA"])
def test_other_methods_on_an_embedding(peft_type: str, tmp_path: Path) -> None:
    case = Case(tmp_path, peft_type=peft_type, target_modules=["embed_tokens"], save="auto")
    name = f"{embedding('llama')}.base_layer.weight"
    assert name in tensors(case.folder)
    slimmed = tmp_path / "slim"
    result = adaptertool.slim(case.folder, output=slimmed, base=str(case.base_folder))
    assert result.action == "stripped"
    assert name not in tensors(slimmed)
    # TinyLoRA's random matrices go too, and they are drawn in the base's dtype.
    case.loads_alike(slimmed, any_dtype=peft_type != "TINYLORA")
    assert adaptertool.restore(slimmed, output=tmp_path / "restored").action == "restored"
    assert_same_bytes(tmp_path / "restored", case.folder)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", [*FAMILIES, "gpt2"])
def test_embeddings_saved_on_request(family: str, tied: bool, tmp_path: Path) -> None:
    """The base's file has no head where it is tied: there the adapter's stays, for those who load the base untied."""
    case = Case(tmp_path, family, tied=tied, save=True)
    inner = "base_model.model.transformer.wte" if family == "gpt2" else embedding(family)
    head = frozenset({"base_model.model.lm_head.weight"})
    goes = {f"{inner}.weight", *(() if tied else head)}
    assert_goes_and_comes_back(case, goes, tmp_path, stays=head if tied else frozenset())
    for folder in (case.folder, tmp_path / "slim"):
        case.loads_untied(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_targeted_head_of_a_tied_base_stays(family: str, tmp_path: Path) -> None:
    case = Case(tmp_path, family, tied=True, target_modules=["lm_head", "q_proj"])
    assert "base_model.model.lm_head.base_layer.weight" in tensors(case.folder)
    assert_stays(case, "a base that is loaded with its embeddings untied takes it from the adapter")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("which", ["head", "embedding"])
def test_two_names_of_one_parameter_stay_where_one_of_them_is_not_the_bases(
    which: str, family: str, tmp_path: Path
) -> None:
    """PEFT loads both into the one, and the later wins."""
    case = Case(tmp_path, family, tied=True, save=True)
    name = "base_model.model.lm_head.weight" if which == "head" else f"{embedding(family)}.weight"

    def halve(state: dict[str, torch.Tensor]) -> None:
        state[name] = state[name] / 2

    case.folder = changed(case.folder, tmp_path / "halved", halve)
    assert_stays(case, f"loads into what {name} loads into, which is not")


def test_what_a_base_of_unknown_code_ties_is_not_known(tmp_path: Path) -> None:
    case = Case(tmp_path, tied=False, save=True)
    config = json.loads((case.base_folder / "config.json").read_text())
    (case.base_folder / "config.json").write_text(json.dumps({**config, "model_type": "of_tomorrow"}))

    def halve(state: dict[str, torch.Tensor]) -> None:
        state["base_model.model.lm_head.weight"] /= 2

    case.folder = changed(case.folder, tmp_path / "halved", halve)
    assert_stays(case, "loads into what base_model.model.lm_head.weight loads into")


@pytest.mark.parametrize("peft_type", ["VERA", "LORA"])
def test_what_stays_is_no_reason_to_fail(peft_type: str, tmp_path: Path, run: Run) -> None:
    """The first run says what it left and why; the second has nothing to do, whatever else the first one found."""
    case = Case(tmp_path, peft_type=peft_type, save=True)

    def halve(state: dict[str, torch.Tensor]) -> None:
        for name in ("base_model.model.lm_head.weight", f"{embedding('llama')}.weight"):
            state[name] = state[name].bfloat16()

    folder = changed(case.folder, tmp_path / "halved", halve)
    outcomes = [
        run("slim", str(folder), "--base", str(case.base_folder), *options)
        for options in (["--in-place"], ["--check"], ["--in-place"])
    ]
    assert [one.code for one in outcomes] == [0, 0, 0]
    for one in outcomes:
        assert "is stored as bfloat16, and the base's lm_head.weight as float32" in one.out


def test_projections_and_embeddings_go_together(tmp_path: Path) -> None:
    case = Case(tmp_path, peft_type="VERA", save=True)
    gone = {
        "base_model.vera_A",
        "base_model.vera_B",
        f"{embedding('llama')}.weight",
        "base_model.model.lm_head.weight",
    }
    slimmed = tmp_path / "slim"
    result = adaptertool.slim(case.folder, output=slimmed, base=str(case.base_folder))
    assert set(tensors(case.folder)) - set(tensors(slimmed)) == gone
    assert result.tensors_changed == 4
    case.loads_alike(slimmed, any_dtype=False)
    assert adaptertool.restore(slimmed, output=tmp_path / "restored").tensors_changed == 4
    assert_same_bytes(tmp_path / "restored", case.folder)


def assert_stays(case: Case, *words: str) -> None:
    before = {path.name: path.read_bytes() for path in case.folder.iterdir()}
    result = adaptertool.slim(case.folder, in_place=True, base=str(case.base_folder))
    assert result.action == "nothing-to-do"
    assert result.reason is not None
    for word in words:
        assert word in result.reason, result.reason
    assert {path.name: path.read_bytes() for path in case.folder.iterdir()} == before


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("tokens", [70, 60])
def test_a_resized_vocabulary_stays(tokens: int, tied: bool, tmp_path: Path) -> None:
    case = Case(tmp_path, tied=tied, tokens=tokens)
    assert f"{embedding('llama')}.weight" in tensors(case.folder)
    assert_stays(case, "the vocabulary was resized")


def test_a_targeted_embedding_of_a_resized_vocabulary_stays(tmp_path: Path) -> None:
    assert_stays(Case(tmp_path, tokens=70, **lora_on("llama")), "the vocabulary was resized")


def test_a_changed_element_stays(tmp_path: Path) -> None:
    case = Case(tmp_path, **lora_on("llama"))
    name = f"{embedding('llama')}.base_layer.weight"

    def nudge(state: dict[str, torch.Tensor]) -> None:
        state[name].view(torch.int32)[5, 3] ^= 1

    case.folder = changed(case.folder, tmp_path / "nudged", nudge)
    assert_stays(case, f"the first byte that differs is {(5 * 16 + 3) * 4} of {64 * 16 * 4}")


def test_a_copy_in_another_dtype_stays(tmp_path: Path) -> None:
    """A bfloat16 copy of a float32 embedding holds other values, and PEFT loads those."""
    case = Case(tmp_path, **lora_on("llama"))

    def halve(state: dict[str, torch.Tensor]) -> None:
        name = f"{embedding('llama')}.base_layer.weight"
        state[name] = state[name].bfloat16()

    case.folder = changed(case.folder, tmp_path / "halved", halve)
    assert_stays(case, "is stored as bfloat16", "as float32")


def test_a_copy_in_eight_bits_stays(tmp_path: Path) -> None:
    """Also where the base has the same bytes: how they are loaded is another matter."""
    case = Case(tmp_path, **lora_on("llama"))

    def quarter(state: dict[str, torch.Tensor]) -> None:
        for name, tensor in [*state.items()]:
            if "embed_tokens" in name and "lora" not in name:
                state[name] = tensor.to(torch.float8_e4m3fn)

    case.folder = changed(case.folder, tmp_path / "quartered", quarter)
    assert_stays(case, "is stored as F8_E4M3", "as float32")
    state = load_file(case.base_folder / "model.safetensors")
    quarter(state)
    save_file(state, case.base_folder / "model.safetensors", metadata={"format": "pt"})
    assert_stays(case, "is stored as F8_E4M3")


@pytest.mark.parametrize(
    "arguments",
    [
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"modules_to_save": ["embed_tokens"], "tied": True, "ensure_weight_tying": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("trained", [True, False])
def test_saved_modules_are_never_touched(
    trained: bool, arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where they are the base's own, bit for bit: PEFT refuses to load an adapter without them."""
    if not trained:
        monkeypatch.setattr("tests.methods.test_base_copies.shake", lambda _: None)
    case = Case(tmp_path, **arguments)
    saved = [name for name in tensors(case.folder) if "lora_" not in name]
    assert saved
    result = adaptertool.slim(case.folder, base=str(case.base_folder), dry_run=True)
    assert result.action == "nothing-to-do"
    assert adaptertool.inspect(case.folder).findings == ()
    state = load_file(case.folder / "adapter_model.safetensors")
    save_file({name: state[name] for name in state if name not in saved}, case.folder / "adapter_model.safetensors")
    with pytest.raises(KeyError):
        PeftModel.from_pretrained(case.base(), str(case.folder))


def test_what_a_saved_module_stands_for_counts_once(tmp_path: Path) -> None:
    """Asked for both, PEFT saves the module, its own view of it, and the base's."""
    case = Case(tmp_path, modules_to_save=["lm_head"], save=True)
    assert len([name for name in tensors(case.folder) if "lm_head" in name]) == 3
    trained = sum(tensor.numel() for name, tensor in tensors(case.folder).items() if "lora_" in name)
    assert adaptertool.inspect(case.folder).adapter.parameters == trained + 64 * 16
    result = adaptertool.slim(case.folder, output=tmp_path / "slim", base=str(case.base_folder))
    assert result.action == "stripped"
    assert set(tensors(case.folder)) - set(tensors(tmp_path / "slim")) == {f"{embedding('llama')}.weight"}
    case.loads_alike(tmp_path / "slim")


def other_base(case: Case, place: Path) -> Path:
    """A base with the same names and shapes, and other values."""
    torch.manual_seed(77)
    model = case.base()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(place)
    return place


def test_another_base_brings_nothing_back(tmp_path: Path) -> None:
    case = Case(tmp_path, **lora_on("llama"))
    slimmed = tmp_path / "slim"
    adaptertool.slim(case.folder, output=slimmed, base=str(case.base_folder))
    result = adaptertool.restore(slimmed, output=tmp_path / "restored", base=str(other_base(case, tmp_path / "other")))
    assert result.action == "refused"
    assert "is not the tensor that" in str(result.reason)
    assert not (tmp_path / "restored").exists()


def broken_record(text: str) -> str:
    return text.replace('"sha256"', '"sha1"')


@pytest.mark.parametrize("change", [broken_record, lambda _: "{", lambda _: '"text"'])
def test_a_record_that_makes_no_sense_is_an_error(change: Callable[[str], str], tmp_path: Path) -> None:
    from safetensors import safe_open

    case = Case(tmp_path, **lora_on("llama"))
    slimmed = tmp_path / "slim"
    adaptertool.slim(case.folder, output=slimmed, base=str(case.base_folder))
    path = slimmed / "adapter_model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    metadata["adaptertool.base"] = change(metadata["adaptertool.base"])
    save_file(load_file(path), path, metadata=metadata)
    with pytest.raises(CorruptError, match="record of the base's tensors"):
        adaptertool.restore(slimmed, output=tmp_path / "restored")


def test_a_sharded_base(tmp_path: Path) -> None:
    case = Case(tmp_path, save=True)
    sharded = tmp_path / "sharded"
    case.base().save_pretrained(sharded, max_shard_size="6KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    result = adaptertool.slim(case.folder, base=str(sharded), dry_run=True)
    assert result.action == "stripped"
    assert result.tensors_changed == 2


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("indices", [[1, 3], {"embed_tokens": [1, 3]}], ids=str)
def test_single_tokens_of_a_tied_base_count_once(indices: object, tied: bool, tmp_path: Path) -> None:
    """PEFT saves the output layer's view of them too."""
    bare = base("llama", tied=tied)
    model = get_peft_model(bare, configured("LORA", "llama", trainable_token_indices=indices))
    model.save_pretrained(str(tmp_path), save_embedding_layers=True)
    deltas = [name for name in tensors(tmp_path) if name.endswith("trainable_tokens_delta")]
    assert len(deltas) == (2 if tied else 1)
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert adaptertool.inspect(tmp_path).adapter.parameters == trained
