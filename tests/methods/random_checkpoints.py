"""Random adapters of every method that slim can shrink, written by real PEFT, and what has to hold of each.

As a script it runs as many as it is asked to: `python -m tests.methods.random_checkpoints FIRST COUNT [METHOD]`.
"""

from __future__ import annotations

import random
import re
import shutil
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model

import adaptertool
from tests.checkpoints import read_config
from tests.methods.rewriting import assert_same_bytes, tensors
from tests.methods.written import base, configured, logits, shake

METHODS = (
    "VERA",
    "PVERA",
    "RANDLORA",
    "SHIRA",
    "FROD",
    "UNILORA",
    "TINYLORA",
    "GLORA",
    "LILY",
    "TRAINABLE_TOKENS",
)
MODULES = {
    "gpt2": ("c_attn", "c_fc", "c_proj"),
    "opt": ("q_proj", "v_proj", "out_proj", "fc1", "fc2"),
    **dict.fromkeys(
        ("llama", "qwen2", "gemma3"), ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    ),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LINEAR_ONLY = ("SHIRA", "GLORA", "LILY")
LOADINGS: tuple[dict[str, Any], ...] = (
    {},
    {"low_cpu_mem_usage": True},
    {"autocast_adapter_dtype": False},
    {"torch_device": "cpu"},
)


def own_mask(layer: Any, r: int, **_: Any) -> torch.Tensor:
    """A mask as a user's own function could make it: the first elements of each layer."""
    weight = layer.weight
    mask = torch.zeros(weight.numel())
    mask[: r * sum(weight.shape)] = 1
    return mask.view(weight.shape)


@dataclass(frozen=True)
class Case:
    """One adapter, as the number that it was made from decides."""

    number: int
    peft_type: str
    family: str
    dtype: str
    tied: bool
    autocast: bool
    adapter_name: str
    second: bool
    own_mask: bool
    arguments: dict[str, Any]


def case_of(number: int, only: str | None = None) -> Case:
    """The case of that number; of one method, if it is named."""
    pick = random.Random(number)
    peft_type = only or pick.choice(METHODS)
    family = pick.choice([one for one in MODULES if one != "gpt2" or peft_type not in LINEAR_ONLY])
    modules = MODULES[family]
    arguments: dict[str, Any] = {
        "target_modules": sorted(pick.sample(modules, pick.randint(1, min(4, len(modules))))),
        "r": pick.choice([1, 2, 3, 4, 5, 8]),
    }
    seed = pick.choice([0, 1, 7, 42, 12345, 2**31, 2**40 + 3, 2**63 - 1, pick.randrange(10**6)])
    if peft_type in ("VERA", "PVERA"):
        arguments |= {"projection_prng_key": seed, "d_initial": pick.choice([0.1, 0.01, 1.0])}
    elif peft_type == "RANDLORA":
        sparsity = pick.choice([{}, {"sparse": True}, {"very_sparse": True}])
        arguments |= {"projection_prng_key": seed, "randlora_alpha": pick.choice([8, 64]), **sparsity}
    elif peft_type == "SHIRA":
        arguments |= {"random_seed": pick.choice([seed, None])}
    elif peft_type == "FROD":
        arguments = {"target_modules": arguments["target_modules"], "projection_prng_key": seed}
        arguments |= {"sparse_rate": pick.choice([0.0, 0.01, 0.1, 0.5])}
    elif peft_type == "UNILORA":
        arguments |= {"proj_seed": seed, "save_indices": pick.choice([True, True, False])}
        arguments |= {"theta_d_length": pick.choice([16, 256, 1000])}
    elif peft_type == "TINYLORA":
        arguments |= {"projection_seed": seed % 2**40, "u": pick.choice([1, 3, 13, 64])}
        arguments |= {"weight_tying": pick.choice([0.0, 0.5, 1.0])}
        arguments["r"] = min(arguments["r"], 4)
    elif peft_type == "GLORA":
        arguments |= {"config_A_B": pick.choice(["lora", "vector", "constant", "none"])}
        arguments |= {"config_C": pick.choice(["lora", "vector", "none"])}
        arguments |= {"config_D_E": pick.choice(["vector", "constant", "none"])}
    elif peft_type == "LILY":
        arguments |= {"stride_A": pick.choice([1, 2, 3]), "num_B": pick.choice([2, 4])}
    else:
        arguments = {"token_indices": sorted(pick.sample(range(64), pick.randint(1, 5)))}
    if peft_type not in ("TRAINABLE_TOKENS", "FROD", "LILY", "TINYLORA") and pick.random() < 0.15:
        arguments["init_weights"] = False
    if peft_type != "TRAINABLE_TOKENS" and pick.random() < 0.15:
        arguments["modules_to_save"] = ["lm_head"]
    return Case(
        number,
        peft_type,
        family,
        pick.choice(["float32", "float32", "bfloat16", "float16"]),
        pick.random() < 0.5,
        pick.random() < 0.8,
        pick.choice(["default", "default", "mine"]),
        peft_type != "TRAINABLE_TOKENS" and pick.random() < 0.15,
        peft_type == "SHIRA" and pick.random() < 0.2,
        arguments,
    )


def make(case: Case, place: Path) -> tuple[Path, PeftModel]:
    """Write the adapter with PEFT.

    Returns:
        Its folder, and the model that was saved.
    """
    bare = base(case.family, DTYPES[case.dtype], tied=case.tied)
    torch.manual_seed(case.number)
    name = case.adapter_name
    first = configured(case.peft_type, case.family, **case.arguments)
    if case.own_mask:
        first.mask_type, first.mask_fn = "random", own_mask
    model = get_peft_model(bare, first, adapter_name=name, autocast_adapter_dtype=case.autocast)
    if case.second:
        arguments = {**case.arguments, "target_modules": sorted(MODULES[case.family][:2])}
        arguments.pop("modules_to_save", None)
        name = "second"
        model.add_adapter(name, configured(case.peft_type, case.family, **arguments))
        model.set_adapter(name)
    shake(model)
    model.save_pretrained(str(place), selected_adapters=[name])
    return place if name == "default" else place / name, model.eval()


def check(case: Case, place: Path) -> str:
    """Slim it, load it as users do, restore it.

    Returns:
        What slim did: its action.

    Raises:
        AssertionError: what was stripped loads to something else than the original, or does not come back.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            folder, model = make(case, place / "adapter")
        except ValueError:
            return "can't be attached"
        # A second adapter can store the first one's pair, which the base alone can tell from its own.
        basis = _saved_base(case, place / "base") if case.second else None
        result = adaptertool.slim(folder, output=place / "slim", base=basis)
        if result.action in ("refused", "nothing-to-do"):
            assert result.reason
            return f"{result.action}: {result.reason[:160]}"
        slimmed = place / "slim"
        dtypes = [case.dtype]
        if result.projections is not None and result.action == "stripped":
            named = next(
                (one for one in result.projections.loads_with if one.startswith("The base model loaded in")), ""
            )
            dtypes = [one for one in DTYPES if re.search(rf"\b{one}\b", named)] or dtypes
        for dtype in dtypes:
            for arguments in LOADINGS:
                one, other = (_logits(case, one, dtype, arguments) for one in (folder, slimmed))
                assert type(one) is type(other), f"{dtype} {arguments}: {one!r} became {other!r}"
                if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
                    assert torch.equal(one, other), f"{dtype} {arguments}: {(one - other).abs().max()}"
        if case.autocast and not case.second:
            loaded = _logits(case, slimmed, case.dtype, {})
            assert isinstance(loaded, torch.Tensor), loaded
            assert torch.equal(loaded, logits(model)), "not what was trained"
        report = adaptertool.inspect(slimmed, verify="full")
        if result.action == "stripped":
            assert report.projections is not None
            assert report.projections.reproduced, report.projections.reason
            assert adaptertool.restore(slimmed, output=place / "restored").action == "restored"
            _assert_restored(place / "restored", folder)
        assert adaptertool.slim(slimmed, dry_run=True).action == "nothing-to-do"
    return result.action


def _saved_base(case: Case, folder: Path) -> str:
    base(case.family, DTYPES[case.dtype], tied=case.tied).save_pretrained(folder)
    return str(folder)


def _assert_restored(restored: Path, original: Path) -> None:
    """The same tensors, but for RandLoRA's further copies, which PEFT ignores."""
    first, second = tensors(restored), tensors(original)
    if set(first) == set(second):
        assert_same_bytes(restored, original)
    else:
        assert all(re.search(r"model\..*randlora_[AB]$", name) for name in set(second) - set(first))
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert read_config(restored) == read_config(original)


def _logits(case: Case, folder: Path, dtype: str, arguments: dict[str, Any]) -> torch.Tensor | RuntimeError:
    """What PEFT computes, or what it raises: for some originals there is no way to load them with these arguments."""
    bare = base(case.family, DTYPES[dtype], tied=case.tied)
    torch.manual_seed(999)
    try:
        return logits(PeftModel.from_pretrained(bare, str(folder), **arguments).eval())
    except RuntimeError as error:
        return error


def main() -> None:
    """Run the cases that the command line asks for."""
    first, count = int(sys.argv[1]), int(sys.argv[2])
    only = sys.argv[3] if len(sys.argv) > 3 else None
    did: dict[str, int] = {}
    torch.set_num_threads(1)
    for number in range(first, first + count):
        case = case_of(number, only)
        place = Path(tempfile.mkdtemp(prefix="random-"))
        try:
            action = check(case, place)
        except Exception as error:  # noqa: BLE001 - a sweep goes on
            action = "FAILED"
            print(f"{type(error).__name__} {str(error)[:300]}\n    {case}")
        finally:
            shutil.rmtree(place)
        if action.startswith("refused") or "could" in action:
            print(f"{action}\n    {case}")
        key = f"{case.peft_type} {action.partition(':')[0]}"
        did[key] = did.get(key, 0) + 1
    for key in sorted(did):
        print(key, did[key])


if __name__ == "__main__":
    main()
