"""A run of an explicit reward model: everything that belongs to one, from a recipe or a checkpoint.

What a checkpoint holds beside the model: the head, where the best evaluation stands, and CaPE's
targets of the epoch that is under way, so that a run taken up in its midst goes on with the same.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rlvr.data import ProblemSampler
from rlvr.learner import OutcomeLearner, PreferenceBatch
from rlvr.policy import Policy, load_policy, load_tokenizer
from rlvr.rm import (
    Items,
    OutcomeRewardModel,
    Responses,
    has_head,
    head_writer,
    load_head,
)
from rlvr.train.base_run import BaseRun, Beginning, open_any_run, weights_device
from rlvr.train.interrupt import StopSignals
from rlvr.train.preference_data import check_fit
from rlvr.train.reward_model_data import load_items
from rlvr.train.reward_model_recipe import RewardModelRecipe


@dataclass(frozen=True, slots=True)
class Best:
    """The best evaluation so far: its value (lower is better) and step, and how many came since."""

    value: float | None = None
    step: int | None = None
    since: int = 0

    def with_evaluation(self, value: float, step: int) -> "Best":
        """What it is after another evaluation; the earlier of equal ones stays."""
        if self.value is None or value < self.value:
            return Best(value, step)
        return replace(self, since=self.since + 1)


@dataclass(kw_only=True)
class RewardModelRun(BaseRun):
    """A run in progress; ``step`` counts finished steps."""

    recipe: RewardModelRecipe
    learner: OutcomeLearner
    items: Items
    held_out: dict[str, Responses]
    sampler: ProblemSampler
    best: Best = field(default_factory=Best)
    soft_epoch: int | None = None
    """The epoch that ``soft_M`` are the targets of."""
    soft_M: torch.Tensor | None = None

    @property
    def epoch(self) -> int:
        """The epoch, from 0, in which the next step begins."""
        return self.step * self.recipe.data.per_step // len(self.items)

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or patience is at its end."""
        patience = self.recipe.evaluation.patience
        return super().finished or (patience is not None and self.best.since >= patience)

    def next_items(self) -> Items:
        """The coming items, with the targets that this epoch trains on; collective."""
        whole, cape = self.items, self.recipe.calibration
        if cape is not None and cape.is_soft(self.epoch):
            if self.soft_epoch != self.epoch:
                self.log.phase("making targets")
                p_M = self.learner.rewards(whole.responses).sigmoid()
                self.soft_M = cape.targets(p_M, whole.responses.outcomes_M)
                self.soft_epoch = self.epoch
            assert self.soft_M is not None
            whole = replace(whole, targets_M=self.soft_M)
        return whole.select(self.sampler.next(self.recipe.data.per_step))

    def model_writers(self) -> list[Callable[[Path], None]]:
        """The language model's and the head's."""
        copy = self.checkpoints.background
        own = head_writer(self.learner.model, keep=self.ranks.first, copy=copy)
        return [*super().model_writers(), own]

    def save(self) -> Path:
        """Write a checkpoint of the state after ``step`` steps, unless that was done already."""
        return self.save_state(
            {
                "sampler": self.sampler.state_dict(),
                "best": asdict(self.best),
                "soft_epoch": self.soft_epoch,
                "soft": None if self.soft_M is None else self.soft_M.tolist(),
            }
        )

    def restore(self, checkpoint: Path) -> dict[str, Any]:
        """Take everything but the weights (loaded already) from a checkpoint; its state."""
        state = super().restore(checkpoint)
        self.sampler.load_state_dict(state["sampler"])
        self.best, self.soft_epoch = Best(**state["best"]), state["soft_epoch"]
        if state["soft"] is not None:
            self.soft_M = torch.tensor(state["soft"], dtype=torch.float64)
        return state


@contextmanager
def open_reward_model_run(
    recipe: RewardModelRecipe, resume: bool, console: Console, signals: StopSignals
) -> Iterator[RewardModelRun]:
    """Build a run, as :func:`rlvr.train.base_run.open_any_run`.

    Raises:
        ValueError: As there.
    """
    with open_any_run(
        recipe,
        lambda beginning: _build_run(recipe, beginning),
        check=lambda launch: None,
        resume=resume,
        console=console,
        signals=signals,
    ) as run:
        yield run


def _build_run(recipe: RewardModelRecipe, beginning: Beginning) -> RewardModelRun:
    tokenizer = load_tokenizer(recipe.model)
    items, held_out = load_items(recipe, tokenizer, beginning.console)
    checkpoint, launch = beginning.checkpoint, beginning.launch
    policy = load_policy(recipe.model, saved=checkpoint, device=weights_device(launch))
    check_fit(policy, [_as_batch(own) for own in (items.responses, *held_out.values())])
    learner = OutcomeLearner(
        build_model(recipe, policy, checkpoint),
        recipe.loss,
        recipe.learner,
        recipe.head_optimizer,
        total_updates=recipe.steps,
        launch=launch,
    )
    beginning.part_seeds()
    return RewardModelRun(
        recipe=recipe,
        tokenizer=tokenizer,
        learner=learner,
        checkpoints=beginning.checkpoint_writer(),
        ranks=beginning.ranks,
        signals=beginning.signals,
        items=items,
        held_out=held_out,
        sampler=ProblemSampler(len(items), recipe.seed, shuffle=recipe.data.shuffle),
    )


def build_model(
    recipe: RewardModelRecipe, policy: Policy, checkpoint: Path | None
) -> OutcomeRewardModel:
    """The recipe's head on a language model: from a checkpoint, from the model's folder, or fresh.

    Raises:
        ValueError: The folder's head is another than the recipe's, or calibration has none to go on
            from.
    """
    folder = checkpoint or Path(recipe.model.path).expanduser()
    bias = recipe.loss.absolute
    if not has_head(folder):
        if recipe.calibration is not None:
            raise ValueError(
                f"calibration goes on with a reward model that was trained by cross-entropy, and "
                f"model.path = {recipe.model.path!r} holds no head; train one first, with "
                "evaluation.keep_best and without calibration"
            )
        return OutcomeRewardModel(policy, recipe.head, bias=bias)
    model = load_head(policy, folder, bias=bias)
    if model.settings != recipe.head:
        raise ValueError(
            f"model.path = {recipe.model.path!r} holds the head {model.settings.model_dump()}, and "
            f"head is {recipe.head.model_dump()}; set head to the former"
        )
    return model


def _as_batch(responses: Responses) -> PreferenceBatch:
    return PreferenceBatch(responses.prompt_ids, tuple((ids,) for ids in responses.completion_ids))
