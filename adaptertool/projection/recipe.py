"""A recipe: everything that decides the bits of a stored projection, and when PEFT will draw them again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adaptertool.checkpoint.header import TORCH_DTYPES
from adaptertool.projection.generation import Generation, Sampler

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.projection.basis import Basis
    from adaptertool.projection.loader import Loader


@dataclass(frozen=True)
class Recipe:
    """How stored bits come about.

    Attributes:
        key: The seed, `projection_prng_key`.
        basis: The kind of basis, such as `dense`.
        sampler: The generation of torch's CPU sampler; None for an installed torch whose sampler is none of the known ones.
        fused_multiply_add: Whether the kernel fused; None where it makes no difference to these bits.
        generated_dtype: The dtype they were drawn in.
        casts: The dtypes they were cast to, one after the other; the last one is the stored dtype.
        stored_dtype: The dtype in the file.
        layout: What else decides the drawing, as JSON; see `Basis.layout`.
    """

    key: int
    basis: str
    sampler: Sampler | None
    fused_multiply_add: bool | None
    generated_dtype: str
    casts: tuple[str, ...]
    stored_dtype: str
    layout: Mapping[str, Any] = field(default_factory=dict)

    @property
    def generation(self) -> Generation:
        """The way of drawing, without the casts."""
        return Generation(self.sampler, self.fused_multiply_add, self.generated_dtype)

    def as_json(self) -> dict[str, Any]:
        """The recipe as reports and fingerprints write it."""
        return {
            "key": self.key,
            "basis": self.basis,
            "sampler": self.sampler,
            "fused_multiply_add": self.fused_multiply_add,
            "generated_dtype": self.generated_dtype,
            "casts": list(self.casts),
            "stored_dtype": self.stored_dtype,
            **({"layout": dict(self.layout)} if self.layout else {}),
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Recipe:
        """Read what `as_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        casts, layout = document.get("casts"), document.get("layout", {})
        recipe = Recipe(
            key=document.get("key"),  # type: ignore[arg-type]
            basis=document.get("basis"),  # type: ignore[arg-type]
            sampler=document.get("sampler"),
            fused_multiply_add=document.get("fused_multiply_add"),
            generated_dtype=document.get("generated_dtype"),  # type: ignore[arg-type]
            casts=tuple(casts) if isinstance(casts, list) else (),
            stored_dtype=document.get("stored_dtype"),  # type: ignore[arg-type]
            layout=layout,
        )
        known = tuple(TORCH_DTYPES.values())
        if (
            type(recipe.key) is not int
            or not -(2**63) <= recipe.key < 2**64
            or not isinstance(recipe.basis, str)
            or recipe.sampler not in ("torch<2.12", "torch>=2.12", "any", None)
            or recipe.fused_multiply_add not in (True, False, None)
            or recipe.generated_dtype not in known
            or not recipe.casts
            or any(dtype not in known for dtype in recipe.casts)
            or recipe.casts[-1] != recipe.stored_dtype
            or not isinstance(layout, dict)
        ):
            raise ValueError("it holds no recipe that this version knows")
        return recipe


def recipe_for(basis: Basis, generation: Generation, casts: tuple[str, ...]) -> Recipe:
    """The recipe of bits that were found to be drawn this way."""
    matters = basis.fusing_matters(generation)
    return Recipe(
        key=basis.key,
        basis=basis.name,
        sampler=generation.sampler,
        fused_multiply_add=generation.fused_multiply_add if matters else None,
        generated_dtype=generation.dtype,
        casts=casts,
        stored_dtype=casts[-1],
        layout=basis.layout,
    )


def drawable(basis: Basis, generation: Generation) -> bool:
    """Whether any known torch draws this basis this way."""
    return any(
        (known.sampler, known.dtype) == (generation.sampler, generation.dtype)
        and generation.fused_multiply_add in (None, known.fused_multiply_add)
        for known in basis.generations
    )


def draws(loader: Loader, generation: Generation) -> bool:
    """Whether PEFT with this torch draws this way."""
    return (
        generation.dtype in (loader.dtype, "float32", "int64")
        and generation.sampler in ("any", loader.sampler)
        and generation.fused_multiply_add in (None, loader.fused_multiply_add)
    )


def why_not(loader: Loader, generation: Generation) -> str:
    """In what this torch differs from one that draws this way, in a sentence."""
    differences = []
    if generation.dtype not in (loader.dtype, "float32", "int64"):
        differences.append(f"they were drawn in {generation.dtype}, and PEFT draws in {loader.dtype} here")
    if generation.sampler not in ("any", loader.sampler):
        version = {"torch<2.12": "torch 2.11 or older", "torch>=2.12": "torch 2.12 or newer"}.get(
            str(generation.sampler)
        )
        differences.append(f"they were drawn by the sampler of {version or 'another torch'}")
    if generation.fused_multiply_add not in (None, loader.fused_multiply_add):
        differences.append(
            f"they were drawn {'with' if generation.fused_multiply_add else 'without'} fused multiply-add"
        )
    return f"{loader.name} draws other projections from this config: {' and '.join(differences)}"


def conditions(recipe: Recipe, base_dtypes: tuple[str, ...] | None) -> tuple[str, ...]:
    """The conditions under which PEFT draws these very bits again, a sentence each.

    Args:
        recipe: How they come about.
        base_dtypes: The dtypes of the base model under which the casts come to the same values; None where nothing is cast.
    """
    sentences = [
        {
            "torch<2.12": "torch 2.0 to 2.11 (the CPU sampler changed in 2.12).",
            "torch>=2.12": "torch 2.12 or newer (the CPU sampler changed in 2.12).",
            "any": "Any torch from 2.0 on.",
        }.get(recipe.sampler or "", "The torch that is installed here, whose sampler is none of the known ones.")
    ]
    if recipe.fused_multiply_add is not None:
        sentences.append(
            "A processor on which torch fuses multiply-add (AVX2, AVX-512 or 64-bit ARM; not "
            "ATEN_CPU_CAPABILITY=default)."
            if recipe.fused_multiply_add
            else "A processor on which torch does not fuse multiply-add (ATEN_CPU_CAPABILITY=default)."
        )
    if recipe.generated_dtype == "bfloat16":
        sentences.append("A machine with bfloat16 support, as accelerate's is_bf16_available tells.")
    if recipe.generated_dtype == "float16":
        sentences.append("A machine without bfloat16 support, as accelerate's is_bf16_available tells.")
    if base_dtypes is None:
        return tuple(sentences)
    if base_dtypes:
        *others, last = base_dtypes
        sentences.append(f"The base model loaded in {', '.join(others) + ' or ' + last if others else last}.")
    else:
        sentences.append(
            f"The base model loaded so that its layers cast the projections as before: {', '.join(recipe.casts)}."
        )
    return tuple(sentences)
