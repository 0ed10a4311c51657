"""What the machine is, and its limits: matrix products in bfloat16 and copies of memory."""

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from rlvr.bench.ceilings import measure_ceilings
from tests.gpu.kit import Row, Setting
from tests.gpu.shapes import device_of

PACKAGES = ("torch", "triton", "transformers", "accelerate", "peft", "numpy", "pydantic")


def measure(setting: Setting) -> Iterator[Row]:
    """One row of names and versions, one of limits."""
    device = device_of()
    yield {
        "device": device_name(device),
        "memory_gib": _memory_gib(device),
        "cores": os.cpu_count(),
        "versions": ", ".join(_versions()),
    }
    width = setting.pick(64, 8192)
    ceilings = measure_ceilings(width, width, width, "bfloat16", device)
    yield {
        "matmul_tflops": ceilings.matmul_flops / 1e12,
        "copy_gb_per_second": ceilings.copy_bytes / 1e9,
    }


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def _memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2**30
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _versions() -> Iterator[str]:
    yield f"Python {platform.python_version()}"
    for name in PACKAGES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"{name} none"
    if torch.version.cuda:
        yield f"CUDA {torch.version.cuda}"
