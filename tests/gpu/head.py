"""Log-probability and entropy of tokens from hidden states: seconds, memory and error of each way.

    plain      logits of all tokens at once, log-softmax in float32, autograd
    chunked    rlvr/policy/token_stats.py
    NAME       rlvr/policy/head_kernel.py with the tile of this name

Hidden states and weights are bfloat16, the shapes those of the models' output heads. The error is
the largest of the log-probabilities of some tokens, against float64 on the same device.
"""

import os
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

from rlvr.policy.token_stats import token_stats
from tests.gpu.kit import SEED, Row, Setting, attempt
from tests.gpu.shapes import device_of, forget, peak_gib, synchronize

Way = Callable[..., tuple[torch.Tensor, torch.Tensor]]
_TILES_OF_A_CPU = ("float32",)


def measure(setting: Setting) -> Iterator[Row]:
    """A row for each way and shape; the kernel's chosen tile comes first, other tiles last."""
    device = device_of()
    shapes = setting.pick([(24, 32, 500)], [(8192, 1024, 151_936), (8192, 1536, 151_936)])
    main, others = ways(device)
    for shape in shapes:
        for name, way in main.items():
            yield attempt({"way": name}, partial(timed, way, shape, device))
    for name, way in others.items():
        yield attempt({"way": name}, partial(timed, way, shapes[0], device))


def ways(device: torch.device) -> tuple[dict[str, Way], dict[str, Way]]:
    """What is measured at every shape, and the kernel's tiles, at one."""
    main: dict[str, Way] = {"plain": plain, "chunked": chunked}
    kernel = head_kernel(device)
    if kernel is None:
        return main, {}
    statistics = kernel.head_logprobs_and_entropy
    names = [n for n in kernel.TILES if device.type == "cuda" or n in _TILES_OF_A_CPU]
    tiles = {f"kernel, {n}": partial(statistics, tile=kernel.TILES[n]) for n in names}
    return main | {"kernel": statistics}, tiles


def head_kernel(device: torch.device):
    """The module of the kernels, or None where Triton is missing."""
    if device.type != "cuda":
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    try:
        from rlvr.policy import head_kernel
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        return None
    return head_kernel


def plain(hidden_ND, weight_VD, targets_N):
    """All logits at once."""
    logp_NV = torch.log_softmax((hidden_ND @ weight_VD.T).float(), -1)
    logprobs_N = logp_NV.gather(-1, targets_N[:, None])[:, 0]
    return logprobs_N, -(logp_NV.exp() * logp_NV).sum(-1)


def chunked(hidden_ND, weight_VD, targets_N):
    """As the learner takes them."""
    stats = token_stats(hidden_ND, weight_VD, targets_N, entropy=True)
    return stats.logprobs_N, stats.entropy_N


def timed(way: Way, shape: tuple[int, int, int], device: torch.device) -> Row:
    """Milliseconds forward, and forward and backward; the median of three after one."""
    tokens, width, words = shape
    row: Row = {"tokens": tokens, "width": width, "words": words}
    inputs = make_inputs(tokens, width, words, device)
    forget()
    try:
        with torch.no_grad():
            row["forward_ms"] = _milliseconds(lambda: way(*inputs))
        row["both_ms"] = _milliseconds(lambda: _both(way, inputs))
    except torch.OutOfMemoryError:
        return row | {"note": "out of memory"}
    row["peak_gib"] = peak_gib()
    row["tflops"] = 8 * tokens * width * words / row["both_ms"] / 1e9
    row["error"] = error_of(way, inputs)
    return row


def make_inputs(tokens, width, words, device):
    """Hidden states, head and targets whose logits have a standard deviation of 2."""
    generator = torch.Generator(device).manual_seed(SEED)
    options = {"generator": generator, "device": device}
    hidden_ND = torch.randn(tokens, width, **options).bfloat16().requires_grad_()
    weight_VD = torch.randn(words, width, **options).mul_(2 / width**0.5).bfloat16()
    return hidden_ND, weight_VD.requires_grad_(), torch.randint(words, (tokens,), **options)


def _both(way: Way, inputs) -> None:
    logprobs_N, entropy_N = way(*inputs)
    torch.autograd.grad(logprobs_N.mean() + 0.01 * entropy_N.mean(), inputs[:2])


def _milliseconds(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(4):
        synchronize()
        began = time.perf_counter()
        work()
        synchronize()
        seconds.append(time.perf_counter() - began)
    return 1e3 * sorted(seconds[1:])[1]


def error_of(way: Way, inputs, rows: int = 128) -> float:
    """Largest difference of log-probabilities from float64, in nats."""
    with torch.no_grad():
        found, _ = way(*inputs)
        hidden, weight, targets = inputs
        logits = hidden[:rows].double() @ weight.double().T
        wanted = torch.log_softmax(logits, -1).gather(-1, targets[:rows, None])[:, 0]
    return float((found[:rows].double() - wanted).abs().max())
