"""A trained reward model as one term of a completion's reward.

    reward:
      models: [{path: runs/reward_model/tiny/model, weight: 0.5, transform: sigmoid}]

The model reads the tokens that were sampled, never text that was encoded again, so it must have the
policy's tokenizer. It is frozen and each process holds a copy. ``reward/`` knows no models: what is
verified and what is guessed stay apart, and both values are kept of every completion.
"""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from rlvr.policy import ModelSettings, load_tokenizer
from rlvr.rm import load_reward_model, response_rewards
from rlvr.settings import Settings
from rlvr.types import Completion


class ModelRewardTerm(Settings):
    """One reward model and its weight."""

    path: str
    """The model folder of a run with ``task: reward_model``."""
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


class ModelReward:
    """A loaded term.

    Args:
        term: Which model.
        tokenizer: The policy's.

    Raises:
        ValueError: No such model, no head beside it, or another tokenizer.
    """

    def __init__(self, term: ModelRewardTerm, tokenizer: Any) -> None:  # noqa: ANN401
        settings = ModelSettings(path=term.path, precision=term.precision)
        self.term, self.model = term, load_reward_model(settings)
        if load_tokenizer(settings).get_vocab() != tokenizer.get_vocab():
            raise ValueError(
                f"the reward model {term.path!r} has another tokenizer than the policy, and reads "
                "the policy's tokens; train one from a model of the policy's family"
            )

    def __call__(self, completions: Sequence[Completion]) -> list[float]:
        """The value of each completion."""
        rewards = response_rewards(
            self.model,
            [item.prompt_ids for item in completions],
            [item.token_ids for item in completions],
            tokens_per_micro_batch=self.term.tokens_per_micro_batch,
        )
        values: list[float] = (
            rewards if self.term.transform == "none" else rewards.sigmoid()
        ).tolist()
        return values
