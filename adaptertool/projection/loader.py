"""The torch that will load an adapter: the installed one, found out by asking it, or a version that the user names."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adaptertool.errors import UsageError

if TYPE_CHECKING:
    from adaptertool.projection.generation import Sampler

OLDEST = (2, 0)
"""The oldest torch whose drawing is known; PEFT 0.16, the first release read for this, asks for torch 1.13, RandLoRA for 2."""

NEW_SAMPLER = (2, 12)
"""pytorch/pytorch#175988, first released in torch 2.12.0."""

# Enough elements that a fused kernel and one that does not fuse are sure to differ (19 do).
_PROBE_SHAPE = (64, 1, 4096)


@dataclass(frozen=True)
class Loader:
    """A torch, as far as it decides which projections PEFT draws.

    Attributes:
        name: As sentences name it, such as `torch 2.13.0`.
        sampler: The generation of its 16-bit CPU sampler; None for one that is not known.
        fused_multiply_add: Whether its CPU kernels fuse multiply-add.
        dtype: The dtype in which PEFT draws dense RandLoRA bases with it.
        installed: Whether it is the one in this Python environment, and was asked what it draws.
        concluded: Whether it is that one, and was not asked: its version and the processor tell what it should draw.
    """

    name: str
    sampler: Sampler | None
    fused_multiply_add: bool
    dtype: str
    installed: bool
    concluded: bool = False

    def draws_like(self, other: Loader) -> bool:
        """Whether it draws as the other one does."""
        mine = self.sampler, self.fused_multiply_add, self.dtype
        return mine == (other.sampler, other.fused_multiply_add, other.dtype)


def torch_is_installed() -> bool:
    """Whether torch can be imported, found out without importing it."""
    return importlib.util.find_spec("torch") is not None


def loader_for(version: str | None, *, ask: bool = True) -> Loader | None:
    """The torch that will load the adapter.

    Args:
        version: What `--for-torch` names; None means the installed torch.
        ask: Whether the installed torch is imported and asked, which takes a second. Otherwise that is only done where its
            version and the processor leave open what it draws.

    Returns:
        None where no version is named and torch is not installed.

    Raises:
        UsageError: the version is none, or older than torch 2.0.
    """
    if version is None:
        if not torch_is_installed():
            return None
        return (None if ask else _concluded()) or asked()
    fused = _installed_fuses() if ask and torch_is_installed() else _cpu_fuses()
    return Loader(f"torch {version}", _sampler_of(parse_version(version)), fused, "bfloat16", installed=False)


def parse_version(version: str) -> tuple[int, int]:
    """Major and minor number of a torch version such as `2.11`, `2.13.0` or `2.12.1+cu130`.

    Raises:
        UsageError: it is none, or older than torch 2.0.
    """
    match = re.fullmatch(r"v?(\d{1,4})\.(\d{1,4})(\.\d{1,4})?((\.dev|a|b|rc)\d+)?(\+[\w.]+)?", version.strip())
    if match is None:
        raise UsageError(f"{version!r} is no torch version", hint="Name one such as 2.11 or 2.13.0.")
    numbers = int(match[1]), int(match[2])
    if numbers < OLDEST:
        raise UsageError(f"torch {version} is too old: how it draws is known from 2.0 on")
    return numbers


def _sampler_of(version: tuple[int, int]) -> Sampler:
    return "torch>=2.12" if version >= NEW_SAMPLER else "torch<2.12"


def _concluded() -> Loader | None:
    """The installed torch as far as its version and this machine tell; None where they leave something open."""
    if "torch" in sys.modules:
        return None
    from importlib import metadata

    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None
    # A release; a build on the way to one can be before a change or after it.
    if not re.fullmatch(r"\d{1,4}\.\d{1,4}\.\d{1,4}(\+[\w.]+)?", version) or _may_have_accelerator(version):
        return None
    numbers = int(version.split(".")[0]), int(version.split(".")[1])
    if numbers < OLDEST:
        return None
    return Loader(f"torch {version}", _sampler_of(numbers), _cpu_fuses(), "bfloat16", installed=False, concluded=True)


def _may_have_accelerator(version: str) -> bool:
    """Whether an accelerator may have a say in the dtype that PEFT draws in; only torch itself knows what it can do."""
    if version.endswith("+cpu"):
        return False
    devices = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg")
    return platform.system() != "Linux" or any(Path(device).exists() for device in devices)


def asked() -> Loader:
    """The installed torch, asked what it draws."""
    import torch

    return Loader(
        name=f"torch {torch.__version__}",
        sampler=_probe_16_bit(),
        fused_multiply_add=_installed_fuses(),
        dtype="bfloat16" if _has_bfloat16() else "float16",
        installed=True,
    )


def _probe_16_bit() -> Sampler | None:
    """Which of the known samplers the installed torch has: the one that draws what it draws."""
    import numpy as np
    import torch

    from adaptertool.projection.basis import kaiming_bound
    from adaptertool.projection.sampler import WordStream, uniform_16_bit

    tensor = torch.empty(_PROBE_SHAPE, dtype=torch.bfloat16)
    bound = kaiming_bound(_PROBE_SHAPE[-1])
    # What kaiming_uniform_ does, which takes no generator in torch 2.0.
    tensor.uniform_(-bound, bound, generator=torch.Generator(device="cpu").manual_seed(0))
    drawn = tensor.view(torch.int16).numpy().view(np.uint16).reshape(-1)
    words = WordStream(0).words(drawn.size)
    samplers: tuple[Sampler, ...] = ("torch>=2.12", "torch<2.12")
    for sampler in samplers:
        for fused in (_installed_fuses(), not _installed_fuses()):
            known = uniform_16_bit(words, -bound, bound, "bfloat16", sampler=sampler, fused_multiply_add=fused)
            if np.array_equal(drawn, known):
                return sampler
    return None


def _installed_fuses() -> bool:
    """Whether the installed torch's CPU kernels fuse multiply-add; float32 uniforms show it under every version."""
    import numpy as np
    import torch

    from adaptertool.projection.sampler import WordStream, uniform_float32

    generator = torch.Generator(device="cpu").manual_seed(0)
    drawn = torch.empty(4096).uniform_(-0.3, 0.3, generator=generator).numpy()
    return np.array_equal(drawn, uniform_float32(WordStream(0).words(4096), -0.3, 0.3, fused_multiply_add=True))


def _cpu_fuses() -> bool:
    """Whether torch's kernels would fuse on this machine, from what its processor offers.

    torch takes its AVX2 kernels where the processor has AVX2 and FMA3, and compilers fuse on 64-bit ARM by default.
    """
    # torch compares the value as it stands, and passes over one that it does not know.
    if os.environ.get("ATEN_CPU_CAPABILITY") == "default":
        return False
    if platform.machine().lower() in ("arm64", "aarch64"):
        return True
    import importlib

    import numpy as np

    core = "numpy._core" if int(np.__version__.split(".")[0]) >= 2 else "numpy.core"
    features = importlib.import_module(f"{core}._multiarray_umath").__cpu_features__
    return bool(features.get("AVX2")) and bool(features.get("FMA3"))


def _has_bfloat16() -> bool:
    """What accelerate's `is_bf16_available` says, without its import of everything else (read at accelerate 1.15)."""
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    if torch.backends.mps.is_available():
        return bool(torch.backends.mps.is_macos_or_newer(14, 0))
    return True
