"""How tokens are drawn: sampling settings, and random numbers that depend only on position.

Each completion has a counter-based stream (Philox) keyed by (run seed, step, problem id, sample
index). Its t-th token is drawn with the t-th number of that stream by inverting the cumulative
distribution. So the random number of a token does not depend on the rest of the batch, its order,
or whether the run was resumed.
"""

from __future__ import annotations

import hashlib

from pydantic import Field, model_validator

from rlvr.lazy import np, torch
from rlvr.settings import Settings

_UNITS = 2.0**52


class Sampling(Settings):
    """Settings for drawing completions."""

    max_tokens: int = Field(512, ge=1)
    """Maximum number of tokens in a completion; one that reaches it is cut and counted as
    truncated."""
    temperature: float = Field(1.0, ge=0)
    """Divides the logits; 0 takes the likeliest token."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Keep the likeliest tokens that together reach this probability mass."""
    top_k: int = Field(0, ge=0)
    """Keep this many of the likeliest tokens; 0 keeps all."""

    @property
    def truncates(self) -> bool:
        """Whether top-p or top-k cuts the distribution, so that log-probabilities are not exact."""
        return self.top_p < 1 or self.top_k > 0

    @model_validator(mode="after")
    def _greedy_is_greedy(self) -> Sampling:
        if self.temperature == 0 and self.truncates:
            raise ValueError("top_p and top_k have no effect at temperature 0; remove them")
        return self


def sample_seed(run_seed: int, step: int, problem_id: str, sample_index: int) -> int:
    """A 64-bit seed that depends only on the arguments and is the same on every machine."""
    text = f"{run_seed}\x1f{step}\x1f{problem_id}\x1f{sample_index}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def uniform_stream(seed: int, count: int) -> np.ndarray:
    """The first ``count`` uniform numbers in [0, 1) of the stream of ``seed``, float64."""
    return np.random.Generator(np.random.Philox(key=seed)).random(count)


def draw(
    logits_BV: torch.Tensor, uniforms_B: torch.Tensor, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one token per row.

    Args:
        logits_BV: Logits before the temperature.
        uniforms_B: One number in [0, 1) per row; unused at temperature 0.
        sampling: Temperature, top-p and top-k.

    Returns:
        Token ids [B] and their log-probabilities [B] in nats, under the tempered distribution
        before top-p and top-k, or at temperature 1 if drawn greedily.
    """
    logits_BV = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))
    if sampling.temperature not in (0, 1):
        logits_BV = logits_BV / sampling.temperature
    logprobs_BV = torch.log_softmax(logits_BV, dim=-1)
    if sampling.temperature == 0:
        tokens_B = logits_BV.argmax(-1)
    else:
        tokens_B = _invert_cumulative(truncate(logprobs_BV, sampling).exp(), uniforms_B)
    return tokens_B, logprobs_BV.gather(-1, tokens_B[:, None])[:, 0]


def truncate(logprobs_BV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Log-probabilities [B, V] with -inf outside the top k, and then outside the smallest set that
    holds the mass top_p of the rest."""
    if not sampling.truncates:
        return logprobs_BV
    ordered, order = logprobs_BV.sort(dim=-1, descending=True)
    if sampling.top_k:
        ordered[:, sampling.top_k :] = float("-inf")
    if sampling.top_p < 1:
        probabilities = ordered.softmax(-1)
        before = _cumulative(probabilities) - probabilities
        ordered = ordered.masked_fill(before >= sampling.top_p, float("-inf"))
    return torch.empty_like(logprobs_BV).scatter_(-1, order, ordered)


def _invert_cumulative(probabilities_BV: torch.Tensor, uniforms_B: torch.Tensor) -> torch.Tensor:
    """The first index whose cumulative mass exceeds u times the total mass, [B].

    It uses float64, because in float32 the running sum would round away rare tokens late in the
    vocabulary.
    """
    cumulative_BV = _cumulative(probabilities_BV.double(), in_place=True)
    thresholds_B1 = uniforms_B.double()[:, None] * cumulative_BV[:, -1:]
    tokens_B = torch.searchsorted(cumulative_BV, thresholds_B1, right=True)[:, 0]
    # u * total may round up to the total itself; then take the last token with mass.
    last_B = (probabilities_BV > 0).cumsum(-1).argmax(-1)
    return torch.minimum(tokens_B, last_B)


def _cumulative(probabilities_BV: torch.Tensor, *, in_place: bool = False) -> torch.Tensor:
    """Running sums over the vocabulary [B, V]."""
    if probabilities_BV.is_cuda and torch.are_deterministic_algorithms_enabled():
        return exact_cumulative(probabilities_BV)
    return probabilities_BV.cumsum_(-1) if in_place else probabilities_BV.cumsum(-1)


def exact_cumulative(probabilities_BV: torch.Tensor) -> torch.Tensor:
    """Running sums [B, V] in multiples of 2^-52, which do not depend on the order of addition.

    A GPU adds floating-point numbers of a running sum in an order that changes from call to call,
    and PyTorch has no other form of it; integers give the same sum in every order.
    """
    units_BV = (probabilities_BV.double() * _UNITS).round_().long()
    return (units_BV.cumsum(-1).double() / _UNITS).to(probabilities_BV.dtype)
