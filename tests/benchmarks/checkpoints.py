"""Checkpoints of any size for the benchmarks, written in a process of their own, piece by piece.

python -m tests.benchmarks.checkpoints lora FOLDER TENSORS BYTES
python -m tests.benchmarks.checkpoints randlora FOLDER COPIES DIMENSION DTYPE
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks.measure import python

if TYPE_CHECKING:
    from numpy.typing import NDArray

RANK, SEED = 32, 3
_SIZES = {"F32": 4, "BF16": 2}


def make(kind: str, folder: Path, *arguments: object) -> Path:
    """Write one, in another process: what this one held in memory would count for those that it starts later."""
    subprocess.run(python("-m", "tests.benchmarks.checkpoints", kind, str(folder), *map(str, arguments)), check=True)
    return folder


def lora(folder: Path, count: int, size: int) -> None:
    """A LoRA adapter of so many tensors and so many bytes, all of them zeros."""
    columns = size // count // (4 * 16)
    modules = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    tensors = []
    for number in range(count // 2):
        module = f"base_model.model.model.layers.{number // 7}.self_attn.{modules[number % 7]}"
        tensors.append((f"{module}.lora_A.weight", "F32", (16, columns)))
        tensors.append((f"{module}.lora_B.weight", "F32", (columns, 16)))
    zeros = memoryview(bytes(64 * columns))
    _write(folder, ((name, dtype, shape, zeros) for name, dtype, shape in tensors), {"peft_type": "LORA", "r": 16})


def randlora(folder: Path, copies: int, dimension: int, dtype: str) -> None:
    """A RandLoRA adapter as PEFT writes it: the shared pair, and a copy of it under all target layers but one."""
    import numpy as np

    from adaptertool.projection.basis import RandLoraBasis
    from adaptertool.projection.drawn import stored_bits
    from adaptertool.projection.loader import loader_for
    from adaptertool.projection.recipe import draws

    basis = RandLoraBasis(SEED, "dense", RANK, dimension, dimension)
    loader = loader_for(None, ask=False)
    assert loader is not None
    generation = next(one for one in basis.generations if draws(loader, one))
    casts = ("bfloat16", "float32") if dtype == "F32" else ("bfloat16",)
    pair: dict[str, NDArray[np.unsignedinteger]] = {
        kind: stored_bits(drawn, casts) for kind, drawn in basis.draw(generation)
    }
    ones = np.ones(max(RANK, dimension) * basis.bases, dtype=np.float32)
    tensors = [(f"base_model.{kind}", dtype, basis.shapes[kind], bits.data) for kind, bits in pair.items()]
    for layer in range(copies - 1):
        module = f"base_model.model.model.layers.{layer}.mlp.up_proj"
        tensors += [(f"{module}.{kind}", dtype, basis.shapes[kind], bits.data) for kind, bits in pair.items()]
        trained = {"randlora_lambda": (RANK, basis.bases), "randlora_gamma": (basis.bases, dimension)}
        for kind, shape in trained.items():
            tensors.append((f"{module}.{kind}", "F32", shape, ones[: shape[0] * shape[1]].data))
    tensors.sort(key=lambda tensor: -_SIZES[tensor[1]])
    _write(folder, tensors, {"peft_type": "RANDLORA", "r": RANK, "projection_prng_key": SEED, "save_projection": True})


def _write(
    folder: Path, tensors: Iterable[tuple[str, str, tuple[int, ...], memoryview]], config: dict[str, object]
) -> None:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = list(tensors)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape, data in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + data.nbytes]}
        end += data.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for *_, data in tensors:
            file.write(data)


def main(kind: str, folder: str, *arguments: str) -> None:
    """Write one."""
    if kind == "lora":
        lora(Path(folder), *map(int, arguments))
    else:
        copies, dimension, dtype = arguments
        randlora(Path(folder), int(copies), int(dimension), dtype)


if __name__ == "__main__":
    main(*sys.argv[1:])
