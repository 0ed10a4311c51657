"""Which of a prompt's pairs to train on, where labels are noisy: the ones of small loss.

Of K candidate pairs of one prompt with losses l_k under the current policy,

    P(k) = exp(-l_k / T) / sum_j exp(-l_j / T)

and one is drawn. Losses of right and of flipped pairs overlap over all data, as prompts differ in
difficulty, but part within a prompt; so pairs are compared with others of their prompt only, and
every prompt is trained on as often as before. T -> 0 takes the smallest loss, T -> infinity draws
evenly, as does a single candidate.

PLD, "Personalized Denoising Implicit Feedback" (arXiv:2502.00348), who draw a user's
positives for a recommender's pairwise loss, which is the Bradley-Terry loss; a prompt takes the
user's place here. With labels from a verifier leave it off: it then only prefers what is learned
already.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from rlvr.settings import Settings


class Resampling(Settings):
    """Draw pairs of a prompt by their losses instead of evenly (PLD)."""

    candidates: int = Field(5, ge=1)
    """Pairs of the prompt that are compared; 1 draws evenly."""
    temperature: float = Field(0.1, gt=0)
    """T in nats of loss: the smaller, the more surely the pair of smallest loss is taken."""
    after_epochs: float = Field(1.0, ge=0)
    """Train plainly for so many passes over the data first: before, losses say nothing."""


@dataclass(frozen=True, slots=True)
class Picked:
    """Items of a step, the candidates' losses by item, and how many places they changed."""

    items: list[int]
    losses: Mapping[int, float]
    changed: int

    @property
    def loss(self) -> float:
        """Mean loss of what was picked."""
        return sum(self.losses[item] for item in self.items) / len(self.items)

    @property
    def candidate_loss(self) -> float:
        """Mean loss of all candidates."""
        return sum(self.losses.values()) / len(self.losses)


def probabilities(losses: Sequence[float], temperature: float) -> list[float]:
    """Softmax of -loss / temperature."""
    least = min(losses)
    raw = [math.exp((least - loss) / temperature) for loss in losses]
    return [value / sum(raw) for value in raw]


class Resampler:
    """Replaces the items of a step by items of the same prompt, drawn by loss.

    Args:
        settings: How.
        prompts: The prompt of each item, anything that can be compared.
        seed: Of all draws; with the step's number it fixes them.
    """

    def __init__(self, settings: Resampling, prompts: Sequence[object], seed: int) -> None:
        self.settings, self.prompts, self.seed = settings, prompts, seed
        self.members: dict[object, list[int]] = {}
        for item, prompt in enumerate(prompts):
            self.members.setdefault(prompt, []).append(item)

    def pick(
        self, step: int, items: Sequence[int], losses_of: Callable[[list[int]], Sequence[float]]
    ) -> Picked:
        """The items to train on in the places of ``items``.

        Args:
            step: Number of the step.
            items: What would be trained on plainly.
            losses_of: Losses of items under the policy, without gradient; called once.
        """
        draw = random.Random(f"pairs by loss {self.seed} {step}")
        drawn = []
        for item in items:
            members = self.members[self.prompts[item]]
            count = min(self.settings.candidates, len(members))
            drawn.append(sorted(draw.sample(members, count)))
        asked = sorted({item for candidates in drawn for item in candidates})
        losses = dict(zip(asked, losses_of(asked), strict=True))
        chosen = [
            draw.choices(
                own, probabilities([losses[item] for item in own], self.settings.temperature)
            )[0]
            for own in drawn
        ]
        changed = sum(one != other for one, other in zip(items, chosen, strict=True))
        return Picked(chosen, losses, changed)
