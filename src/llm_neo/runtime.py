"""Where the arithmetic runs, in which precision and why, and on what software and hardware."""

import ctypes
import gc
import platform
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_neo.errors import InputError

if TYPE_CHECKING:
    import torch

_PACKAGES = (
    "llm-neo",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "tokenizers",
    "safetensors",
    "datasets",
    "gguf",
    "numpy",
    "scipy",
    "torchmetrics",
)
_BFLOAT16_UNITS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


@dataclass(frozen=True)
class Precision:
    """The number format of the frozen weights and of the matrix products.

    Attributes:
        dtype: torch.bfloat16 or torch.float32.
        reason: why, as a sentence that begins with the format.
        slow: the choice runs without hardware support; worth a warning.
    """

    dtype: "torch.dtype"
    reason: str
    slow: bool = False


def select_device(name: str) -> "torch.device":
    """The device of a run.

    Args:
        name: "auto" (CUDA where there is some), "cpu" or "cuda".

    Returns:
        The device.

    Raises:
        InputError: CUDA is asked for and PyTorch sees none.
    """
    import torch

    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError(
            f"runtime.device is cuda, but PyTorch {torch.__version__} sees no CUDA device; set runtime.device=auto "
            "or cpu, or install a PyTorch with CUDA and a driver that fits it"
        )
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def select_precision(name: str, device: "torch.device") -> Precision:
    """The precision of a run: bfloat16 where the hardware multiplies it, else float32.

    Args:
        name: "auto", "bfloat16" or "float32".
        device: where the run takes place.

    Returns:
        The precision with its reason.
    """
    import torch

    kind = "processor" if device.type == "cpu" else "GPU"
    units = has_bfloat16_units(device)
    if name == "float32":
        return Precision(torch.float32, "float32: the recipe asks for it")
    if name == "bfloat16" and not units:
        reason = f"bfloat16: the recipe asks for it, though this {kind} has no bfloat16 units, so it may be slower"
        return Precision(torch.bfloat16, reason, slow=True)
    if name == "bfloat16":
        return Precision(torch.bfloat16, "bfloat16: the recipe asks for it")
    if units:
        return Precision(torch.bfloat16, f"bfloat16: this {kind} has units for it")
    return Precision(torch.float32, f"float32: this {kind} has no bfloat16 units")


def has_bfloat16_units(device: "torch.device") -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware (AVX512-BF16, AMX, Arm BF16, NVIDIA Ampere)."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    return bfloat16_in(capabilities() if capabilities else {}, Path("/proc/cpuinfo"))


def bfloat16_in(capabilities: Mapping[str, Any], cpuinfo: Path) -> bool:
    """Look for bfloat16 units in what PyTorch says of the processor or, where it says nothing, the kernel.

    Args:
        capabilities: `torch.cpu.get_capabilities()`; empty for a PyTorch without it.
        cpuinfo: the kernel's description; only Linux has one.

    Returns:
        True where one of the units is named and present.
    """
    if capabilities:
        return any(bool(capabilities.get(unit)) for unit in _BFLOAT16_UNITS)
    flags = _cpuinfo_lines(cpuinfo, ("flags", "Features"))
    return bool(set(_BFLOAT16_UNITS) & set(" ".join(flags).split()))


def _cpuinfo_lines(cpuinfo: Path, keys: tuple[str, ...]) -> list[str]:
    """The values of the first of each of the keys that the kernel's description has."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    pairs = (line.partition(":") for line in text.splitlines())
    found: dict[str, str] = {}
    for key, _, value in pairs:
        if key.strip() in keys:
            found.setdefault(key.strip(), value.strip())
    return list(found.values())


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch (each device); 0 is a seed like any other."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def versions() -> dict[str, str]:
    """What the run ran on: packages (read from their metadata, not imported), platform, processor, GPU, threads.

    Nothing is taken from the environment variables or the host's name, so no secret can be in it.
    """
    import torch

    names = _cpuinfo_lines(Path("/proc/cpuinfo"), ("model name",)) or [platform.processor() or platform.machine()]
    found = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": names[0],
        "threads": str(torch.get_num_threads()),
    }
    if torch.cuda.is_available():
        found |= {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def release(device: "torch.device") -> None:
    """Give back what freed models held: collect cycles, empty CUDA's cache, return glibc's free pages.

    Args:
        device: where the freed tensors lived.
    """
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
