"""What a preference loss may look at: log-probabilities of whole completions.

Shapes as in ``rlvr/types.py``; here B counts pairs (or single labelled completions). All
log-probabilities are in nats and sums over completion tokens, the prompt left out; a loss that
takes the mean per token says so by calling for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlvr.lazy import torch
from rlvr.preference.numerics import LEAST_LOGPROB


def _bound(holder: object, *names: str) -> None:
    """Bring log-probabilities of impossible completions, minus infinity, back among the numbers."""
    for name in names:
        logps_B = getattr(holder, name)
        if logps_B is not None:
            object.__setattr__(holder, name, logps_B.clamp_min(LEAST_LOGPROB))


@dataclass(frozen=True, slots=True)
class Side:
    """The chosen or the rejected completions of B pairs.

    ``logps_B`` is log π(y | x) and carries gradients; ``reference_logps_B`` is the same under the
    frozen reference. With length desensitising (LD) both are reduced sums, and
    ``plain_logps_B`` keeps the whole one for likelihood terms. ``scores_B`` are the completions'
    scores where the data has them.
    """

    logps_B: torch.Tensor
    lengths_B: torch.Tensor
    reference_logps_B: torch.Tensor | None = None
    plain_logps_B: torch.Tensor | None = None
    scores_B: torch.Tensor | None = None

    def __post_init__(self) -> None:
        _bound(self, "logps_B", "reference_logps_B", "plain_logps_B")

    @property
    def log_ratio_B(self) -> torch.Tensor:
        """log π(y | x) - log ref(y | x), the implicit reward over beta."""
        assert self.reference_logps_B is not None, "this loss needs reference log-probabilities"
        return self.logps_B - self.reference_logps_B

    @property
    def mean_logps_B(self) -> torch.Tensor:
        """Log-probability per completion token."""
        return self.logps_B / self.lengths_B.clamp_min(1)

    @property
    def mean_log_ratio_B(self) -> torch.Tensor:
        """The log-ratio per completion token."""
        return self.log_ratio_B / self.lengths_B.clamp_min(1)

    @property
    def whole_logps_B(self) -> torch.Tensor:
        """The sum over all completion tokens, whatever LD did."""
        return self.logps_B if self.plain_logps_B is None else self.plain_logps_B


@dataclass(frozen=True, slots=True)
class Pairs:
    """B pairs of one micro-batch, and the counts of the step that they are part of.

    ``tokens_per_pair`` are the chosen completions' tokens of the whole optimizer step over its
    pairs: dividing by it makes a mean over pairs a mean over tokens, however the step is split.
    ``prompt_logps_B`` (log-probability of the prompt after its first token, with gradients) and
    ``prompt_tokens_per_pair`` are there for the losses that ask for them.
    """

    chosen: Side
    rejected: Side
    tokens_per_pair: float
    prompt_logps_B: torch.Tensor | None = None
    prompt_tokens_per_pair: float = 0.0

    @property
    def margin_B(self) -> torch.Tensor:
        """log π(y_w | x) - log π(y_l | x)."""
        return self.chosen.logps_B - self.rejected.logps_B

    @property
    def log_ratio_margin_B(self) -> torch.Tensor:
        """DPO's d: the difference of the two log-ratios."""
        return self.chosen.log_ratio_B - self.rejected.log_ratio_B

    def nll_B(self, *, prompt: bool = False) -> torch.Tensor:
        """Negative log-likelihood of y_w whose mean over the step is a mean over its tokens."""
        if not prompt:
            return -self.chosen.whole_logps_B / self.tokens_per_pair
        assert self.prompt_logps_B is not None, "the prompt's log-probabilities were not taken"
        tokens = self.tokens_per_pair + self.prompt_tokens_per_pair
        return -(self.chosen.whole_logps_B + self.prompt_logps_B) / tokens


@dataclass(frozen=True, slots=True)
class Labelled:
    """B single completions, each desirable or not.

    ``baseline`` is KTO's z0, a constant of the step: an estimate of KL(π || ref), at least 0.
    """

    logps_B: torch.Tensor
    reference_logps_B: torch.Tensor
    desirable_B: torch.Tensor
    baseline: float = 0.0

    def __post_init__(self) -> None:
        _bound(self, "logps_B", "reference_logps_B")

    @property
    def log_ratio_B(self) -> torch.Tensor:
        """log π(y | x) - log ref(y | x)."""
        return self.logps_B - self.reference_logps_B
