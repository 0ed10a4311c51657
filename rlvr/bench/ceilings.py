"""The limits of this machine, measured in the same run as the figures compared with them."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ceilings:
    """Highest rates of the machine.

    Attributes:
        matmul_flops: Floating-point operations per second of matrix products in the model's shapes
            and precision.
        copy_bytes: Bytes per second written by copying memory.
        vllm_tokens: Tokens per second of vLLM's ``LLM.generate``; None if not measured.
    """

    matmul_flops: float
    copy_bytes: float
    vllm_tokens: float | None = None


def measure_ceilings(
    hidden: int, intermediate: int, rows: int, precision: str, device: torch.device
) -> Ceilings:
    """Time products of [rows, hidden] and [hidden, intermediate], and copies of 256 MiB."""
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    left = torch.randn(rows, hidden, device=device).to(dtype)
    right = torch.randn(hidden, intermediate, device=device).to(dtype)
    seconds = _seconds(lambda: left @ right, device)
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    copying = _seconds(lambda: target.copy_(source), device)
    return Ceilings(
        matmul_flops=2 * rows * hidden * intermediate / seconds,
        copy_bytes=source.numel() * 4 / copying,
    )


def _seconds(work: Callable[[], object], device: torch.device, least_s: float = 0.2) -> float:
    """Median seconds of one call, from several blocks that are long enough to be timed."""

    def block(calls: int) -> float:
        began = time.perf_counter()
        for _ in range(calls):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    block(2)
    calls = 1
    while block(calls) < least_s:
        calls *= 2
    return statistics.median(block(calls) / calls for _ in range(5))
