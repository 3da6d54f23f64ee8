"""Methods whose layers each have tensors of their own that need not be stored: SHiRA, FRoD, UniLoRA, TinyLoRA, GLoRA."""

from __future__ import annotations

import json
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.unilora.model import UniLoraModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import adaptertool
from adaptertool.methods.base import CannotDrawError
from adaptertool.methods.layered import check_order
from adaptertool.methods.shira import DEFAULT_TORCH_SEED
from adaptertool.projection.balanced import balanced_indices
from adaptertool.projection.sampler import WordStream, permutation_head
from tests.checkpoints import change_config, read_config
from tests.methods.rewriting import (
    WEIGHTS,
    assert_loads_alike,
    assert_refused,
    assert_same_bytes,
    assert_slims_and_restores,
    changed,
    tensors,
)
from tests.methods.written import CANNOT_ATTACH, FAMILIES, base, configured, shake, write

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Run

FIXTURES = Path(__file__).parents[2] / "fixtures"

PARTS = {
    "FROD": ("frod_s_indices", "frod_s_size"),
    "GLORA": ("zeros",),
    "SHIRA": ("shira_indices",),
    "TINYLORA": ("tinylora_P",),
    "UNILORA": ("unilora_indices_A", "unilora_indices_B", "unilora_scales_A", "unilora_scales_B"),
}
"""What has to go, by parts of the names."""

FLAGS = {"FROD": {"save_projection": True}, "TINYLORA": {"save_projection": False}, "UNILORA": {"save_indices": False}}
"""What the config has to say after that."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("SHIRA", {"random_seed": None}),
    ("SHIRA", {"r": 1, "random_seed": 2**63}),
    ("SHIRA", {"r": 4, "target_modules": ["up_proj", "down_proj"]}),
    ("FROD", {"sparse_rate": 0.0}),
    ("FROD", {"sparse_rate": 1.0, "projection_prng_key": 9}),
    ("FROD", {"target_modules": ["q_proj", "k_proj", "up_proj", "down_proj"]}),
    ("UNILORA", {"proj_seed": 0, "theta_d_length": 1000}),
    ("UNILORA", {"theta_d_length": 7, "target_modules": ["up_proj", "k_proj", "q_proj", "down_proj"]}),
    ("TINYLORA", {"projection_seed": -3, "r": 3, "u": 7}),
    ("TINYLORA", {"weight_tying": 1.0, "target_modules": ["up_proj", "k_proj", "q_proj", "embed_tokens"]}),
    ("TINYLORA", {"r": 12, "target_modules": ["q_proj", "v_proj"]}),
    ("GLORA", {"config_A_B": "constant", "config_C": "none", "config_D_E": "none"}),
]


def expected(peft_type: str, folder: Path) -> set[str]:
    return {name for name in tensors(folder) if set(PARTS[peft_type]) & set(name.split("."))}


def attachable() -> list[tuple[str, str]]:
    return [(one, family) for one in PARTS for family in FAMILIES if family not in CANNOT_ATTACH.get(one, ())]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("peft_type", "family"), [one for one in attachable() if one != ("GLORA", "opt")])
def test_they_go_and_come_back(peft_type: str, family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    written = write(tmp_path / "adapter", peft_type, family, dtype=dtype)
    assert_slims_and_restores(written, expected(peft_type, written.folder), tmp_path)
    for field, value in FLAGS.get(peft_type, {}).items():
        assert read_config(tmp_path / "slim")[field] is value


@pytest.mark.parametrize(("peft_type", "arguments"), VARIANTS, ids=str)
def test_other_settings(peft_type: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    written = write(tmp_path / "adapter", peft_type, **arguments)
    assert_slims_and_restores(written, expected(peft_type, written.folder), tmp_path)


def test_where_every_path_is_trained_glora_has_nothing_to_strip(tmp_path: Path) -> None:
    write(tmp_path, "GLORA", "opt")
    result = adaptertool.slim(tmp_path, dry_run=True)
    assert result.action == "nothing-to-do"
    assert adaptertool.inspect(tmp_path).findings == ()


def test_glora_paths_as_large_as_a_weight(tmp_path: Path) -> None:
    written = write(tmp_path / "adapter", "GLORA", "opt", config_A_B="none")
    result = assert_slims_and_restores(written, expected("GLORA", written.folder), tmp_path)
    assert result.bytes_after < result.bytes_before / 2


def test_a_file_of_nothing_else_is_left_alone(tmp_path: Path) -> None:
    """Without biases in the base, GLoRA with its paths A and B switched off trains nothing."""
    write(tmp_path, "GLORA", config_A_B="none")
    result = adaptertool.slim(tmp_path, dry_run=True)
    assert result.action == "nothing-to-do"
    assert "nothing else" in (result.reason or "")


def test_each_layer_has_its_own(tmp_path: Path, run: Run) -> None:
    write(tmp_path / "adapter", "SHIRA")
    said = run("slim", tmp_path / "adapter", "--keep-one-copy", "--check").out
    assert "nothing to do: each layer has its own, and the file holds them once" in " ".join(said.split())


def test_zeros_come_from_no_seed(tmp_path: Path, run: Run) -> None:
    write(tmp_path / "adapter", "GLORA")
    said = run("inspect", tmp_path / "adapter").out
    assert "made without a seed: zeros" in said
    assert "from seed" not in said


def test_frod_without_its_basis_is_refused(tmp_path: Path) -> None:
    """The flag stands for all three; PEFT loads no file that has none of them."""
    write(tmp_path / "adapter", "FROD")

    def without_basis(state: dict[str, torch.Tensor]) -> None:
        for name in [name for name in state if "frod_V" in name]:
            del state[name]

    assert_refused(changed(tmp_path / "adapter", tmp_path / "other", without_basis), "frod_V")


def test_frod_that_peft_saved_without_its_basis_is_left_alone(tmp_path: Path) -> None:
    """Its basis is decomposed from the base's weights at every load; there is nothing to draw, and no flag to set."""
    written = write(tmp_path / "adapter", "FROD", save_projection=False)
    result = adaptertool.restore(written.folder, output=tmp_path / "restored")
    assert result.action == "refused"
    assert "decomposes" in (result.reason or "")
    assert not (tmp_path / "restored").exists()


@pytest.mark.parametrize("peft_type", ["TINYLORA", "UNILORA"])
def test_a_flag_that_was_left_true_is_reported(peft_type: str, tmp_path: Path) -> None:
    written = write(tmp_path / "adapter", peft_type)
    adaptertool.slim(written.folder, output=tmp_path / "slim")
    (field,) = FLAGS[peft_type]
    change_config(tmp_path / "slim", **{field: True})
    assert_loads_alike(written, tmp_path / "slim")
    (finding,) = adaptertool.inspect(tmp_path / "slim").findings
    assert finding.code == "ADP106"
    assert field in finding.message


@pytest.mark.parametrize("peft_type", ["FROD", "SHIRA", "GLORA"])
def test_without_a_flag_of_their_own_there_is_nothing_to_report(peft_type: str, tmp_path: Path) -> None:
    write(tmp_path / "adapter", peft_type)
    adaptertool.slim(tmp_path / "adapter", output=tmp_path / "slim")
    assert (tmp_path / "slim" / "adapter_config.json").read_bytes() == (
        tmp_path / "adapter" / "adapter_config.json"
    ).read_bytes()
    assert adaptertool.inspect(tmp_path / "slim").findings == ()


def nudge(peft_type: str, state: dict[str, torch.Tensor]) -> None:
    """Change one element of the last tensor that would go."""
    name = max(one for one in state if set(PARTS[peft_type]) & set(one.split(".")) and state[one].numel() > 2)
    tensor = state[name].reshape(-1)
    tensor[-1] = tensor[-1] - 1 if not tensor.is_floating_point() else tensor[-1] + 1


@pytest.mark.parametrize("peft_type", PARTS)
def test_a_changed_element_is_noticed(peft_type: str, tmp_path: Path) -> None:
    write(tmp_path / "adapter", peft_type)
    assert_refused(changed(tmp_path / "adapter", tmp_path / "nudged", lambda state: nudge(peft_type, state)))


def minus_zero(state: dict[str, torch.Tensor]) -> None:
    name = next(one for one in state if one.endswith("glora_C.zeros"))
    state[name].view(-1)[0] = -0.0


def test_a_negative_zero_is_no_zero(tmp_path: Path) -> None:
    write(tmp_path / "adapter", "GLORA")
    assert_refused(changed(tmp_path / "adapter", tmp_path / "other", minus_zero), "-0.0")


@pytest.mark.parametrize(
    ("peft_type", "field", "value"),
    [
        ("SHIRA", "random_seed", 2),
        ("SHIRA", "random_seed", None),
        ("SHIRA", "mask_type", "my_own"),
        ("SHIRA", "r", 3),
        ("FROD", "projection_prng_key", 1),
        ("FROD", "sparse_rate", 0.2),
        ("UNILORA", "proj_seed", 1),
        ("UNILORA", "theta_d_length", 33),
        ("TINYLORA", "projection_seed", 43),
        ("TINYLORA", "u", 6),
    ],
)
def test_a_config_that_draws_others_is_refused(peft_type: str, field: str, value: object, tmp_path: Path) -> None:
    write(tmp_path, peft_type)
    change_config(tmp_path, **{field: value})
    assert_refused(tmp_path)


@pytest.mark.parametrize(
    ("peft_type", "field"),
    [
        ("FROD", "projection_prng_key"),
        ("SHIRA", "random_seed"),
        ("TINYLORA", "projection_seed"),
        ("UNILORA", "proj_seed"),
    ],
)
def test_a_config_that_was_changed_after_stripping_is_an_error(peft_type: str, field: str, tmp_path: Path) -> None:
    write(tmp_path / "adapter", peft_type)
    adaptertool.slim(tmp_path / "adapter", output=tmp_path / "slim")
    change_config(tmp_path / "slim", **{field: 77})
    assert [one.code for one in adaptertool.inspect(tmp_path / "slim").findings] == ["ADP108"]
    assert adaptertool.restore(tmp_path / "slim", output=tmp_path / "restored").action == "restored"


def diagonal_mask(layer: torch.nn.Module, r: int, **_: object) -> torch.Tensor:
    mask = torch.zeros(layer.weight.shape)  # type: ignore[arg-type]
    mask.view(-1)[: r * sum(mask.shape)] = 1
    return mask


def test_a_mask_of_the_users_own_is_refused_whatever_the_config_says(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = configured("SHIRA", "llama")
        settings.mask_fn = diagonal_mask
        model = get_peft_model(base("llama"), settings)
        shake(model)
        model.save_pretrained(str(tmp_path))
    assert read_config(tmp_path)["mask_type"] == "random"
    assert_refused(tmp_path, "mask was chosen in another way")


def test_indices_that_windows_wrote_as_float32(tmp_path: Path) -> None:
    """`ShiraModel._get_adapter_state_dict` converts them there; PEFT loads either."""
    written = write(tmp_path / "adapter", "SHIRA")

    def as_float(state: dict[str, torch.Tensor]) -> None:
        for name in expected("SHIRA", written.folder):
            state[name] = state[name].to(torch.float32)

    folder = changed(written.folder, tmp_path / "windows", as_float)
    assert adaptertool.slim(folder, output=tmp_path / "slim").action == "stripped"
    assert_loads_alike(written, tmp_path / "slim")
    adaptertool.restore(tmp_path / "slim", output=tmp_path / "restored")
    assert (tmp_path / "restored" / WEIGHTS).stat().st_size == (folder / WEIGHTS).stat().st_size
    assert {tensor.dtype for name, tensor in tensors(tmp_path / "restored").items() if "indices" in name} == {
        torch.float32
    }


def test_the_seed_of_a_generator_that_was_given_none() -> None:
    assert torch.Generator().initial_seed() == DEFAULT_TORCH_SEED


@pytest.mark.parametrize("peft_type", ["TINYLORA", "SHIRA", "UNILORA"])
def test_a_second_adapter_is_stripped_only_if_it_loads_alike_alone(peft_type: str, tmp_path: Path) -> None:
    """TinyLoRA numbers layers when the first adapter wraps them; a second adapter's own numbers can be others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base("llama"), configured(peft_type, "llama", target_modules=["v_proj", "down_proj"]))
        model.add_adapter("second", configured(peft_type, "llama", target_modules=["q_proj", "v_proj"]))
        model.set_adapter("second")
        shake(model)
        model.save_pretrained(str(tmp_path), selected_adapters=["second"])
    if peft_type == "TINYLORA":
        assert_refused(tmp_path / "second", "another adapter may have been on the model before")
        return
    result = adaptertool.slim(tmp_path / "second", output=tmp_path / "slim")
    assert result.action == "stripped"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj"),
        ("layers.0.self_attn.q_proj", "layers.0.self_attn.v_proj"),
        ("layers.1.self_attn.q_proj", "layers.0.mlp.down_proj"),
    ],
)
def test_matrices_of_two_layers_exchanged_are_noticed(one: str, other: str, tmp_path: Path) -> None:
    """All are drawn from seeds that are due, and PEFT draws each of the two for the other layer."""
    written = write(tmp_path / "adapter", "TINYLORA")

    def exchange(state: dict[str, torch.Tensor]) -> None:
        first, second = (f"base_model.model.model.{module}.tinylora_P" for module in (one, other))
        assert state[first].shape == state[second].shape
        state[first], state[second] = state[second], state[first]

    assert_refused(changed(written.folder, tmp_path / "other", exchange), "by the order of their names")


@pytest.mark.parametrize(
    ("order", "possible"),
    [
        (["layers.0.q", "layers.0.v", "layers.1.q", "layers.1.v"], True),
        (["layers.0.q", "layers.1.v", "layers.2.q", "layers.2.v"], True),
        (["encoder.0.k", "encoder.1.k", "decoder.0.self.k", "decoder.0.cross.k", "decoder.1.cross.k"], True),
        (["layers.9.q", "layers.10.q", "head"], True),
        (["layers.1.q", "layers.0.q"], False),
        (["layers.10.q", "layers.9.q"], False),
        (["layers.0.q", "layers.1.q", "layers.0.v"], False),
        (["layers.0.q", "layers.0.v", "layers.1.v", "layers.1.q"], False),
        (["decoder.0.self.k", "decoder.0.cross.k", "decoder.1.cross.k", "decoder.1.self.k"], False),
        (["a.q", "b.q", "a.v"], False),
    ],
)
def test_orders_that_a_model_can_have(order: list[str], possible: bool) -> None:
    with nullcontext() if possible else pytest.raises(CannotDrawError):
        check_order(order)


def test_tinylora_of_peft_0_19_is_told_apart(tmp_path: Path) -> None:
    """PEFT 0.19.1 seeded each layer with `projection_seed + hash(adapter_name) % 10000`."""
    write(tmp_path / "adapter", "TINYLORA")
    change_config(tmp_path / "adapter", peft_version="0.19.1")

    def hashed(state: dict[str, torch.Tensor]) -> None:
        for name in expected("TINYLORA", tmp_path / "adapter"):
            generator = torch.Generator().manual_seed(42 + hash("default") % 10000)
            state[name] = torch.normal(0.0, 1 / 2**0.5, size=tuple(state[name].shape), generator=generator)

    assert_refused(changed(tmp_path / "adapter", tmp_path / "old", hashed), "PEFT 0.19")


@pytest.mark.parametrize("peft_type", ["SHIRA", "FROD", "UNILORA", "TINYLORA"])
def test_a_recipe_that_was_tampered_with_restores_nothing(peft_type: str, tmp_path: Path) -> None:
    write(tmp_path / "adapter", peft_type)
    adaptertool.slim(tmp_path / "adapter", output=tmp_path / "slim")
    path = tmp_path / "slim" / WEIGHTS
    with safe_open(path, "pt") as file:
        record = json.loads(file.metadata()["adaptertool"])
    state = tensors(tmp_path / "slim")
    layouts: list[object] = [{}, {"layers": 1}, {"order": [1, None]}, {"dimensions": {"a": "b"}}]
    names = list(record["tensors"])
    layouts += [{"layers": dict.fromkeys(names, wrong)} for wrong in (3, [1], [0, 4], ["a", 1], [2**40, 1])]
    layouts += [{"order": names, "length": wrong} for wrong in (0, -1, 2**40, "a")]
    if peft_type == "SHIRA":
        layouts.append({"layers": {name: [3, 5] for name in record["recipe"]["layout"]["layers"]}})
    if "order" in record["recipe"]["layout"]:
        layouts.append({**record["recipe"]["layout"], "order": record["recipe"]["layout"]["order"][::-1]})
    for layout in layouts:
        text = json.dumps({**record, "recipe": {**record["recipe"], "layout": layout}})
        save_file(state, path, metadata={"format": "pt", "adaptertool": text})
        assert adaptertool.restore(tmp_path / "slim", dry_run=True).action == "refused", layout
        adaptertool.inspect(tmp_path / "slim")


def flattened(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1)


def empty(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:0]


def not_numbers(tensor: torch.Tensor) -> torch.Tensor:
    return torch.full(tensor.shape, float("nan"))


def small(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.int8)


def negative(tensor: torch.Tensor) -> torch.Tensor:
    return -tensor - 1


def huge(tensor: torch.Tensor) -> torch.Tensor:
    return torch.full(tensor.shape, 2**62, dtype=torch.int64)


@pytest.mark.parametrize("change", [flattened, empty, not_numbers, small, negative, huge])
@pytest.mark.parametrize("peft_type", PARTS)
def test_what_peft_never_wrote_is_refused(
    peft_type: str, change: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path
) -> None:
    write(tmp_path / "adapter", peft_type)
    first = min(expected(peft_type, tmp_path / "adapter"))
    for number, names in enumerate(({first}, expected(peft_type, tmp_path / "adapter"))):

        def spoil(state: dict[str, torch.Tensor], names: set[str] = names) -> None:
            for name in names:
                state[name] = change(state[name]).contiguous()

        folder = changed(tmp_path / "adapter", tmp_path / str(number), spoil)
        result = adaptertool.slim(folder, dry_run=True)
        assert result.action == "refused", names
        adaptertool.inspect(folder)


@pytest.mark.parametrize(
    ("peft_type", "field", "value"),
    [
        ("UNILORA", "theta_d_length", 2**31),
        ("TINYLORA", "projection_seed", 2**64 - 1),
        ("SHIRA", "random_seed", 2**64 - 1),
        ("FROD", "sparse_rate", float("nan")),
        ("FROD", "sparse_rate", "many"),
    ],
)
def test_values_that_no_one_means_cost_nothing(peft_type: str, field: str, value: object, tmp_path: Path) -> None:
    write(tmp_path, peft_type)
    change_config(tmp_path, **{field: value})
    assert adaptertool.slim(tmp_path, dry_run=True).action == "refused"


def test_without_a_fingerprint_a_layers_own_tensors_are_not_guessed(tmp_path: Path) -> None:
    write(tmp_path / "adapter", "UNILORA", save_indices=False)
    report = adaptertool.inspect(tmp_path / "adapter")
    assert report.projections is not None
    assert report.projections.verdict == "absent"
    assert report.findings == ()
    for base_model in (None, str(tmp_path)):
        result = adaptertool.restore(tmp_path / "adapter", base=base_model, dry_run=True)
        assert result.action == "refused"
        assert "in the order of the model" in (result.reason or "")


def without_fingerprint(folder: Path) -> None:
    """As a program leaves the file that writes tensors and drops metadata that it does not know."""
    save_file(tensors(folder), folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("peft_type", "family", "arguments"),
    [
        ("SHIRA", "llama", {"random_seed": 5, "r": 3}),
        ("SHIRA", "opt", {"random_seed": None}),
        ("FROD", "llama", {"projection_prng_key": 7, "sparse_rate": 0.2}),
        ("FROD", "gpt2", {"sparse_rate": 0.0}),
    ],
)
def test_without_a_fingerprint_config_and_base_decide_them(
    peft_type: str, family: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    written = write(tmp_path / "adapter", peft_type, family, **arguments)
    adaptertool.slim(written.folder, output=tmp_path / "slim")
    without_fingerprint(tmp_path / "slim")
    if peft_type == "SHIRA":
        assert "none is named" in str(adaptertool.restore(tmp_path / "slim", dry_run=True).reason)
    base(family).save_pretrained(tmp_path / "base")
    result = adaptertool.restore(tmp_path / "slim", output=tmp_path / "restored", base=str(tmp_path / "base"))
    assert result.action == "restored"
    assert_same_bytes(tmp_path / "restored", written.folder)


def test_without_a_fingerprint_another_bases_shapes_are_refused(tmp_path: Path) -> None:
    written = write(tmp_path / "adapter", "SHIRA")
    adaptertool.slim(written.folder, output=tmp_path / "slim")
    without_fingerprint(tmp_path / "slim")
    base("llama", wide=True).save_pretrained(tmp_path / "base")
    result = adaptertool.restore(tmp_path / "slim", dry_run=True, base=str(tmp_path / "base"))
    assert result.action == "refused"
    assert "another shape" in str(result.reason)


@pytest.mark.parametrize(("numel", "count"), [(1, 1), (2, 2), (2, 0), (10, 10), (1000, 3), (300_000, 20_000)])
def test_permutations_are_those_of_torch(numel: int, count: int) -> None:
    generator = torch.Generator().manual_seed(8)
    stream = WordStream(8)
    # Two in a row: the first leaves the stream where torch leaves its generator.
    for _ in range(2):
        due = torch.randperm(numel, generator=generator)[:count].numpy()
        assert np.array_equal(permutation_head(stream, numel, count), due)


@pytest.mark.parametrize(("count", "length"), [(0, 5), (3, 5), (5, 5), (10_001, 32)])
def test_balanced_indices_are_those_of_peft(count: int, length: int) -> None:
    assert np.array_equal(balanced_indices(42, count, length), UniLoraModel.generate_index(count, length, 42).numpy())


def test_scales_do_not_depend_on_how_torch_takes_a_reciprocal_root() -> None:
    often = np.arange(1, 1 << 20, dtype=np.float32)
    assert np.array_equal(torch.from_numpy(often).rsqrt().numpy(), np.float32(1) / np.sqrt(often))


@pytest.mark.parametrize("peft_type", PARTS)
def test_conditions_and_recipe_are_named(peft_type: str, tmp_path: Path) -> None:
    write(tmp_path, peft_type)
    report = adaptertool.inspect(tmp_path).projections
    assert report is not None
    assert report.recipe is not None
    assert report.recipe.sampler == "any"
    text = " ".join(report.loads_with)
    assert ("same base model" in text) == (peft_type in ("FROD", "TINYLORA", "UNILORA"))
    assert ("processor" in text) == (peft_type == "TINYLORA")
    assert ("numpy" in text) == (peft_type == "UNILORA")


@pytest.mark.parametrize("peft_type", ["UNILORA", "TINYLORA"])
def test_many_layers_are_counted_as_the_model_counts_them(peft_type: str, tmp_path: Path) -> None:
    """Sorted by name, layer 10 comes before layer 2; the bits say what the order was."""
    model = base("llama")
    model.config.num_hidden_layers = 12
    deep = type(model)(model.config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(deep, configured(peft_type, "llama"))
        adapted.save_pretrained(str(tmp_path))
    result = adaptertool.slim(tmp_path, dry_run=True)
    assert result.action == "stripped"
    assert result.projections is not None
    assert result.projections.recipe is not None
    order = result.projections.recipe.layout["order"]
    layers = [int(name.split(".layers.")[1].split(".")[0]) for name in order]
    assert layers == sorted(layers)
    first = [name.split(".layers.0.")[1].split(".")[1] for name in order[:3]]
    assert first == ["q_proj", "v_proj", "down_proj"]


def test_what_peft_0_19_drew_no_later_one_draws() -> None:
    """It seeded with a hash that Python salts; the file keeps what was drawn, and PEFT loads that."""
    source = FIXTURES / "tinylora-peft0.19.1"
    assert_refused(source, "PEFT 0.19")
    expected = load_file(source / "expected.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bare = AutoModelForCausalLM.from_pretrained(FIXTURES / "base-b", dtype=torch.float32)
        model = PeftModel.from_pretrained(bare, str(source)).eval()
    with torch.no_grad():
        assert torch.allclose(model(input_ids=expected["input_ids"]).logits, expected["logits"], atol=3e-6)


@pytest.mark.parametrize(("version", "codes"), [("0.19.1", ["ADP107"]), ("0.20.0", []), ("0.21.2", [])])
def test_absent_matrices_of_peft_0_19_are_lost(version: str, codes: list[str], tmp_path: Path) -> None:
    write(tmp_path, "TINYLORA", save_projection=False)
    change_config(tmp_path, peft_version=version)
    found = adaptertool.inspect(tmp_path).findings
    assert [one.code for one in found] == codes
    assert all("they are lost" in one.message for one in found)


def test_stripped_tinylora_needs_the_peft_that_draws_the_same(tmp_path: Path) -> None:
    write(tmp_path, "TINYLORA")
    report = adaptertool.slim(tmp_path, dry_run=True).projections
    assert report is not None
    assert any(one.startswith("PEFT 0.20 or newer") for one in report.loads_with)
