"""A trained reward model as one term of a completion's reward.

    reward:
      models: [{path: runs/reward_model/tiny/model, weight: 0.5, transform: sigmoid}]

The model reads the tokens that were sampled, never text that was encoded again, so it must have the
policy's tokenizer. It is frozen and each process holds a copy. ``reward/`` knows no models: what is
verified and what is guessed stay apart, and both values are kept of every completion.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field

from rlvr.policy import ModelSettings, load_tokenizer
from rlvr.rm import OutcomeRewardModel, load_reward_model, response_rewards
from rlvr.settings import Settings
from rlvr.types import Completion


class ModelRewardTerm(Settings):
    """One reward model and its weight."""

    path: str
    """The model folder of a run with ``task: reward_model``."""
    others: tuple[str, ...] = ()
    """More models of the same task, of other seeds say: the value is then the mean of all, and its
    uncertainty their standard deviation."""
    name: str = Field("model", pattern=r"^[\w.-]+$")
    """What its values are called beside those of the functions."""
    weight: float = 1.0
    """Factor on its value in the sum."""
    transform: Literal["none", "sigmoid"] = "none"
    """none takes the reward as it is, sigmoid the probability of being right (for a model trained
    by cross-entropy)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Compute precision."""
    tokens_per_micro_batch: int = Field(4096, ge=1)
    """Most input positions run at once, padding included."""

    @property
    def scores(self) -> int:
        """How many scores a completion gets."""
        return 1 + len(self.others)


class ModelReward:
    """A loaded term.

    Args:
        term: Which model.
        tokenizer: The policy's.

    Raises:
        ValueError: No such model, no head beside it, or another tokenizer.
    """

    def __init__(self, term: ModelRewardTerm, tokenizer: Any) -> None:  # noqa: ANN401
        self.term, self.models = term, []
        for path in (term.path, *term.others):
            settings = ModelSettings(path=path, precision=term.precision)
            self.models.append(load_reward_model(settings))
            if load_tokenizer(settings).get_vocab() != tokenizer.get_vocab():
                raise ValueError(
                    f"the reward model {path!r} has another tokenizer than the policy, and reads "
                    "the policy's tokens; train one from a model of the policy's family"
                )

    def __call__(self, completions: Sequence[Completion]) -> list[tuple[float, float]]:
        """The value of each completion, and its uncertainty."""
        scores_KB = torch.stack([self._scores(model, completions) for model in self.models])
        means, spreads = scores_KB.mean(0), scores_KB.std(0, correction=0)
        return list(zip(means.tolist(), spreads.tolist(), strict=True))

    def _scores(self, model: OutcomeRewardModel, completions: Sequence[Completion]) -> torch.Tensor:
        rewards_B = response_rewards(
            model,
            [item.prompt_ids for item in completions],
            [item.token_ids for item in completions],
            tokens_per_micro_batch=self.term.tokens_per_micro_batch,
        )
        return rewards_B.sigmoid() if self.term.transform == "sigmoid" else rewards_B
