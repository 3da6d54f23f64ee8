"""Checkpoints that real PEFT writes and loads, on models small enough to be made on the spot."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from peft import LoraConfig, PeftModel, RandLoraConfig, get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

FIXTURES = Path(__file__).parents[1] / "fixtures"
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
CANONICAL_A = "base_model.randlora_A"
CANONICAL_B = "base_model.randlora_B"

Family = Literal["llama", "qwen2", "gpt2"]
Kind = Literal["dense", "sparse", "very-sparse"]
Layout = Literal["copies", "canonical", "layer", "pickle"]
Tensors = dict[str, torch.Tensor]

_LLAMA_SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
_BUILDERS: dict[Family, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_LLAMA_SIZES)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_LLAMA_SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=48, n_layer=2, n_head=4, n_positions=32)),
}
_TARGETS: dict[Family, tuple[str, ...]] = {
    "llama": ("q_proj", "v_proj"),
    "qwen2": ("q_proj", "v_proj"),
    "gpt2": ("c_attn",),
}


@dataclass(frozen=True)
class Spec:
    """A RandLoRA checkpoint, and the base that it is for."""

    family: Family = "llama"
    dtype: str = "float32"
    autocast: bool = True
    kind: Kind = "dense"
    key: int = 0
    rank: int = 8
    targets: tuple[str, ...] = ()
    layout: Layout = "copies"
    save_projection: bool = True

    def __str__(self) -> str:
        parts = [self.family, self.dtype, self.kind, f"key{self.key}", f"r{self.rank}", self.layout]
        return "-".join(parts + ([] if self.autocast else ["no-autocast"]))

    @property
    def config(self) -> RandLoraConfig:
        return RandLoraConfig(
            r=self.rank,
            projection_prng_key=self.key,
            sparse=self.kind == "sparse",
            very_sparse=self.kind == "very-sparse",
            target_modules=list(self.targets or _TARGETS[self.family]),
            fan_in_fan_out=self.family == "gpt2",
            save_projection=self.save_projection,
            task_type="CAUSAL_LM",
        )


def make_base(family: Family, dtype: str = "float32") -> PreTrainedModel:
    """A model with random weights, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _BUILDERS[family]()
    model = model.to(getattr(torch, dtype)).eval()
    assert isinstance(model, PreTrainedModel)
    return model


def randomise_trained(model: PeftModel, seed: int = 1) -> None:
    """Give what would be trained random values, so that every projection reaches the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def write(spec: Spec, folder: Path) -> Path:
    """Have PEFT write the checkpoint; layouts that today's PEFT does not write are made of what it wrote."""
    model = get_peft_model(make_base(spec.family, spec.dtype), spec.config, autocast_adapter_dtype=spec.autocast)
    assert isinstance(model, PeftModel)
    randomise_trained(model)
    save(model, folder, safe_serialization=spec.layout != "pickle")
    if spec.layout in ("canonical", "layer"):
        rewrite(folder, lambda tensors: with_layout(tensors, spec.layout))
    return folder


def save(model: PeftModel, folder: Path, **options: Any) -> None:
    model.save_pretrained(str(folder), save_embedding_layers=False, **options)


def write_lora(folder: Path) -> Path:
    """A LoRA checkpoint: it has no projections."""
    model = get_peft_model(make_base("llama"), LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert isinstance(model, PeftModel)
    randomise_trained(model)
    save(model, folder)
    return folder


def logits(folder: Path, spec: Spec, *, base: PreTrainedModel | None = None, dtype: str | None = None) -> bytes:
    """The bits of what PEFT computes with an adapter on its base."""
    values = run(base or make_base(spec.family, dtype or spec.dtype), folder, autocast=spec.autocast)
    return values.float().numpy().tobytes()


def run(
    base: PreTrainedModel, folder: Path, *, autocast: bool = True, input_ids: torch.Tensor | None = None
) -> torch.Tensor:
    """What PEFT computes with an adapter on a base."""
    model = PeftModel.from_pretrained(base, str(folder), autocast_adapter_dtype=autocast).eval()
    fed = torch.arange(24).reshape(2, 12) if input_ids is None else input_ids
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=fed).logits
    return result


def projections(tensors: Mapping[str, Any]) -> list[str]:
    """The names of all projections, the canonical ones included."""
    return [name for name in tensors if name.endswith(("randlora_A", "randlora_B"))]


def with_layout(tensors: Tensors, layout: Layout) -> Tensors:
    """One pair instead of all copies: the canonical one, or that of the first layer."""
    copies = [name for name in projections(tensors) if name not in (CANONICAL_A, CANONICAL_B)]
    kept = {CANONICAL_A, CANONICAL_B}
    if layout == "layer":
        first = min(copies).rpartition(".")[0]
        kept = {f"{first}.randlora_A", f"{first}.randlora_B"}
    return {name: one for name, one in tensors.items() if name in kept or name not in projections(tensors)}


def load(folder: Path) -> Tensors:
    return dict(safetensors.torch.load_file(folder / WEIGHTS))


def metadata(folder: Path) -> dict[str, str]:
    with safetensors.safe_open(folder / WEIGHTS, "pt") as file:
        return dict(file.metadata() or {})


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Change the tensors of a file, and keep its metadata."""
    known = metadata(folder)
    tensors = {name: one.clone().contiguous() for name, one in change(load(folder)).items()}
    (folder / WEIGHTS).unlink()
    safetensors.torch.save_file(tensors, folder / WEIGHTS, metadata=known)


def read_config(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    return document


def change_config(folder: Path, **values: Any) -> None:
    (folder / CONFIG).write_text(json.dumps(read_config(folder) | values, indent=2))


def flip_bit(folder: Path, tensor: str, *, bit: int = 0, byte: int = 0) -> None:
    """Change one bit of a tensor in the file itself."""
    path = folder / WEIGHTS
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    start, end = json.loads(content[8 : 8 + length])[tensor]["data_offsets"]
    content[8 + length + start + byte % (end - start)] ^= 1 << bit
    path.write_bytes(content)


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file below a folder: its mode, its time of change and its bytes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            stat = path.stat()
            found[str(path.relative_to(folder))] = (stat.st_mode, stat.st_mtime_ns, path.read_bytes())
    return found


def copy_of(folder: Path, place: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(folder, place)
    return place


def variants(spec: Spec, **values: Iterable[Any]) -> list[Spec]:
    """The spec with each of these values in turn."""
    return [replace(spec, **{field: value}) for field, choices in values.items() for value in choices]


def main() -> None:
    """Write one checkpoint in a process of its own: a spec as JSON, and the folder."""
    fields = json.loads(sys.argv[1])
    write(Spec(**fields | {"targets": tuple(fields["targets"])}), Path(sys.argv[2]))


def as_argument(spec: Spec) -> str:
    return json.dumps(asdict(spec))


if __name__ == "__main__":
    main()
