r"""Milliseconds and memory of log-probability and entropy with gradients, kernel against chunks.

    python -m tests.benchmarks.head_kernel --tiles all --chunked

On a GPU, by default 8,192 tokens x 4,096 x 151,936 words in bfloat16, weights too. The median and
the spread of repeats, the bytes that a pass adds at its peak, and the rate at which it does the
work of four matrix products (logits twice, two gradients).
"""

import argparse
import statistics
from collections.abc import Callable

import torch

from rlvr.policy.head_kernel import TILES, head_logprobs_and_entropy
from rlvr.policy.token_stats import token_stats


def main() -> None:
    """Measure and print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--words", type=int, default=151936)
    parser.add_argument("--weights", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--tiles", default="large", help="names by commas, or all")
    parser.add_argument("--chunked", action="store_true", help="the chunks as well")
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no GPU")
    torch.manual_seed(0)
    sizes = {"device": "cuda", "dtype": torch.bfloat16}
    hidden_ND = torch.randn(options.tokens, options.width, **sizes).requires_grad_()
    weight_VD = (0.02 * torch.randn(options.words, options.width, **sizes)).to(
        getattr(torch, options.weights)
    )
    weight_VD.requires_grad_()
    targets_N = torch.randint(options.words, (options.tokens,), device="cuda")
    names = list(TILES)[:-1] if options.tiles == "all" else options.tiles.split(",")
    ways: dict[str, Callable[[], tuple[torch.Tensor, torch.Tensor | None]]] = {
        name: lambda tile=TILES[name]: head_logprobs_and_entropy(
            hidden_ND, weight_VD, targets_N, tile=tile
        )
        for name in names
    }
    if options.chunked:
        ways["chunked"] = lambda: token_stats(hidden_ND, weight_VD, targets_N, entropy=True)[:2]
    work = 2 * options.tokens * options.width * options.words
    print(f"{torch.cuda.get_device_name()}, {options.tokens} x {options.width} x {options.words}")
    print("tiles       forward ms   both ms (lowest to highest)   TFLOP/s   added GiB")
    for name, way in ways.items():
        forward, both, peak = measure(way, (hidden_ND, weight_VD), options.repeats)
        median = statistics.median(both)
        print(
            f"{name:10s}  {statistics.median(forward):10.1f}   {median:7.1f} "
            f"({min(both):.1f} to {max(both):.1f})   {4 * work / median / 1e9:7.0f}   "
            f"{peak / 2**30:9.2f}",
            flush=True,
        )


def measure(
    way: Callable[[], tuple[torch.Tensor, torch.Tensor | None]],
    inputs: tuple[torch.Tensor, ...],
    repeats: int,
) -> tuple[list[float], list[float], int]:
    """Milliseconds of forward alone and with backward, and bytes on top of the inputs."""
    forward, both, peak = [], [], 0
    for repeat in range(repeats + 2):  # the first compile and warm up
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
        marks[0].record()
        logprobs_N, entropy_N = way()
        marks[1].record()
        assert entropy_N is not None
        gradients = torch.autograd.grad((logprobs_N + 0.01 * entropy_N).sum(), inputs)
        marks[2].record()
        torch.cuda.synchronize()
        peak = max(peak, torch.cuda.max_memory_allocated() - before)
        del gradients, logprobs_N, entropy_N
        if repeat >= 2:
            forward.append(marks[0].elapsed_time(marks[1]))
            both.append(marks[0].elapsed_time(marks[2]))
    return forward, both, peak


if __name__ == "__main__":
    main()
