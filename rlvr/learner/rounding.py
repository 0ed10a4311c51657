"""Numbers in fewer bits, rounded up or down at random so that they are right on average.

**bfloat16**: the 16 bits that are cut off are added to by as many random bits first. The result is
one of the two neighbours, and its mean is the number (Gupta et al., arXiv:1502.02551).

**8 bits in blocks** (Dettmers et al., "8-bit Optimizers via Block-wise Quantization",
arXiv:2110.02861, section 2): x = s c, with c one of 255 codes of a dynamic map and s so that the
largest of 256 neighbours is the largest code. The map has seven decades; the decade below 1 is
split into 64 equal parts, each further one into half as many. The paper rounds to the nearest code
and holds the second moment itself. Its root is held here, and rounding is at random: a second
moment that is rounded to 0 would divide by epsilon alone, and one whose steps of (1 - b2) are less
than half a code would never move.
"""

from functools import cache
from hashlib import blake2b

import torch

BLOCK = 256
"""Numbers that share a scale."""

_DECADES = 7
_CUT = 0xFFFF


def noise_for(seed: int, step: int, name: str, device: torch.device) -> torch.Generator:
    """The random bits of one tensor in one step, the same on every process."""
    digest = blake2b(f"{seed} {step} {name}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest) >> 1)


def to_bfloat16(values: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """float32 numbers as bfloat16, rounded at random; what is not finite stays what it is."""
    bits = values.view(torch.int32)
    drawn = torch.randint(
        _CUT + 1, bits.shape, dtype=torch.int32, device=bits.device, generator=noise
    )
    cut = drawn.add_(bits).bitwise_and_(~_CUT).view(torch.float32)
    return torch.where(values.isfinite(), cut, values).bfloat16()


def to_codes(
    values_N: torch.Tensor, noise: torch.Generator | None, *, signed: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [N], uint8, and the scale of each block, of float32 numbers.

    Args:
        values_N: Not negative unless ``signed``.
        noise: Rounds at random; None rounds to the nearest code.
        signed: Which map.
    """
    codes_K = _code_values(signed, values_N.device)
    count = values_N.numel()
    blocks = torch.nn.functional.pad(values_N, (0, -count % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(-1) / codes_K[-1]
    scaled = blocks / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    above = torch.bucketize(scaled, codes_K).clamp_(1, len(codes_K) - 1)
    low, high = codes_K[above - 1], codes_K[above]
    share = (scaled - low) / (high - low)
    if noise is None:
        bounds = torch.full_like(share, 0.5)
    else:
        bounds = torch.rand(share.shape, device=share.device, generator=noise)
    codes = above - (share <= bounds).to(above.dtype)
    return codes.view(-1)[:count].to(torch.uint8), scales


def from_codes(codes_N: torch.Tensor, scales: torch.Tensor, *, signed: bool) -> torch.Tensor:
    """The float32 numbers [N] of :func:`to_codes`."""
    values = _code_values(signed, codes_N.device)[codes_N.int()]
    return values * scales.repeat_interleave(BLOCK)[: codes_N.numel()]


@cache
def _code_values(signed: bool, device: torch.device) -> torch.Tensor:
    """All codes in ascending order: 0 and, of each decade, the middles of equal parts."""
    most = 2 ** (_DECADES - 1)
    sizes = []
    for decade in range(_DECADES):
        parts = (most >> decade) * (1 if signed else 2)
        edges = torch.linspace(0.1, 1.0, parts + 1, dtype=torch.float64)
        sizes.append((edges[1:] + edges[:-1]) / 2 * 0.1**decade)
    positive = torch.cat(sizes).sort().values
    values = torch.cat([-positive.flip(0), torch.zeros(1).double(), positive])
    return (values if signed else values[len(positive) :]).float().to(device)


@cache
def largest_gap(signed: bool) -> float:
    """Widest step between neighbouring codes, as a share of the largest: the error's bound."""
    codes = _code_values(signed, torch.device("cpu")).double()
    return float((codes[1:] - codes[:-1]).max() / codes[-1])
