"""VeRA and PVeRA: the shared pair is drawn again, in float32, with the base's dtype and the processor in the recipe."""

from __future__ import annotations

import math
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import adaptertool
from adaptertool.projection.drawn import stored_bits
from adaptertool.projection.generation import Generation
from adaptertool.projection.kaiming import KaimingPair
from tests.checkpoints import change_config, read_config
from tests.methods.rewriting import (
    WEIGHTS,
    assert_refused,
    assert_slims_and_restores,
    changed,
    tensors,
)
from tests.methods.written import FAMILIES, base, configured, logits, shake, write

if TYPE_CHECKING:
    from collections.abc import Callable

FIXTURES = Path(__file__).parents[2] / "fixtures"
TYPES = ("VERA", "PVERA")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def pair(peft_type: str) -> set[str]:
    return {f"base_model.{peft_type.lower()}_{one}" for one in "AB"}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("peft_type", TYPES)
def test_the_pair_goes_and_comes_back(peft_type: str, family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    written = write(tmp_path / "adapter", peft_type, family, dtype=dtype, r=4, projection_prng_key=11)
    result = assert_slims_and_restores(written, pair(peft_type), tmp_path)
    assert read_config(tmp_path / "slim")["save_projection"] is False
    assert result.projections is not None
    recipe = result.projections.recipe
    assert recipe is not None
    assert (recipe.key, recipe.basis, recipe.sampler) == (11, "kaiming-uniform", "any")
    assert recipe.generated_dtype == "float32"
    condition = next(one for one in result.projections.loads_with if one.startswith("The base model"))
    assert str(dtype).removeprefix("torch.") in condition


@pytest.mark.parametrize("key", [0, 1, -5, 2**63, 2**64 - 1])
def test_any_seed(key: int, tmp_path: Path) -> None:
    written = write(tmp_path / "adapter", "VERA", projection_prng_key=key)
    assert_slims_and_restores(written, pair("VERA"), tmp_path)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(3, 64), (256, 100), (7, 2048)])
def test_the_sampler_without_torch_draws_what_torch_draws(rows: int, columns: int, fused: bool) -> None:
    """torch itself shows one of the two; the other is held against arithmetic that does not fuse."""
    basis = KaimingPair(5, ("A", "B"), rows=rows, in_features=columns, out_features=33, columns=rows)
    drawn = dict(basis.draw(Generation("any", fused, "float32")))
    with_torch = dict(basis.draw_with_torch("float32"))
    bits = [stored_bits(drawn[kind], ("float32",)) for kind in ("A", "B")]
    real = [stored_bits(with_torch[kind], ("float32",)) for kind in ("A", "B")]
    alike = all(np.array_equal(one, other) for one, other in zip(bits, real, strict=True))
    fuses = torch.backends.cpu.get_cpu_capability() != "DEFAULT"
    if fused == fuses:
        assert alike
    bound = math.sqrt(6 / columns)
    assert float(np.abs(bits[0].view(np.float32)).max()) <= bound


@pytest.mark.parametrize("peft_type", TYPES)
def test_a_changed_bit_is_noticed(peft_type: str, tmp_path: Path) -> None:
    write(tmp_path / "adapter", peft_type)
    name = f"base_model.{peft_type.lower()}_B"

    def nudge(state: dict[str, torch.Tensor]) -> None:
        state[name].view(torch.int32)[3, 1] ^= 1

    folder = changed(tmp_path / "adapter", tmp_path / "nudged", nudge)
    assert_refused(folder, name, "[3, 1]")


def other_seed(state: dict[str, torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(1)
    for name in sorted(pair("VERA")):
        bound = math.sqrt(6 / state[name].shape[1])
        state[name] = torch.empty(state[name].shape).uniform_(-bound, bound, generator=generator)


def own_values(state: dict[str, torch.Tensor]) -> None:
    state["base_model.vera_A"] = torch.randn(state["base_model.vera_A"].shape)


def half_missing(state: dict[str, torch.Tensor]) -> None:
    del state["base_model.vera_B"]


def wider(state: dict[str, torch.Tensor]) -> None:
    """What a second adapter stores that borrowed the pair of a first one with wider layers."""
    generator = torch.Generator().manual_seed(0)
    for name, shape in (("base_model.vera_A", (2, 24)), ("base_model.vera_B", (40, 2))):
        bound = math.sqrt(6 / shape[1])
        state[name] = torch.empty(shape).uniform_(-bound, bound, generator=generator)


def whole_numbers(state: dict[str, torch.Tensor]) -> None:
    state["base_model.vera_A"] = state["base_model.vera_A"].to(torch.int32)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (other_seed, "no known recipe"),
        (own_values, "no known recipe"),
        (half_missing, "stands alone"),
        (wider, "outputs"),
        (whole_numbers, "dtype"),
    ],
)
def test_other_projections_are_refused(
    change: Callable[[dict[str, torch.Tensor]], None], word: str, tmp_path: Path
) -> None:
    write(tmp_path / "adapter", "VERA")
    assert_refused(changed(tmp_path / "adapter", tmp_path / "other", change), word)


def test_another_rank_in_the_config_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "VERA")
    change_config(tmp_path, r=3)
    assert_refused(tmp_path, "r is 3")


def test_a_second_adapter_of_other_layers_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base("llama"), configured("VERA", "llama", target_modules=["down_proj", "q_proj"]))
        model.add_adapter("second", configured("VERA", "llama", target_modules=["v_proj"]))
        model.set_adapter("second")
        shake(model)
        model.save_pretrained(str(tmp_path), selected_adapters=["second"])
    folder = tmp_path / "second"
    result = adaptertool.slim(folder, dry_run=True)
    if result.action == "stripped":
        # PEFT drew the second adapter's own pair: it then is what its own config draws.
        assert tensors(folder)["base_model.vera_B"].shape[0] == 8
    else:
        assert result.reason


def test_without_the_flag_peft_refuses_what_slim_left(tmp_path: Path) -> None:
    """Why the flag has to go with the pair; a file that lacks only the flag is reported."""
    written = write(tmp_path / "adapter", "VERA")
    adaptertool.slim(written.folder, output=tmp_path / "slim")
    change_config(tmp_path / "slim", save_projection=True)
    with pytest.raises(ValueError, match="were not present"):
        written.loaded(tmp_path / "slim")
    (finding,) = adaptertool.inspect(tmp_path / "slim").findings
    assert finding.code == "ADP106"
    assert "refuses to load" in finding.message


def test_stored_projections_that_peft_ignores_are_reported(tmp_path: Path) -> None:
    write(tmp_path, "VERA")
    change_config(tmp_path, save_projection=False, projection_prng_key=4)
    assert [one.code for one in adaptertool.inspect(tmp_path).findings] == ["ADP104", "ADP106"]
    assert adaptertool.restore(tmp_path, in_place=True).action == "restored"
    assert read_config(tmp_path)["save_projection"] is True


def test_a_file_that_torch_2_8_and_peft_0_19_wrote(tmp_path: Path) -> None:
    """float32 draws did not change: the old file verifies under this torch, and loads to the logits of then."""
    source = FIXTURES / "vera-torch2.8-peft0.19.1"
    shutil.copytree(source, tmp_path / "adapter")
    result = adaptertool.slim(tmp_path / "adapter", output=tmp_path / "slim")
    assert result.action == "stripped"
    expected = load_file(source / "expected.safetensors")
    loaded = {}
    for folder in (source, tmp_path / "slim"):
        bare = AutoModelForCausalLM.from_pretrained(FIXTURES / "base-b", dtype=torch.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = PeftModel.from_pretrained(bare, str(folder)).eval()
        with torch.no_grad():
            loaded[folder.name] = model(input_ids=expected["input_ids"]).logits
    assert torch.equal(loaded["slim"], loaded[source.name])
    assert torch.allclose(loaded["slim"], expected["logits"], atol=3e-6)
    adaptertool.restore(tmp_path / "slim", output=tmp_path / "restored")
    assert (tmp_path / "restored" / "adapter_model.safetensors").read_bytes() == (
        source / "adapter_model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("version", ["2.0", "2.11", "2.13.0"])
def test_every_torch_draws_the_same(version: str, tmp_path: Path) -> None:
    write(tmp_path, "VERA")
    assert adaptertool.slim(tmp_path, for_torch=version, dry_run=True).action == "stripped"


def test_a_processor_that_does_not_fuse_is_told_apart(tmp_path: Path) -> None:
    """Some elements differ in their last bit; the recipe says which processor drew them."""
    written = write(tmp_path / "adapter", "VERA", r=8)
    basis = KaimingPair(0, ("A", "B"), rows=8, in_features=24, out_features=16, columns=8)

    def unfused(state: dict[str, torch.Tensor]) -> None:
        for kind, drawn in basis.draw(Generation("any", False, "float32")):
            name = f"base_model.vera_{kind}"
            bits = stored_bits(drawn, ("float32",)).view(np.float32)
            state[name] = torch.from_numpy(bits.copy()).reshape(state[name].shape)

    folder = changed(written.folder, tmp_path / "unfused", unfused)
    # A's bound is 1/2 here, so that its products are exact and nothing fuses; B's is not.
    assert torch.equal(tensors(folder)["base_model.vera_A"], tensors(written.folder)["base_model.vera_A"])
    assert not torch.equal(tensors(folder)["base_model.vera_B"], tensors(written.folder)["base_model.vera_B"])
    fuses = torch.backends.cpu.get_cpu_capability() != "DEFAULT"
    report = adaptertool.inspect(folder).projections
    assert report is not None
    assert report.recipe is not None
    assert report.recipe.fused_multiply_add is False
    assert report.verdict == ("regenerable-elsewhere" if fuses else "regenerable")


@pytest.mark.parametrize("peft_type", [*TYPES, "RANDLORA"])
def test_a_base_that_the_config_names_shows_a_borrowed_pair(peft_type: str, tmp_path: Path) -> None:
    """PEFT itself refuses to load such a file; stripped, it would draw a pair that the adapter was not trained with."""
    base("llama").save_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bare = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        model = get_peft_model(bare, configured(peft_type, "llama", target_modules=["down_proj"]))
        model.add_adapter("second", configured(peft_type, "llama", target_modules=["o_proj"]))
        model.set_adapter("second")
        shake(model)
        model.save_pretrained(str(tmp_path), selected_adapters=["second"])
        with pytest.raises(RuntimeError, match="size mismatch"):
            PeftModel.from_pretrained(base("llama"), str(tmp_path / "second"))
    result = adaptertool.slim(tmp_path / "second", dry_run=True)
    assert result.action == "refused"
    assert "refuses to load it alone: it is shared with another adapter" in str(result.reason)
    assert result.hint is not None
    assert "loads as now, after the adapter" in result.hint if peft_type == "RANDLORA" else "Keep" in result.hint
    report = adaptertool.inspect(tmp_path / "second")
    assert report.projections is not None
    assert report.projections.verdict == "not-regenerable"
    assert "another adapter" in str(report.projections.reason)
    assert "ADP101" not in [one.code for one in report.findings]
    change_config(tmp_path / "second", save_projection=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PeftModel.from_pretrained(base("llama"), str(tmp_path / "second"))
    assert "refuses" not in str(adaptertool.slim(tmp_path / "second", dry_run=True).reason)


@pytest.mark.parametrize("peft_type", [*TYPES, "RANDLORA"])
def test_a_pair_whose_shapes_nothing_proves_says_what_base_it_takes(peft_type: str, tmp_path: Path) -> None:
    written = write(tmp_path / "adapter", peft_type, target_modules=["down_proj", "v_proj"])
    base("llama").save_pretrained(tmp_path / "base")
    folder = written.folder
    if peft_type == "RANDLORA":
        folder = tmp_path / "one-copy"
        adaptertool.slim(written.folder, output=folder, keep_one_copy=True)
        # Copies under the layers that it trains, and no others, leave a corner open, which no command is recommended for.
        assert adaptertool.slim(written.folder, dry_run=True).hint is None
        assert conditions_on_the_base(adaptertool.slim(written.folder, dry_run=True))
    result = adaptertool.slim(folder, dry_run=True)
    (condition,) = conditions_on_the_base(result)
    assert "--base BASE -o DIR" in str(result.hint)
    # down_proj has 16 outputs and 24 inputs.
    assert {"16", "24"} <= set(condition.split())
    assert not conditions_on_the_base(adaptertool.slim(folder, dry_run=True, base=str(tmp_path / "base")))


def test_copies_of_a_square_pair_show_that_it_is_the_adapters_own(tmp_path: Path) -> None:
    """PEFT gives no layer that is wider than the pair of the first adapter, so that none would have drawn a larger one."""
    folder = write(tmp_path / "adapter", "RANDLORA", target_modules=["q_proj", "v_proj"]).folder
    assert not conditions_on_the_base(adaptertool.slim(folder, dry_run=True))


@pytest.mark.parametrize("peft_type", [*TYPES, "RANDLORA"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("targets", [["c_attn", "lm_head"], ["c_fc", "mlp.c_proj"], ["lm_head"]], ids=str)
def test_each_layer_of_gpt2_has_its_own_way_round(
    targets: list[str], tied: bool, peft_type: str, tmp_path: Path
) -> None:
    """fan_in_fan_out in the config is one value for layers of both kinds; a head that is tied is not in the base's file."""
    folder = write(tmp_path / "adapter", peft_type, "gpt2", tied=tied, target_modules=targets).folder
    base("gpt2", tied=tied).save_pretrained(tmp_path / "base")
    assert not conditions_on_the_base(adaptertool.slim(folder, dry_run=True, base=str(tmp_path / "base")))


def conditions_on_the_base(result: adaptertool.Rewrite) -> list[str]:
    assert result.action == "stripped"
    assert result.projections is not None
    return [one for one in result.projections.loads_with if "--base" in one]


@pytest.mark.parametrize("peft_type", ["RANDLORA", "VERA", "PVERA"])
def test_stripped_it_is_the_first_of_its_method_on_a_model(peft_type: str, tmp_path: Path) -> None:
    """PEFT gives a further adapter the projections of the first one, and the report says so."""
    first = write(tmp_path / "first", peft_type, target_modules=["down_proj", "q_proj"])
    second = write(tmp_path / "second", peft_type, target_modules=["q_proj"])
    slimmed = []
    for one in (first, second):
        slimmed.append(one.folder.with_name(f"{one.folder.name}-slim"))
        result = adaptertool.slim(one.folder, output=slimmed[-1])
        assert result.projections is not None
        assert any(sentence.startswith("The first or only adapter") for sentence in result.projections.loads_with)
    model = PeftModel.from_pretrained(base("llama"), slimmed[0])
    model.load_adapter(slimmed[1], "further")
    model.set_adapter("further")
    assert not torch.equal(logits(model), logits(PeftModel.from_pretrained(base("llama"), slimmed[1])))


@pytest.mark.parametrize("peft_type", [*TYPES, "RANDLORA"])
def test_a_base_that_the_trained_tensors_contradict_restores_nothing(peft_type: str, tmp_path: Path) -> None:
    written = write(tmp_path / "adapter", peft_type)
    strip(written.folder)
    for wide in (False, True):
        base("llama", wide=wide).save_pretrained(tmp_path / "base")
        result = adaptertool.restore(
            written.folder, dry_run=True, base=str(tmp_path / "base"), for_torch=torch.__version__, dtype="float32"
        )
        assert result.action == ("refused" if wide else "restored"), result.reason
    assert "another shape" in str(result.reason)


def strip(folder: Path) -> None:
    """As PEFT saves it with save_projection=False."""
    state = tensors(folder)
    rest = {name: one for name, one in state.items() if not name.endswith(("_A", "_B"))}
    save_file(rest, folder / WEIGHTS, metadata={"format": "pt"})
    change_config(folder, save_projection=False)
