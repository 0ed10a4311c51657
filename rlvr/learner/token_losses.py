"""What a model is fine-tuned with: a loss of every token that it is to write.

    L = 1/N sum_i l_tau(log p(y_i | prompt, y_<i))        l_1(log p) = -log p

over the N learnt tokens of a step. ``tau`` chooses the comp-sum loss
(``rlvr/preference/losses/comp_sum.py``). With label smoothing e the target of a token is the token
with 1 - e, and every word of the vocabulary with e / V besides:

    l = -(1 - e) log p(y_i) - e mean_v log p(v)
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from rlvr.data.examples import Examples
from rlvr.learner.offline import ForwardPass, Numbers, OfflineLearner, OfflineStep, Statistic
from rlvr.objective.token_statistic import TokenStatistic
from rlvr.preference.losses.comp_sum import comp_sum

IMPROBABLE = 0.01
"""Below this probability a token counts as improbable."""

_NAMES = ("loss", "nll", "improbable", "entropy", "likeliest")


class _Vocabulary(TokenStatistic):
    """Whether the token is the likeliest, and for smoothing the mean of log p over all words."""

    differentiable = ("mean_logprob",)

    def __init__(self, *, smoothing: bool) -> None:
        self.smoothing = smoothing

    def read(
        self, logp_CV: torch.Tensor, logprobs_C: torch.Tensor, start: int
    ) -> dict[str, torch.Tensor]:
        """The columns of a chunk."""
        columns = {"likeliest": logprobs_C >= logp_CV.max(-1).values}
        return columns | ({"mean_logprob": logp_CV.mean(-1)} if self.smoothing else {})

    def gradient(
        self, name: str, upstream_C: torch.Tensor, logp_CV: torch.Tensor, start: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the mean over v of log p_v by the logit of j: 1/V - p_j."""
        index_C = torch.arange(len(upstream_C), device=upstream_C.device)
        return index_C, upstream_C[:, None] * (1 / logp_CV.shape[1] - logp_CV.exp())


@dataclass(frozen=True)
class TokenSums(Statistic):
    """Numbers [5] of a completion, sums over its tokens.

    They are the loss, -log p, how many are improbable, the entropy, how many are the likeliest.

    Attributes:
        tau: Which comp-sum loss.
        smoothing: e of label smoothing.
    """

    tau: float = 1.0
    smoothing: float = 0.0

    def size(self, examples: Examples) -> tuple[int, ...]:
        """Five."""
        return (len(_NAMES),)

    def values(self, run: ForwardPass) -> torch.Tensor:
        """The sums [b, 5]."""
        words = _Vocabulary(smoothing=self.smoothing > 0)
        stats = run.forward(entropy=True, statistics=(words,)).stats
        loss_N = comp_sum(stats.logprobs_N, self.tau)
        if self.smoothing:
            uniform_N = -stats.columns["mean_logprob"]
            loss_N = (1 - self.smoothing) * loss_N + self.smoothing * uniform_N
        known_N = stats.logprobs_N.detach()
        bound = torch.tensor(IMPROBABLE, dtype=known_N.dtype).log().to(known_N.device)
        assert stats.entropy_N is not None
        others = (-known_N, known_N < bound, stats.entropy_N.detach(), stats.columns["likeliest"])
        columns_NS = torch.stack([loss_N, *(column.to(loss_N) for column in others)], -1)
        sums_BS = columns_NS.new_zeros(len(run.inputs.rows), len(_NAMES))
        return sums_BS.index_add(0, run.inputs.row_N, columns_NS)


class TokenLoss:
    """The loss of fine-tuning, as the learner takes it.

    Args:
        tau: Which comp-sum loss.
        smoothing: e of label smoothing.
    """

    grad_norms: Mapping[str, str] = {}
    whole_step = False

    def __init__(self, tau: float = 1.0, smoothing: float = 0.0) -> None:
        self.statistic = TokenSums(tau, smoothing)

    def begin(self, learner: OfflineLearner, examples: Examples) -> OfflineStep:
        """The mean over the step's learnt tokens."""
        return OfflineStep(examples, learnt_tokens(examples))

    def losses(self, micro: OfflineStep, values: torch.Tensor) -> tuple[torch.Tensor, Numbers]:
        """Loss [b], summed over tokens, and the other sums."""
        columns = zip(_NAMES, values.detach().unbind(-1), strict=True)
        return values[:, 0], {name: column_B.tolist() for name, column_B in columns}

    def metrics(self, numbers: Numbers, step: OfflineStep) -> dict[str, float]:
        """Means over the step's learnt tokens; see docs/metrics.md."""
        mean = {name: sum(values) / step.denominator for name, values in numbers.items()}
        return {
            "sft/loss": mean["loss"],
            "sft/token_accuracy": mean["likeliest"],
            "sft/target_tokens": step.denominator,
            "policy/entropy": mean["entropy"],
        }


def surprisal(learner: OfflineLearner, examples: Examples) -> dict[str, float]:
    """Mean of -log p over tokens (nats), and the share of improbable ones; collective."""
    sums_S = learner.values(examples).double().sum(0) / learnt_tokens(examples)
    mean = dict(zip(_NAMES, sums_S.tolist(), strict=True))
    return {name: mean[name] for name in ("nll", "improbable")}


def learnt_tokens(examples: Examples) -> int:
    """N."""
    return sum(map(len, examples.completion_ids))
