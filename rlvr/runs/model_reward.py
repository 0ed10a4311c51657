"""A trained reward model as one term of a completion's reward.

    reward:
      models: [{path: runs/reward_model/tiny/model, weight: 0.5, transform: sigmoid}]

The model reads the sampled tokens, never text that was encoded again, so it must have the policy's
tokenizer. It is frozen, and each process holds a copy. ``reward/`` contains no models: verified and
estimated rewards are separate, and both values are recorded for every completion.
"""

from collections.abc import Sequence
from typing import Any

import torch

from rlvr.policy.loading import load_tokenizer
from rlvr.policy.settings import ModelSettings
from rlvr.reward_models.heads import OutcomeRewardModel, load_reward_model
from rlvr.reward_models.outcome_scores import outcome_rewards
from rlvr.runs.rewards import ModelRewardTerm
from rlvr.types import Completion


class ModelReward:
    """A loaded reward model term.

    Args:
        term: Settings of the model.
        tokenizer: The policy's tokenizer.

    Raises:
        ValueError: The model or its head is missing, or it has another tokenizer.
    """

    def __init__(self, term: ModelRewardTerm, tokenizer: Any) -> None:  # noqa: ANN401
        self.term, self.models = term, []
        for path in (term.path, *term.others):
            settings = ModelSettings(path=path, precision=term.precision)
            self.models.append(load_reward_model(settings))
            if load_tokenizer(settings).get_vocab() != tokenizer.get_vocab():
                raise ValueError(
                    f"the reward model {path!r} has another tokenizer than the policy, but must "
                    "read the policy's tokens; train one from a model of the policy's family"
                )

    def __call__(self, completions: Sequence[Completion]) -> list[tuple[float, float]]:
        """The value of each completion and its uncertainty."""
        scores_KB = torch.stack([self._scores(model, completions) for model in self.models])
        means, spreads = scores_KB.mean(0), scores_KB.std(0, correction=0)
        return list(zip(means.tolist(), spreads.tolist(), strict=True))

    def _scores(self, model: OutcomeRewardModel, completions: Sequence[Completion]) -> torch.Tensor:
        rewards_B = outcome_rewards(
            model,
            [item.prompt_ids for item in completions],
            [item.token_ids for item in completions],
            tokens_per_micro_batch=self.term.tokens_per_micro_batch,
        )
        return rewards_B.sigmoid() if self.term.transform == "sigmoid" else rewards_B
