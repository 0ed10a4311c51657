"""Log-probabilities of whole completions, or of their steps, as the numbers that losses are of.

They are sums over a completion's tokens, after the prompt, at temperature 1. Both sides of a pair
run in one micro-batch, so that a pair's loss needs one pass, and behind one copy of the prompt
where the model can be packed.
"""

from dataclasses import dataclass

import torch

from rlvr.data.examples import Examples, Ids
from rlvr.learner.offline import ForwardPass, PromptAndCompletion, Statistic
from rlvr.preference.losses.modifiers import desensitised_logps, sampling_weights


@dataclass(frozen=True)
class SequenceLogprobs(Statistic):
    """Numbers [K', 2] of an example: log-probabilities reduced by LD, and whole.

    K' is the number of completions, and one more with ``prompt``; of examples in steps it is the
    number of steps, and both numbers of a step are whole.

    Attributes:
        prompt: Whether the prompt's own log-probability, after its first token, is wanted too.
        ld_alpha: Weight of tokens beyond the shorter side's length (LD-DPO); None is 1.
    """

    prompt: bool = False
    ld_alpha: float | None = None

    def rows(self, examples: Examples, example: int) -> list[PromptAndCompletion]:
        """The completions, and the prompt's own tokens, predicted from the first."""
        rows = Statistic.rows(self, examples, example)
        prompt = rows[0][0]
        return [*rows, (prompt[:1], prompt[1:])] if self.prompt else rows

    def size(self, examples: Examples) -> tuple[int, ...]:
        """K' and 2."""
        if examples.step_ends is not None:
            return examples.columns["step_label"].shape[1], 2
        return examples.most + self.prompt, 2

    def values(self, run: ForwardPass) -> torch.Tensor:
        """Sums [b, K', 2] over tokens."""
        examples, micro, inputs = run.examples, run.micro, run.inputs
        logprobs_N = run.forward().stats.logprobs_N
        lengths_R = torch.bincount(inputs.row_N, minlength=len(inputs.rows))
        logprobs_RT = inputs.scatter(logprobs_N, int(lengths_R.max()))
        if examples.step_ends is not None:
            ends = [examples.step_ends[examples.rows[example][0]] for example in micro]
            sums_RK = _by_step(logprobs_RT, ends, self.size(examples)[0])
            return sums_RK[..., None].expand(-1, -1, 2)
        position_T = torch.arange(logprobs_RT.shape[1], device=lengths_R.device)
        mask_RT = (position_T < lengths_R[:, None]).to(logprobs_RT.dtype)
        by_example = lengths_R.view(len(micro), -1)
        sides = by_example[:, : by_example.shape[1] - self.prompt]
        shared_R = sides.min(-1, keepdim=True).values.expand_as(by_example).flatten()
        reduced_R = desensitised_logps(logprobs_RT, mask_RT, shared_R, self.ld_alpha)
        return torch.stack([reduced_R, logprobs_RT.sum(-1)], -1).view(len(micro), -1, 2)


@dataclass(frozen=True)
class SamplingWeights(Statistic):
    """WPO's weights [2] of the sides of a pair.

    With z the logits, log sum_v p_v^2 = LSE(2 z) - 2 LSE(z), and the log-probability at temperature
    1/2 is 2 z_y - LSE(2 z); so the sum's logarithm is 2 log p - log p_half, both of which the
    policy gives.
    """

    def size(self, examples: Examples) -> tuple[int, ...]:
        """Two."""
        return (examples.most,)

    def values(self, run: ForwardPass) -> torch.Tensor:
        """The weights [b, 2]."""
        inputs = run.inputs
        width = int(torch.bincount(inputs.row_N).max())
        plain_RT, half_RT = (
            inputs.scatter(run.forward(temperature=t).stats.logprobs_N, width) for t in (1.0, 0.5)
        )
        ones_N = torch.ones_like(inputs.targets_N, dtype=plain_RT.dtype)
        mask_RT = inputs.scatter(ones_N, width)
        weights_R = sampling_weights(plain_RT, 2 * plain_RT - half_RT, mask_RT)
        return weights_R.view(len(run.micro), -1)


def _by_step(logprobs_RT: torch.Tensor, ends: list[Ids], steps: int) -> torch.Tensor:
    """Sums [R, K] over the tokens of each step, 0 where there is none."""
    width = logprobs_RT.shape[1]
    padded = [[*own, *[width] * (steps - len(own))] for own in ends]
    ends_RK = torch.tensor(padded, device=logprobs_RT.device)
    position_T = torch.arange(width, device=logprobs_RT.device)
    # A token's step is the number of steps that end before it; beyond the last there are zeros.
    step_RT = (position_T[None, :, None] >= ends_RK[:, None, :]).sum(-1).clamp_max(steps - 1)
    sums_RK = logprobs_RT.new_zeros(len(ends), steps)
    return sums_RK.scatter_add(1, step_RT, logprobs_RT)
