"""Forward passes over preferences: an item's completions together, shared out over the ranks.

Every rank holds the whole step and deals in the same way (rlvr/learner/deal.py). Both sides of a
pair are in one micro-batch, so that a pair's loss needs one pass, and behind one copy of the prompt
where the model can be packed.
"""

from collections.abc import Callable, Iterator, Sequence

import torch

from rlvr.learner.deal import Rows
from rlvr.learner.engine import Engine
from rlvr.learner.micro_batches import MicroBatches, RowsOf
from rlvr.learner.preference_batch import PreferenceBatch
from rlvr.learner.settings import LearnerSettings
from rlvr.policy import ModelInputs, Policy, evaluating
from rlvr.preference.losses import desensitised_logps, sampling_weights
from rlvr.ranks import Ranks

_IDLE = PreferenceBatch(((0,),), (((0,),),))
"""Two tokens for a rank without work, so that its passes are as many as the others'."""


class PreferencePasses:
    """Runs the policy, or a frozen model, over preferences; every call is collective.

    Args:
        policy: The model that is trained.
        engine: What holds its parameters.
        settings: Chunks of logits.
        ranks: The processes that share the work.
        micro_batches: How items are split and shared out.
        prompt: Whether the prompt's own log-probability is wanted too.
        ld_alpha: Weight of tokens beyond the shorter side's length (LD-DPO); None is 1.
    """

    def __init__(
        self,
        policy: Policy,
        engine: Engine,
        settings: LearnerSettings,
        ranks: Ranks,
        *,
        micro_batches: MicroBatches,
        prompt: bool,
        ld_alpha: float | None,
    ) -> None:
        self.policy, self.engine, self.settings, self.ranks = policy, engine, settings, ranks
        self.micro_batches, self.prompt, self.ld_alpha = micro_batches, prompt, ld_alpha

    def run(
        self, batch: PreferenceBatch, model: Policy | None = None
    ) -> Iterator[tuple[Rows, torch.Tensor, bool]]:
        """This rank's micro-batches: items, their log-probabilities [b, K', 2], and if it is last.

        The last axis is: reduced by LD, and whole (of steps, both whole). K' is K, and one more
        with ``prompt``. Where ranks have to run equally many passes, one may be of no items; its
        values are [1, ., 2].
        """
        share = self._share(batch)
        for index, items in enumerate(share):
            inputs = self._inputs(batch, items, prompt=self.prompt)
            logprobs_N = self._forward(model, inputs, 1.0)
            if batch.step_ends is not None:
                ends = [batch.step_ends[item] for item in items]
                sums_BKS = _by_step(logprobs_N, inputs, ends, batch.kinds)
            else:
                sums_BKS = self._reduced(logprobs_N, inputs, len(items) or 1, batch.kinds)
            yield items, sums_BKS, index == len(share) - 1

    def sums(
        self,
        batch: PreferenceBatch,
        model: Policy | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> torch.Tensor:
        """Log-probabilities [B, K', 2] of all items as in :meth:`run`, without gradient.

        ``progress`` hears how many of this rank's items are done.
        """
        found = torch.zeros(len(batch), batch.kinds + self.prompt, 2, dtype=torch.float64)
        shown = model or self.policy
        done = 0
        with torch.no_grad(), evaluating(shown):
            for items, sums_BKS, _ in self.run(batch, model):
                if items:
                    found[list(items)] = sums_BKS.to(found)
                done += len(items)
                progress(done)
        dtype = torch.promote_types(next(shown.parameters()).dtype, torch.float32)
        return self.ranks.sum(found).to(dtype)

    def weights(self, batch: PreferenceBatch) -> torch.Tensor:
        """WPO's weights [B] of pairs.

        With z the logits, log sum_v p_v^2 = LSE(2 z) - 2 LSE(z), and the log-probability at
        temperature 1/2 is 2 z_y - LSE(2 z); so the sum's logarithm is 2 log p - log p_half, both of
        which the policy gives.
        """
        weights_BK = torch.zeros(len(batch), 2, dtype=torch.float64)
        with torch.no_grad(), evaluating(self.policy):
            for items in self._share(batch):
                inputs = self._inputs(batch, items, prompt=False)
                width = int(torch.bincount(inputs.row_N).max())
                plain, half = (
                    inputs.scatter(self._forward(None, inputs, t), width) for t in (1.0, 0.5)
                )
                mask = inputs.scatter(torch.ones_like(inputs.targets_N, dtype=plain.dtype), width)
                if items:
                    found = sampling_weights(plain, 2 * plain - half, mask)
                    weights_BK[list(items)] = found.view(len(items), 2).to(weights_BK)
        return self.ranks.sum(weights_BK).prod(-1)

    def figures(self, batch: PreferenceBatch) -> dict[str, float]:
        """How well a step's items filled the micro-batches of all ranks."""
        return self.micro_batches.figures(self._rows_of(batch), range(len(batch)))

    def _share(self, batch: PreferenceBatch) -> list[Rows]:
        """This rank's micro-batches."""
        return self.micro_batches.share(self._rows_of(batch), range(len(batch)))

    def _rows_of(self, batch: PreferenceBatch) -> RowsOf:
        return lambda item: self._rows(batch, (item,), prompt=self.prompt)

    def _rows(
        self, batch: PreferenceBatch, items: Sequence[int], *, prompt: bool
    ) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """What is run for the items: prompt and completion, K' rows of an item after each other."""
        rows = []
        for item in items:
            own = batch.prompt_ids[item]
            rows += [(own, ids) for ids in batch.completion_ids[item]]
            if prompt:  # its own tokens, predicted from the first
                rows.append((own[:1], own[1:]))
        return rows

    def _inputs(self, batch: PreferenceBatch, items: Rows, *, prompt: bool) -> ModelInputs:
        if items:
            rows = self._rows(batch, items, prompt=prompt)
        else:
            rows = self._rows(_IDLE, (0,), prompt=False)
        prompts, completions = zip(*rows, strict=True)
        inputs = self.micro_batches.inputs(prompts, completions, tuple(range(len(rows))))
        return inputs.to(self.policy.device)

    def _forward(
        self, model: Policy | None, inputs: ModelInputs, temperature: float
    ) -> torch.Tensor:
        """Log-probabilities [N] under the policy, through its engine, or under a frozen model."""
        options = {"temperature": temperature, "chunk_tokens": self.settings.logits_chunk}
        if model is None or model is self.policy:
            return self.engine.forward(inputs, **options).stats.logprobs_N
        logprobs_N: torch.Tensor = model(inputs, **options).logprobs_N
        return logprobs_N

    def _reduced(
        self, logprobs_N: torch.Tensor, inputs: ModelInputs, items: int, kinds: int
    ) -> torch.Tensor:
        """Sums [items, K', 2] over tokens: with LD's weights, and without."""
        lengths_R = torch.bincount(inputs.row_N, minlength=len(inputs.rows))
        width = int(lengths_R.max())
        logprobs_RT = inputs.scatter(logprobs_N, width)
        mask_RT = torch.arange(width, device=lengths_R.device) < lengths_R[:, None]
        by_item = lengths_R.view(items, -1)
        shared_R = by_item[:, :kinds].min(-1, keepdim=True).values.expand_as(by_item).flatten()
        mask_RT = mask_RT.to(logprobs_RT.dtype)
        reduced = desensitised_logps(logprobs_RT, mask_RT, shared_R, self.ld_alpha)
        return torch.stack([reduced, logprobs_RT.sum(-1)], -1).view(items, -1, 2)


def _by_step(
    logprobs_N: torch.Tensor, inputs: ModelInputs, ends: Sequence[Sequence[int]], steps: int
) -> torch.Tensor:
    """Sums [rows, K, 2] over the tokens of each step, 0 where there is none."""
    lengths_R = torch.bincount(inputs.row_N, minlength=len(inputs.rows))
    logprobs_RT = inputs.scatter(logprobs_N, int(lengths_R.max()))
    width = logprobs_RT.shape[1]
    padded = [[*own, *[width] * (steps - len(own))] for own in ends] or [[width] * steps]
    ends_RK = torch.tensor(padded, device=lengths_R.device)
    position_T = torch.arange(width, device=lengths_R.device)
    # A token's step is the number of steps that end before it; beyond the last there are zeros.
    step_RT = (position_T[None, :, None] >= ends_RK[:, None, :]).sum(-1).clamp_max(steps - 1)
    sums_RK = logprobs_RT.new_zeros(len(padded), steps).scatter_add(1, step_RT, logprobs_RT)
    return sums_RK[..., None].expand(-1, -1, 2)
