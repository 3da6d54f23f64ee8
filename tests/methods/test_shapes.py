"""The tensors that are declared for a layer are those that PEFT makes, names and shapes, under any config.

Each case draws configs at random, attaches them with PEFT to layers of every kind, and holds what is declared against the
state dict that PEFT would save. Where PEFT raises, at the config, at attaching or at merging, the declaration refuses.
"""

from __future__ import annotations

import random
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import PeftConfig, get_peft_model, get_peft_model_state_dict
from transformers.pytorch_utils import Conv1D

from adaptertool.checkpoint.config import AdapterConfig
from adaptertool.merge.adapter.settings import refused, settings_of
from adaptertool.methods import PEFT_TYPES, method_of
from adaptertool.methods.shapes import Place, Places, RefusedError, is_of
from tests.methods.written import shake

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.methods.merging import MergeRule
    from adaptertool.methods.shapes import Shape

CONFIGS = 40
"""How many each type gets on layers of each kind."""

KINDS = {
    "linear": ("block.0.wide", "block.0.narrow", "block.0.square", "block.1.wide"),
    "conv1d": ("block.0.turned", "block.1.turned"),
    "embedding": ("embedding",),
    "conv": ("block.0.image", "block.0.patch", "block.1.image"),
}
SIZES: tuple[Any, ...] = (0, 1, 2, 3, 4, 5, 6, 8, 12, 24)
PATTERNS: tuple[Any, ...] = ({}, {}, {"wide": 3}, {"block.0.narrow": 2, "image": 4}, {"0.square": 5, "wide": 2})
FLAGS = (True, False)
FIELDS: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "ADALORA": {"init_r": SIZES, "use_dora": (False, False, True), "total_step": (10, 10, 0), "tinit": (0, 0, 9)},
    "ADAMSS": {"r": SIZES[4:], "num_subspaces": (1, 2, 3, 30), "subspace_rank": (1, 2, 3), "use_dynamic_rank": FLAGS},
    "BEFT": {"init_weights": FLAGS},
    "BOFT": {"boft_block_size": SIZES, "boft_block_num": (0, 0, 0, 2, 4), "boft_n_butterfly_factor": (1, 1, 0)},
    "C3A": {"block_size": SIZES, "block_size_pattern": PATTERNS},
    "DEFT": {"r": SIZES, "para": FLAGS, "decomposition_method": ("qr", "relu", "qr", "svd")},
    "DELORA": {"r": SIZES, "rank_pattern": PATTERNS},
    "FOURIERFT": {"n_frequency": (*SIZES, 200), "n_frequency_pattern": PATTERNS},
    "FROD": {"sparse_rate": (0, 0.01, 0.1, 0.9, 1, 2), "save_projection": FLAGS, "progressbar": (False,)},
    "GLORA": {
        "r": SIZES[1:],
        "config_A_B": ("lora", "vector", "constant", "none", "other"),
        "config_C": ("lora", "vector", "none"),
        "config_D_E": ("vector", "constant", "none"),
    },
    "GRALORA": {"r": SIZES, "gralora_k": (0, 1, 2, 3, 4), "hybrid_r": (0, 0, 2, 3)},
    "HIRA": {"r": SIZES, "rank_pattern": PATTERNS},
    "HRA": {"r": SIZES, "apply_GS": FLAGS},
    "IA3": {"feedforward_modules": ([], ["wide"], ["narrow", "image"], ["turned"], r".*\.0\..*", "ide")},
    "LOHA": {"r": SIZES, "rank_pattern": PATTERNS, "use_effective_conv2d": FLAGS},
    "LOKR": {
        "r": SIZES,
        "rank_pattern": PATTERNS,
        "use_effective_conv2d": FLAGS,
        "decompose_both": FLAGS,
        "decompose_factor": (-1, -1, 2, 3, 4, 5, 7, 8),
    },
    "LORA": {
        "r": SIZES[1:],
        "rank_pattern": PATTERNS,
        "lora_bias": (False, False, True),
        "use_dora": (False, False, True),
        "use_rslora": FLAGS,
        "init_lora_weights": (True, True, False, "gaussian", "pissa", "olora", "orthogonal", "eva", "mica"),
        "monteclora_config": (None, None, None, {"num_samples": 3}, {}),
        "velora_config": (None, None, None, {"num_groups": 5, "init_type": "random"}, {}),
        "kasa_config": (None, None, None, {}),
        "use_bdlora": (
            *(None, None, None, {}),
            {"target_modules_bd_a": ["wide"], "target_modules_bd_b": ["narrow", "square"], "nblocks": 2},
            {"target_modules_bd_a": ["wide"], "nblocks": 3, "match_strict": False},
        ),
    },
    "MISS": {"r": SIZES, "init_weights": (True, False, "bat", "mini"), "mini_r": (1, 1, 2, 3, 4, 5)},
    "OFT": {"r": SIZES, "oft_block_size": (0, 0, 0, 3, 4, 50), "block_share": FLAGS, "coft": FLAGS},
    "OSF": {
        "effective_rank": (None, 1, 2, 6, 8, 30, 0, 0.5, 0.01, 1.0),
        "rank_pattern": ({}, {}, {"wide": 3}, {"row": 2, "0": 4}),
    },
    "PEANUT": {"r": SIZES, "depth": (0, 1, 2, -1), "act_fn": ("relu", "relu", "gelu", "nothing")},
    "PSOFT": {
        "r": SIZES,
        "psoft_orth": FLAGS,
        "psoft_mag_a": FLAGS,
        "psoft_mag_b": FLAGS,
        "psoft_svd": ("full", "full", "lowrank", "half"),
        "ab_svd_init": ("psoft_init", "pissa_init"),
    },
    "PVERA": {"r": SIZES, "save_projection": FLAGS},
    "RANDLORA": {"r": SIZES, "save_projection": FLAGS, "sparse": FLAGS},
    "ROAD": {"variant": ("road_1", "road_2", "road_4", "road_3"), "group_size": (2, 4, 8, 3, 0, 64)},
    "SHIRA": {"r": (*SIZES, 1, 2)},
    "SUPERTUNING": {
        "r": (None, None, *SIZES),
        "sparsity": (0.0, 0.5, 0.9, 0.99, 0.999, 1.0),
        "lora_alpha": (None, 4),
    },
    "TINYLORA": {
        "r": SIZES,
        "u": SIZES,
        "save_projection": FLAGS,
        "weight_tying": (0, 0.3, 0.5, 0.7, 1, 1.5),
    },
    "UNILORA": {"r": SIZES, "theta_d_length": (0, 8, 32, 32), "save_indices": FLAGS},
    "VBLORA": {
        "r": SIZES,
        "num_vectors": (4, 6, 2),
        "vector_length": (1, 2, 3, 4, 5),
        "topk": (0, 1, 2, 2, 3),
        "save_only_topk_weights": FLAGS,
    },
    "VERA": {"r": SIZES, "save_projection": FLAGS},
    "WAVEFT": {
        "n_frequency": (*SIZES, 200),
        "n_frequency_pattern": PATTERNS,
        "proportional_parameters": FLAGS,
        "wavelet_family": ("db1", "db1", "sym3", "wave"),
    },
}
"""The fields that decide about tensors, and what is drawn for them; PEFT's own defaults are drawn too."""

NEEDED = {
    "ADALORA": {"total_step": 10},
    "VBLORA": {"vector_length": 4, "num_vectors": 4},
    "UNILORA": {"theta_d_length": 32},
}
RAISED = (ArithmeticError, AssertionError, AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError)


class Block(torch.nn.Module):
    """Layers of every kind, of sides that differ."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = torch.nn.Linear(12, 20)
        self.narrow = torch.nn.Linear(24, 8, bias=False)
        self.square = torch.nn.Linear(16, 16)
        self.turned = Conv1D(18, 12)  # type: ignore[no-untyped-call]
        self.image = torch.nn.Conv2d(6, 10, 3)
        self.patch = torch.nn.Conv2d(6, 8, 1, bias=False)


class Model(torch.nn.Module):
    """Two of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block = torch.nn.ModuleList([Block(), Block()])
        self.embedding = torch.nn.Embedding(30, 12)


def places(model: torch.nn.Module, modules: list[str], kind: Any) -> Places:
    """The layers as a declaration sees them, in the order of the model."""
    found = []
    for name, module in model.named_modules():
        if name in modules:
            weight = module.weight
            assert isinstance(weight, torch.Tensor)
            found.append(Place(name, kind, tuple(weight.shape), getattr(module, "bias", None) is not None))
    return Places(found)


def declared(rule: MergeRule, config: AdapterConfig, layers: Places) -> dict[str, Shape] | str:
    """All that a file holds, by the declarations; or why PEFT refuses the config."""
    assert rule.tensors is not None
    settings = settings_of(config, None)
    if (why := refused(config, rule)) is not None:
        return why
    try:
        tensors = {
            f"base_model.model.{place.module}.{name}": shape
            for place in layers
            for name, shape in rule.tensors(settings, place, layers).items()
        }
        return tensors | {f"base_model.{name}": shape for name, shape in rule.shared(settings, layers).items()}
    except RefusedError as error:
        return str(error)


def made(model: torch.nn.Module, fields: dict[str, Any]) -> dict[str, tuple[int, ...]] | str:
    """What PEFT would save; or what it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            peft = get_peft_model(model, PeftConfig.from_peft_type(**fields))  # type: ignore[no-untyped-call]
            state = get_peft_model_state_dict(peft)
            shake(peft)
            peft.merge_and_unload(safe_merge=True)
        except (TypeError, ValueError, *RAISED) as error:
            if "layer has no bias" not in str(error):
                return f"{type(error).__name__}: {error}"
    return {name: tuple(tensor.shape) for name, tensor in state.items() if not name.endswith("base_layer.weight")}


def agrees(here: dict[str, Shape], there: dict[str, tuple[int, ...]], peft_type: str) -> bool:
    # How many subspaces a weight falls into its values decide.
    names = {*here} if peft_type != "ADAMSS" else {*here} & {*there}
    return names == {*there} and all(is_of(shape, here[name]) for name, shape in there.items())


def cases() -> list[tuple[str, str]]:
    found = []
    for peft_type in sorted(PEFT_TYPES):
        rule = method_of(AdapterConfig("", {"peft_type": peft_type}, "config")).merge
        if rule is not None and rule.tensors is not None:
            kinds = KINDS if rule.kinds is None else rule.kinds
            found += [(peft_type, kind) for kind in KINDS if kind in kinds]
    return found


@pytest.mark.parametrize(("peft_type", "kind"), cases())
def test_what_is_declared_is_what_peft_makes(peft_type: str, kind: str) -> None:
    draw = random.Random(f"{peft_type} {kind}")
    seen: set[bool] = set()
    for _ in range(CONFIGS):
        modules = sorted(draw.sample(KINDS[kind], draw.randint(1, min(2, len(KINDS[kind])))))
        fields: dict[str, Any] = {"peft_type": peft_type, "target_modules": modules, **NEEDED.get(peft_type, {})}
        if peft_type == "OFT":
            fields["oft_block_size"] = 0
        if peft_type == "IA3":
            fields["feedforward_modules"] = []
        for field, values in FIELDS[peft_type].items():
            if draw.random() < 0.6:
                fields[field] = draw.choice(values)
        model = Model()
        layers = places(model, modules, kind)
        config = AdapterConfig("", {**fields, "peft_version": "0.21.2"}, "adapter_config.json")
        rule = method_of(config).merge
        assert rule is not None
        here, there = declared(rule, config, layers), made(model, dict(fields))
        assert isinstance(here, str) == isinstance(there, str), (fields, here, there)
        if not isinstance(here, str) and not isinstance(there, str):
            assert agrees(here, there, peft_type), (fields, here, there)
        seen.add(isinstance(here, str))
    assert False in seen, "PEFT takes none of the configs"
