r"""Log-probability and entropy of given tokens, from hidden states, as Triton kernels.

With z = (h W^T + b) / temperature and p = softmax(z), for N tokens over V words:

    logprob = z_y - logsumexp(z)            d logprob / dz = e_y - p
    entropy = -sum_v p_v log p_v            d entropy / dz = -p (log p + entropy)

**Forward** is one matrix product whose tiles [128 x 256] never leave the chip. Of each tile and row
three numbers are written: the largest logit m, the sum s of e^(z-m) and the moment u, the sum of
e^(z-m) (z-m); a second, small kernel puts a row's tiles together, in order:

    M = max m    S = sum s e^(m-M)    U = sum e^(m-M) (u + (m-M) s)
    logsumexp = M + log S             entropy = log S - U / S

so that entropy is no difference of large numbers. For 8,192 tokens of 151,936 words the three are
58 MB; the logits would be 5 GB in fp32.

**Backward** forms the tiles again, turns them into gradients by the formulas above, and writes
those of a strip of the vocabulary, [N x C] with N C at most 2^27 (256 MiB in bfloat16). Two matrix
products of torch take it from there: the strip's rows of dW, complete at once, and a summand of dh,
added up in fp32. Strips of words rather than of tokens, since dW is 60 times as large as dh: it is
written once and never read. torch's products rather than more Triton, since they are half of all
work and cuBLAS is the faster at a plain product. No atomics: two runs give the same bits.

What is to be expected: the logits twice and two gradients are 4 x 2 N D V = 41 TFLOP at 8,192 x
4,096 x 151,936, so 60 to 70 ms where tiles run at 550 and cuBLAS at 700 TFLOP/s, and about 3 GiB
with weights and gradients in bfloat16. Computed, not measured: ``tests/benchmarks/head_kernel.py``
measures it on a GPU.

Tiles are fixed, not autotuned: a choice by stopwatch can differ between runs and ranks, and the
order of summation with it. A token's log-probability and entropy are the same bits whatever other
tokens are computed with it. Products are in the dtype of ``hidden_ND``, sums in fp32.

Not here: statistics that read whole rows of log p (``rlvr/objective/token_statistic.py``), which
stay with the chunks of ``rlvr/policy/token_stats.py``; filtering of small gradients, which is not
exact. The online sums are those of Milakov and Gimelshein, arXiv:1805.02867; the loss of a large
vocabulary without its logits is that of Wijmans et al., arXiv:2411.09009.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from rlvr.policy import head_tiles


class Tile(NamedTuple):
    """What a program computes: ``tokens`` x ``words`` logits, ``depth`` of D at a time.

    Each is a power of two, at least 16. ``warps`` and ``stages`` are Triton's; of ``group`` rows of
    tiles the programs run together, which share what they read of the weights in the cache.
    """

    tokens: int
    words: int
    depth: int
    warps: int = 8
    stages: int = 3
    group: int = 16


TILES = {
    "large": Tile(128, 256, 64),
    "deep": Tile(128, 256, 64, stages=4),
    "square": Tile(128, 128, 64, stages=4),
    "narrow": Tile(64, 256, 64, warps=4),
    "small": Tile(64, 128, 32, warps=4),
    "float32": Tile(64, 64, 32, warps=4, stages=2),
}
"""By name: large is for bfloat16 on a data-centre GPU, small for others; more to measure."""

# Logit gradients that exist at once.
_STRIP = 2**27
# Shared memory of a multiprocessor that tile "large" needs: 3 stages of (128 + 256) x 64 x 2 bytes.
_LARGE_BYTES = 3 * (128 + 256) * 64 * 2
# Of the second kernel: tokens of a program, and how many of their tiles it adds up at once.
_SUMMED = {"TOKENS": 16, "TILES": 64}


def head_logprobs_and_entropy(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_N: torch.Tensor,
    *,
    temperature: float = 1.0,
    bias_V: torch.Tensor | None = None,
    tile: Tile | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability [N] and entropy [N] of tokens, in nats, in at least float32; differentiable.

    Args:
        hidden_ND: Final hidden states; their dtype is that of the matrix products.
        weight_VD: The output head; rounded to that dtype, its gradient is in its own.
        targets_N: Token ids; the log-probability of one outside of the vocabulary is NaN.
        temperature: > 0.
        bias_V: The head's bias; minus infinity makes a token impossible.
        tile: One of :data:`TILES`; None chooses by dtype and GPU.

    Raises:
        ValueError: ``temperature`` is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature {temperature} is not positive; sample greedily elsewhere")
    chosen = tile or _default_tile(hidden_ND)
    logprobs_N, entropy_N = _HeadStats.apply(
        hidden_ND, weight_VD, bias_V, targets_N, temperature, chosen
    )
    return logprobs_N, entropy_N


def _default_tile(hidden_ND: torch.Tensor) -> Tile:
    if hidden_ND.dtype.itemsize > 2:
        return TILES["float32"]
    if hidden_ND.is_cuda:
        driver = triton.runtime.driver.active
        shared = driver.utils.get_device_properties(hidden_ND.get_device())["max_shared_mem"]
        if shared < _LARGE_BYTES:
            return TILES["small"]
    return TILES["large"]


class _HeadStats(torch.autograd.Function):
    """Launches the kernels; formulas in the module docstring."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_N: torch.Tensor,
        temperature: float,
        tile: Tile,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = _Inputs(hidden_ND, weight_VD, bias_V, targets_N, temperature, tile)
        with torch.cuda.device_of(hidden_ND):
            logprobs_N, entropy_N, lse_N = inputs.forward()
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N, entropy_N, lse_N)
        ctx.temperature, ctx.tile = temperature, tile
        ctx.set_materialize_grads(False)
        return logprobs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        grad_logprobs_N: torch.Tensor | None,
        grad_entropy_N: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, targets_N, entropy_N, lse_N = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        inputs = _Inputs(hidden_ND, weight_VD, bias_V, targets_N, ctx.temperature, ctx.tile)
        wide = lse_N.dtype
        runs = inputs.count > 0 and any(g is not None for g in (grad_logprobs_N, grad_entropy_N))
        grad_hidden = torch.zeros_like(hidden_ND, dtype=wide) if needs_hidden else None
        summand = torch.empty_like(hidden_ND, dtype=wide)
        empty = torch.empty_like if runs else torch.zeros_like
        grad_weight = empty(weight_VD) if needs_weight else None
        grad_bias = empty(bias_V) if needs_bias else None
        plain = torch.autocast(hidden_ND.device.type, enabled=False)
        with plain, torch.cuda.device_of(hidden_ND):
            for part in inputs.strips() if runs else ():
                grad_NC = inputs.strip(part, lse_N, entropy_N, grad_logprobs_N, grad_entropy_N)
                if grad_hidden is not None:
                    _multiply(grad_NC, inputs.weight_VD[part], out=summand)
                    grad_hidden += summand
                if grad_weight is not None:
                    _multiply(grad_NC.T, inputs.hidden_ND, out=grad_weight[part])
                if grad_bias is not None:
                    grad_bias[part] = grad_NC.sum(0, dtype=wide)
        if grad_hidden is not None:
            grad_hidden = grad_hidden.to(hidden_ND.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None


def _multiply(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
    """left @ right, rounded once, to the dtype of ``out``."""
    if out.dtype == left.dtype:
        torch.mm(left, right, out=out)
    elif left.is_cuda and out.dtype == torch.float32:
        torch.mm(left, right, out_dtype=torch.float32, out=out)
    else:
        out.copy_(left.float() @ right.float())


class _Inputs:
    """What both directions read, laid out for the kernels."""

    def __init__(
        self,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_N: torch.Tensor,
        temperature: float,
        tile: Tile,
    ) -> None:
        dtype = hidden_ND.dtype
        self.wide = torch.promote_types(dtype, torch.float32)
        self.hidden_ND = hidden_ND.contiguous()
        self.weight_VD = weight_VD.to(dtype).contiguous()
        self.targets_N, self.tile = targets_N.contiguous(), tile
        self.count, self.words = len(hidden_ND), len(weight_VD)
        # On the device, in full precision: a float argument of a kernel is fp32.
        self.scale_1 = hidden_ND.new_full((1,), 1 / temperature, dtype=self.wide)
        self.bias_V = None if bias_V is None else bias_V.to(self.wide).contiguous()
        # Triton's interpreter, which is what runs on a CPU, multiplies the bits of bfloat16.
        interpreted = not hidden_ND.is_cuda and dtype != torch.float64
        names = {
            torch.float16: tl.float16,
            torch.bfloat16: tl.bfloat16,
            torch.float32: tl.float32,
            torch.float64: tl.float64,
        }
        self.options = {
            "D": hidden_ND.shape[1],
            "HAS_BIAS": bias_V is not None,
            "TOKENS": tile.tokens,
            "WORDS": tile.words,
            "DEPTH": tile.depth,
            "GROUP": tile.group,
            "OPERAND": tl.float32 if interpreted else names[dtype],
            "WIDE": names[self.wide],
            "num_warps": tile.warps,
            "num_stages": tile.stages,
        }

    def forward(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probability, entropy and logsumexp, [N] each."""
        hidden_ND, parts = self.hidden_ND, triton.cdiv(self.words, self.tile.words)
        logprobs_N = hidden_ND.new_full((self.count,), float("nan"), dtype=self.wide)
        entropy_N, lse_N = torch.empty_like(logprobs_N), torch.empty_like(logprobs_N)
        if not self.count:
            return logprobs_N, entropy_N, lse_N
        # Largest logit, sum and moment of each of K tiles; ``logprobs_N`` holds z_y until the end.
        tiles = [logprobs_N.new_empty((parts, self.count)) for _ in range(3)]
        head_tiles.forward[(triton.cdiv(self.count, self.tile.tokens) * parts,)](
            hidden_ND,
            self.weight_VD,
            self.bias_V,
            self.scale_1,
            self.targets_N,
            *tiles,
            logprobs_N,
            self.count,
            self.words,
            **self.options,
        )
        head_tiles.combine[(triton.cdiv(self.count, _SUMMED["TOKENS"]),)](
            *tiles, logprobs_N, entropy_N, lse_N, self.count, K=parts, **_SUMMED
        )
        return logprobs_N, entropy_N, lse_N

    def strips(self) -> Iterator[slice]:
        """Parts of the vocabulary, of whole tiles, whose gradients exist at once."""
        width = max(1, _STRIP // self.count // self.tile.words) * self.tile.words
        for first in range(0, self.words, width):
            yield slice(first, min(first + width, self.words))

    def strip(
        self,
        part: slice,
        lse_N: torch.Tensor,
        entropy_N: torch.Tensor,
        grad_logprobs_N: torch.Tensor | None,
        grad_entropy_N: torch.Tensor | None,
    ) -> torch.Tensor:
        """Gradients by the products h W^T of some words, [N, C]."""
        width = part.stop - part.start
        grad_NC = self.hidden_ND.new_empty((self.count, width))
        tiles = triton.cdiv(self.count, self.tile.tokens) * triton.cdiv(width, self.tile.words)
        upstream = (
            torch.zeros_like(lse_N) if g is None else g.contiguous()
            for g in (grad_logprobs_N, grad_entropy_N)
        )
        head_tiles.backward[(tiles,)](
            self.hidden_ND,
            self.weight_VD,
            self.bias_V,
            self.scale_1,
            self.targets_N,
            lse_N,
            entropy_N,
            *upstream,
            grad_NC,
            self.count,
            self.words,
            part.start,
            width,
            HAS_ENTROPY=grad_entropy_N is not None,
            **self.options,
        )
        return grad_NC
