"""How each method's projections are drawn from its seed: by a named generation of torch's sampler, or by torch itself.

Both drawings of a basis stand side by side. `draw` needs no torch and can be any torch from 2.0 on; `draw_with_torch` makes
the calls that PEFT makes, with the torch that is installed. Tests hold the two against each other and against PEFT.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np

from adaptertool.projection.drawn import Drawn, Ranged, Tabulated, cast_chains, code_values
from adaptertool.projection.dtypes import FLOATS, from_bits, rounded
from adaptertool.projection.generation import Generation, Sampler
from adaptertool.projection.sampler import (
    CHUNK_WORDS,
    Uniform16Bit,
    WordStream,
    ahead,
    ternary,
    uniform_16_bit,
)

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray


Ranges = Sequence[tuple[int, int]]
"""Half-open ranges of the elements of a projection, in ascending order."""


class Basis(Protocol):
    """The projections of one adapter, as its config says to draw them."""

    @property
    def name(self) -> str:
        """The kind of basis, as recipes name it."""

    @property
    def key(self) -> int:
        """The seed."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Kind of projection -> shape, in the order of drawing."""

    @property
    def fixed(self) -> Mapping[str, str]:
        """Kinds that are stored in one dtype whatever the base model's is, and that dtype."""

    @property
    def layout(self) -> Mapping[str, Any]:
        """What decides the drawing beside the config and the shapes, as JSON; see `Projections.layout`."""

    @property
    def requires(self) -> tuple[str, ...]:
        """Further conditions under which PEFT draws it, a sentence each."""

    @property
    def generations(self) -> list[Generation]:
        """Every way in which a known torch draws it."""

    def chains(self, generation: Generation, stored: str) -> list[tuple[str, ...]]:
        """Every chain of casts from the dtype drawn in to a stored dtype, for the kinds that are not `fixed`."""

    def draw(self, generation: Generation) -> Iterator[tuple[str, Drawn]]:
        """Draw it as that generation does: kind and projection, in order, each drawn when it is asked for."""

    def draw_ranges(self, generation: Generation, wanted: Mapping[str, Ranges]) -> Iterator[tuple[str, Drawn]]:
        """As `draw`, where no other elements of a kind than these will be asked for."""

    def draw_with_torch(self, dtype: str) -> Iterator[tuple[str, Drawn]]:
        """Draw it with the installed torch, as PEFT does."""

    def fusing_matters(self, generation: Generation) -> bool:
        """Whether any element differs between a kernel that fuses multiply-add and one that does not."""


class WholeBasis:
    """The part of a `Basis` that is the same wherever elements can't be drawn without all that come before them."""

    def draw(self, generation: Generation) -> Iterator[tuple[str, Drawn]]:
        """See `Basis.draw`."""
        raise NotImplementedError

    def draw_ranges(self, generation: Generation, wanted: Mapping[str, Ranges]) -> Iterator[tuple[str, Drawn]]:
        """All elements are drawn."""
        return self.draw(generation)


class FloatBasis(WholeBasis):
    """The part of a `Basis` that is the same wherever floating point numbers are drawn and cast."""

    fixed: ClassVar[Mapping[str, str]] = {}

    @property
    def layout(self) -> Mapping[str, Any]:
        """Nothing beside the config and the shapes."""
        return {}

    @property
    def requires(self) -> tuple[str, ...]:
        """No further conditions."""
        return ()

    def chains(self, generation: Generation, stored: str) -> list[tuple[str, ...]]:
        """By way of any base dtype; see `cast_chains`."""
        return cast_chains(generation.dtype, stored) if stored in FLOATS else []


DEFAULT_DTYPE = "torch's default dtype is float32 when PEFT loads it, as it is without torch.set_default_dtype."
"""The condition of what PEFT draws in no dtype of its own choice.

Source: VeRA, PVeRA, TinyLoRA and RandLoRA's sparse bases name no dtype where they draw; all others do, or draw integers. Read
and run at PEFT 0.21.2.
"""


def kaiming_bound(fan_in: int) -> float:
    """The bound of `kaiming_uniform_(a=math.sqrt(5))`: 1/sqrt(fan_in) but for torch's own order of operations.

    Source: `torch/nn/init.py`, `calculate_gain("leaky_relu", a)` and `kaiming_uniform_`.
    """
    gain = math.sqrt(2.0 / (1 + math.sqrt(5) ** 2))
    return math.sqrt(3.0) * (gain / math.sqrt(fan_in))


BLOCKS = 32
"""Blocks of a basis that are drawn before they are put in place: one at a time would touch every cache line of it once for
each block."""


FEW = 1 << 20
"""Elements up to which a projection is drawn as a whole, whatever is asked for."""

TORCH_PIECE = 1 << 22
"""Elements that torch works on at a time: each of its calls wakes a thread for each processor."""

COUNTED = 1 << 20
"""Elements that are counted at a time, many times as many as there are values to count."""


@dataclass(frozen=True)
class RandLoraBasis(FloatBasis):
    """`randlora_A` (r, 1, smaller) and `randlora_B` (larger, bases, r), with bases = ceil(smaller / r).

    Source: `peft/tuners/randlora/model.py`, `_init_randlora_A_randlora_B` and `..._sparse`, unchanged from PEFT 0.15 to
    0.21.2. Every target layer slices what it needs from them, so (larger, smaller) are the larger and the smaller of the
    greatest out_features and the greatest in_features among the targeted layers.

    Attributes:
        key: `projection_prng_key`.
        name: `dense`, `sparse` or `very-sparse`.
        rank: `r`.
        larger: The larger dimension.
        smaller: The smaller one.
    """

    key: int
    name: Literal["dense", "sparse", "very-sparse"]
    rank: int
    larger: int
    smaller: int

    @property
    def requires(self) -> tuple[str, ...]:
        """Sparse bases are drawn in torch's default dtype."""
        return () if self.name == "dense" else (DEFAULT_DTYPE,)

    @property
    def bases(self) -> int:
        """How many times r-ranked bases it takes to reach full rank."""
        return -(-self.smaller // self.rank)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """A is drawn first, then B."""
        return {
            "randlora_A": (self.rank, 1, self.smaller),
            "randlora_B": (self.larger, self.bases, self.rank),
        }

    @property
    def generations(self) -> list[Generation]:
        """Dense bases are drawn in bfloat16, or in float16 where accelerate sees no bfloat16 support."""
        if self.name != "dense":
            return [Generation("any", None, "float32")]
        samplers: tuple[tuple[Sampler, bool | None], ...] = (
            ("torch>=2.12", True),
            ("torch>=2.12", False),
            ("torch<2.12", None),
        )
        return [Generation(sampler, fusing, dtype) for dtype in ("bfloat16", "float16") for sampler, fusing in samplers]

    @property
    def _sparsity(self) -> float:
        return 3 if self.name == "sparse" else math.sqrt(self.smaller)

    def draw(self, generation: Generation) -> Iterator[tuple[str, Drawn]]:
        """See `Basis.draw`."""
        stream = WordStream(self.key)
        if self.name == "dense":
            a = np.empty((1, self.rank * self.smaller), dtype=np.uint16)
            counts = self._fill(a, stream, self.smaller, generation)
            yield "randlora_A", _normalised_16_bit(a.reshape(-1), counts, generation.dtype)
            b = np.empty((self.larger, self.bases, self.rank), dtype=np.uint16)
            counts = np.zeros(1 << 16, dtype=np.int64)
            for begin in range(0, self.bases, BLOCKS):
                blocks = np.empty((min(BLOCKS, self.bases - begin), self.larger, self.rank), dtype=np.uint16)
                counts += self._fill(blocks, stream, self.rank, generation)
                b[:, begin : begin + BLOCKS] = blocks.transpose(1, 0, 2)
            yield "randlora_B", _normalised_16_bit(b.reshape(-1), counts, generation.dtype)
            return
        for kind, shape in self.shapes.items():
            signs = np.empty(math.prod(shape), dtype=np.int8)
            at = 0
            for piece in ahead(ternary(words, self._sparsity) for words in stream.pieces(signs.size)):
                signs[at : at + piece.size] = piece
                at += piece.size
            yield kind, _normalised_signs(signs)

    def draw_ranges(self, generation: Generation, wanted: Mapping[str, Ranges]) -> Iterator[tuple[str, Drawn]]:
        """Of a large dense B only those elements, where the deviation of all of them is known without drawing them."""
        numel = math.prod(self.shapes["randlora_B"])
        ranges = wanted.get("randlora_B", ((0, numel),))
        deviation = _certain_deviation(self.rank, numel, generation) if self.name == "dense" else None
        if deviation is None or numel < FEW or sum(stop - start for start, stop in ranges) > numel // 8:
            yield from self.draw(generation)
            return
        yield next(iter(self.draw(generation)))
        stream = WordStream(self.key)
        stream.skip(self.rank * self.smaller)
        # A run of `rank` elements stands together in the stream; the runs of one base come before those of the next.
        words = {
            each: np.empty((-(-each[1] // self.rank) - each[0] // self.rank, self.rank), np.uint32) for each in ranges
        }
        runs = [
            (run % self.bases, run // self.bases, out)
            for (start, _), wanted_words in words.items()
            for run, out in enumerate(wanted_words, start // self.rank)
        ]
        at = 0
        for base, row, out in sorted(runs, key=lambda run: run[:2]):
            begin = (base * self.larger + row) * self.rank
            stream.skip(begin - at)
            out[:] = stream.words(self.rank)
            at = begin + self.rank
        uniform = _uniform(self.rank, generation)
        codes = {
            (start, stop): uniform.compute(drawn.reshape(-1)[start % self.rank :][: stop - start])
            for (start, stop), drawn in words.items()
        }
        table = _divided(code_values(generation.dtype), deviation, generation.dtype)
        yield "randlora_B", Ranged(numel, codes, table, uniform.codes)

    def _fill(
        self, out: NDArray[np.uint16], stream: WordStream, fan_in: int, generation: Generation
    ) -> NDArray[np.int64]:
        """Draw the elements of a contiguous array, and count how often each of the 65,536 values occurs."""
        flat = out.reshape(-1)
        uniform = _uniform(fan_in, generation)
        at = 0
        for words in ahead(stream.pieces(flat.size)):
            uniform.draw(words, flat[at : at + words.size])
            at += words.size
        counts = np.zeros(1 << 16, dtype=np.int64)
        for begin in range(0, flat.size, COUNTED):
            counts += np.bincount(flat[begin : begin + COUNTED], minlength=1 << 16)
        return counts

    def draw_with_torch(self, dtype: str) -> Iterator[tuple[str, Drawn]]:
        """See `Basis.draw_with_torch`."""
        import torch

        generator = torch.Generator(device="cpu").manual_seed(self.key)
        if self.name == "dense":
            a = _kaiming(torch.empty((self.rank, 1, self.smaller), dtype=getattr(torch, dtype)), generator)
            yield "randlora_A", _torch_16_bit(a, dtype)
            bits = np.empty((self.larger, self.bases, self.rank), dtype=np.int16)
            for begin in range(0, self.bases, BLOCKS):
                # PEFT concatenates all blocks at once; a few at a time spare the second copy of the basis. numpy puts them in
                # place, since torch would keep a thread for each processor busy with waiting in between.
                blocks = [
                    _kaiming(torch.empty((self.larger, 1, self.rank), dtype=getattr(torch, dtype)), generator)
                    for _ in range(min(BLOCKS, self.bases - begin))
                ]
                drawn = [block.view(torch.int16).numpy() for block in blocks]
                np.concatenate(drawn, axis=1, out=bits[:, begin : begin + BLOCKS])
            b = torch.from_numpy(bits).view(getattr(torch, dtype))
            yield "randlora_B", _torch_16_bit(b, dtype)
            return
        uniform = {kind: torch.rand(shape, generator=generator) for kind, shape in self.shapes.items()}
        for kind in self.shapes:
            # In place and in pieces: what PEFT does in four tensors of the basis' size.
            flat = uniform.pop(kind).reshape(-1)
            signs = np.empty(flat.numel(), dtype=np.int8)
            for begin in range(0, flat.numel(), TORCH_PIECE):
                piece = flat[begin : begin + TORCH_PIECE]
                plus = piece > 1 - 1 / (2 * self._sparsity)
                minus = piece < 1 / (2 * self._sparsity)
                torch.sub(plus.float(), minus.float(), out=piece)
                signs[begin : begin + TORCH_PIECE] = piece.to(torch.int8).numpy()
            table = torch.tensor([0.0, 1.0, -1.0]) / flat.std()
            yield kind, Tabulated(signs, table.numpy())

    def fusing_matters(self, generation: Generation) -> bool:
        """See `Basis.fusing_matters`."""
        if generation.sampler != "torch>=2.12":
            return False
        stream = WordStream(self.key)
        draws = ((self.smaller, self.rank * self.smaller), (self.rank, self.bases * self.larger * self.rank))
        for fan_in, numel in draws:
            bound = kaiming_bound(fan_in)
            for begin in range(0, numel, CHUNK_WORDS):
                words = stream.words(min(CHUNK_WORDS, numel - begin))
                fused, apart = (
                    uniform_16_bit(
                        words, -bound, bound, generation.dtype, sampler="torch>=2.12", fused_multiply_add=fusing
                    )
                    for fusing in (True, False)
                )
                if not np.array_equal(fused, apart):
                    return True
        return False


def _uniform(fan_in: int, generation: Generation) -> Uniform16Bit:
    bound = kaiming_bound(fan_in)
    return Uniform16Bit(
        -bound,
        bound,
        generation.dtype,
        sampler=generation.sampler or "any",
        fused_multiply_add=bool(generation.fused_multiply_add),
    )


def _normalised_16_bit(codes: NDArray[np.uint16], counts: NDArray[np.int64], dtype: str) -> Tabulated:
    """Divide by the standard deviation, as `x / x.std()` does in a 16-bit dtype.

    torch accumulates in float64 and rounds the result by way of float32 (`ReduceOpsKernel.cpp`, WelfordOps). The sums over
    all elements are sums over the values that occur, weighted by how often they do.
    """
    values = code_values(dtype)
    present = np.flatnonzero(counts)
    weights, exact = counts[present], values[present].astype(np.float64)
    mean = float((weights * exact).sum()) / codes.size
    # Codes that are never drawn overflow; one element alone has no deviation.
    with np.errstate(all="ignore"):
        variance = np.float64((weights * (exact - mean) ** 2).sum()) / np.float64(codes.size - 1)
        return Tabulated(codes, _divided(values, float(np.sqrt(variance)), dtype))


def _divided(values: NDArray[np.float32], deviation: float, dtype: str) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        return rounded(values / rounded(np.array([deviation], dtype=np.float32), dtype)[0], dtype)


def _certain_deviation(fan_in: int, count: int, generation: Generation) -> float | None:
    """The standard deviation of so many draws, where it is sure to round to one number of the dtype; else None.

    Uniform numbers up to a bound b have the deviation b/√3, and that of `count` of them strays from it by √(0.2 / count) of
    its value: twelve times that is allowed for, and 1/4000 for the grid that they are drawn on and their rounding.
    """
    bound = np.array([kaiming_bound(fan_in)], dtype=np.float32)
    if generation.sampler == "torch<2.12":
        bound = rounded(bound, generation.dtype)
    deviation = float(bound[0]) / math.sqrt(3)
    margin = 12 * math.sqrt(0.2 / count) + 1 / 4000
    ends = np.array([deviation * (1 - margin), deviation * (1 + margin)], dtype=np.float32)
    low, high = rounded(ends, generation.dtype)
    return deviation if low == high else None


def _normalised_signs(signs: NDArray[np.int8]) -> Tabulated:
    """Divide -1, 0 and +1 by their standard deviation in float32."""
    plus, minus = int((signs > 0).sum()), int((signs < 0).sum())
    mean = (plus - minus) / signs.size
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.float64(
            plus * (1 - mean) ** 2 + minus * (1 + mean) ** 2 + (signs.size - plus - minus) * mean**2
        ) / np.float64(signs.size - 1)
        deviation = np.sqrt(variance).astype(np.float32)
        # Indices 0, 1 and -1: numpy counts a negative one from the end of the table.
        return Tabulated(signs, np.array([0.0, 1.0, -1.0], dtype=np.float32) / deviation)


def _kaiming(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """`kaiming_uniform_(a=math.sqrt(5))`, which takes no generator in torch 2.0."""
    bound = kaiming_bound(math.prod(tensor.shape[1:]))
    return tensor.uniform_(-bound, bound, generator=generator)


def _torch_16_bit(tensor: torch.Tensor, dtype: str) -> Tabulated:
    import torch

    table = torch.from_numpy(code_values(dtype)).to(tensor.dtype) / tensor.std()
    codes = tensor.reshape(-1).view(torch.int16).numpy().view(np.uint16)
    return Tabulated(codes, from_bits(table.view(torch.int16).numpy().view(np.uint16), dtype))
