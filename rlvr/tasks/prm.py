"""Training an implicit process reward model from labels of whole responses, or of steps.

    rlvr train recipes/prm/tiny_ce.yaml

All objectives are losses of the log-ratio to a reference
(``rlvr/reward_models/process_losses.py``), so the update is that of preferences. What is measured
is how well rewards of held-out responses rank right before wrong ones, and how well they are
calibrated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from rlvr.data import load_template
from rlvr.lazy import torch
from rlvr.policy.settings import ModelSettings
from rlvr.reward_models.process_losses import (
    BagOfSteps,
    LabelCrossEntropy,
    PrmObjective,
    StepLabels,
    balanced,
    takes_pairs,
)
from rlvr.runs.base_recipe import OfflineRecipe, impossible_names
from rlvr.runs.labelled import (
    LabelledData,
    LabelledEvaluation,
    as_examples,
    labelled_responses,
    within_limits,
)
from rlvr.runs.offline_task import OfflineTask

if TYPE_CHECKING:
    from rich.console import Console

    from rlvr.data.examples import Examples
    from rlvr.data.solutions import Solution
    from rlvr.learner.launch import Launch
    from rlvr.learner.offline import OfflineLearner
    from rlvr.policy.model import Policy
    from rlvr.reward_models.calibration import Calibration
    from rlvr.runs.offline_run import OfflineRun


class PrmData(LabelledData):
    """Where labelled responses come from, or with the objective steps solutions in steps."""

    sources: tuple[Path, ...] = Field(min_length=1)
    """JSONL files of responses (prompt, response, correct), or run folders, which stand for the
    completions that the run kept. With the objective steps: solutions in steps with step_labels or
    label, the index of the first wrong step (-1 where there is none)."""
    steps: str = "blank_lines"
    """Where the steps of a response are that is not given in steps: blank_lines, numbered, lines,
    or a pattern at whose matches steps begin. For the objectives steps and bag alone."""


class PrmRecipe(OfflineRecipe):
    """Training an implicit process reward model: the recipe of ``task: prm``."""

    task: Literal["prm"]
    """What is trained: an implicit process reward model, from labels of whole responses."""
    seed: int = Field(0, ge=0, lt=2**64)
    """Order of the data, balance, initialisation of adapters."""
    model: ModelSettings
    """The reward model, which as it is before training is also the reference."""
    reference: ModelSettings | None = None
    """Another frozen reference: a second stage starts from the first one's reward model and keeps
    the reference of that."""
    data: PrmData
    """The labelled responses."""
    objective: PrmObjective = LabelCrossEntropy()
    """What it is trained with."""
    use_reference: bool = True
    """Train the log-ratio to the reference; false trains the log-probability alone."""
    evaluation: LabelledEvaluation = LabelledEvaluation()
    """Held-out responses."""

    @property
    def live_reference(self) -> bool:
        """Whether reference log-probabilities are taken in every step, as KTO's baseline needs."""
        return self.objective.uses_baseline

    @property
    def holds_frozen_weights(self) -> bool:
        """See :meth:`rlvr.runs.base_recipe.BaseRecipe.holds_frozen_weights`."""
        held = self.live_reference and self.reference is None
        return held or super().holds_frozen_weights

    @property
    def unit(self) -> str:
        """What an example is."""
        if isinstance(self.objective, StepLabels):
            return "responses in steps"
        if isinstance(self.objective, BagOfSteps):
            return "responses in bags of steps"
        return "pairs" if takes_pairs(self.objective) else "labelled responses"

    def faults(self) -> list[str]:
        """Combinations of valid settings that cannot work, each with its remedy."""
        faults, name = super().faults(), self.objective.name
        if name == "kto" and not self.use_reference:
            faults.append(
                "objective 'kto' compares with its distance from the reference, which "
                "use_reference = false leaves out; use ce"
            )
        if self.reference is not None and not self.use_reference:
            faults.append(
                f"reference = {self.reference.path!r} goes with use_reference = true; leave one out"
            )
        in_steps = isinstance(self.objective, StepLabels | BagOfSteps)
        if self.data.steps != "blank_lines" and not in_steps:
            faults.append(
                f"data.steps = {self.data.steps!r} means nothing to the objective {name!r}, which "
                "takes whole responses; leave it out"
            )
        return faults + impossible_names(self.evaluation.responses, "evaluation.responses")


class PrmTask(OfflineTask[PrmRecipe]):
    """A run that trains an implicit process reward model."""

    schema = PrmRecipe
    prefix = "preference"
    too_long = "lower data.max_prompt_tokens or data.max_response_tokens"

    def count(self) -> tuple[int, list[str]]:
        """How many examples there are, and lines about them."""
        from rlvr.data.labelled_responses import load_responses

        if isinstance(self.recipe.objective, StepLabels):
            solutions = self._solutions()
            labels = [label for _, labels in solutions for label in labels]
            judged = [label for label in labels if label is not None]
            wrong = sum(label < 0.5 for label in judged)
            count = len(solutions)
            lines = [f"steps: {len(labels)}, {len(judged)} judged, {wrong} of them wrong"]
        else:
            responses = load_responses(self.recipe.data.sources)
            whole = as_examples(responses, [((), ())] * len(responses))
            count = len(self._pairs_or_balanced(whole))
            lines = [
                f"responses: {len(whole)} to {len(set(whole.groups))} problems, "
                f"{sum(whole.labels)} of them right"
            ]
        return count, [*lines, f"{self.recipe.unit}: {count}"]

    def load(
        self,
        tokenizer: Any,  # noqa: ANN401
        console: Console,
    ) -> tuple[Examples, dict[str, Examples]]:
        """Training data as the objective takes it, and held-out responses by name, with labels.

        Raises:
            ValueError: They cannot be read, or nothing can be learned from them.
        """
        from rlvr.runs.log import notify

        recipe = self.recipe
        if isinstance(recipe.objective, StepLabels):
            training = self._in_steps(tokenizer, console)
        else:
            whole = labelled_responses("data", recipe.data.sources, recipe.data, tokenizer, console)
            training = self._pairs_or_balanced(whole)
            if isinstance(recipe.objective, BagOfSteps):
                training = _in_bags(training, tokenizer, recipe.data.steps)
            notify(console, f"data: {len(training)} {recipe.unit} from {len(whole)} responses")
        held_out = {
            name: labelled_responses(name, sources, recipe.data, tokenizer, console)
            for name, sources in recipe.evaluation.responses.items()
        }
        if recipe.use_reference:
            return training, held_out
        return _without_reference(training), {n: _without_reference(x) for n, x in held_out.items()}

    def _pairs_or_balanced(self, whole: Examples) -> Examples:
        """All pairs, or the responses that the balance keeps.

        Raises:
            ValueError: There are none.
        """
        from rlvr.data.examples import Examples
        from rlvr.reward_models.pairs import all_pairs

        objective, labels, groups = self.recipe.objective, whole.labels, whole.groups
        if takes_pairs(objective):
            pairs = all_pairs(labels, groups)
            if not pairs:
                raise ValueError(
                    f"none of {len(set(groups))} problems has both right and wrong responses, so "
                    f"there are no pairs for objective {objective.name!r}; sample more of each, or "
                    "use ce"
                )
            ids = whole.completion_ids
            return Examples.of_several(
                [whole.prompt_ids[good] for good, _ in pairs],
                [(ids[good], ids[bad]) for good, bad in pairs],
            )
        balance = objective.balance if isinstance(objective, LabelCrossEntropy) else "none"
        kept = balanced(labels, groups, balance, self.recipe.seed)
        if not kept:
            raise ValueError(
                f"objective.balance = {balance!r} keeps none of {len(labels)} responses, as all "
                "are right or all are wrong; use none, or sample more"
            )
        return whole.select(kept)

    def _solutions(self) -> list[tuple[Solution, list[float | None]]]:
        """The training data of the objective steps, with the labels of steps.

        Raises:
            ValueError: It cannot be read, or nobody judged a step of a response.
        """
        from rlvr.data.solutions import load_solutions, step_labels
        from rlvr.reward_models.steps import step_starts

        data = self.recipe.data
        solutions = load_solutions(data.sources, partial(step_starts, steps=data.steps))
        labelled = [(item, list(step_labels(item) or ())) for item in solutions]
        for item, labels in labelled:
            if all(label is None for label in labels):
                raise ValueError(
                    f"{item.place}: no step is judged; give step_labels, or label, the index of "
                    "the first wrong step (-1 where there is none)"
                )
        return labelled

    def _in_steps(
        self,
        tokenizer: Any,  # noqa: ANN401
        console: Console,
    ) -> Examples:
        """Responses in steps with their labels.

        Raises:
            ValueError: They cannot be read, or nobody judged a step of one.
        """
        from rlvr.data.labelled_responses import encode_responses
        from rlvr.reward_models.steps import given_step_ends
        from rlvr.runs.log import notify

        data, labelled = self.recipe.data, self._solutions()
        responses = [item.response for item, _ in labelled]
        encoded = encode_responses(responses, load_template(data.template), tokenizer)
        kept = within_limits("data", encoded, data, console)
        ends, labels_NK = [], []
        for row in kept:
            item, labels = labelled[row]
            ids, text = encoded[row][1], item.response.text
            ends.append(given_step_ends(tokenizer, ids, item.starts, item.place, text))
            labels_NK.append([float("nan") if label is None else label for label in labels])
        judged = sum(not isnan(label) for labels in labels_NK for label in labels)
        notify(console, f"data: {len(kept)} responses in steps, {judged} of them judged")
        return _with_steps([encoded[row] for row in kept], ends, labels_NK)

    def learner(self, policy: Policy, launch: Launch, checkpoint: Path | None) -> OfflineLearner:
        """The objective, with a live reference where it needs one."""
        from rlvr.learner.offline import OfflineLearner
        from rlvr.learner.preference import PreferenceMixture
        from rlvr.runs.reference import live_reference

        recipe, reference = self.recipe, None
        if recipe.live_reference:
            reference = live_reference(policy, recipe.model, recipe.reference)
        mixture = PreferenceMixture([recipe.objective], reference=reference)
        return OfflineLearner(
            policy,
            mixture,
            recipe.learner,
            total_updates=recipe.steps,
            launch=launch,
            seed=recipe.seed,
        )

    def opened(self, run: OfflineRun) -> None:
        """Take reference log-probabilities, where that is done before training."""
        from rlvr.runs.reference import add_reference

        if self.recipe.use_reference and not self.recipe.live_reference:
            add_reference(run, self.recipe.reference)

    def measure(self, run: OfflineRun, name: str, examples: Examples) -> dict[str, float]:
        """Ranking and calibration of rewards."""
        rewards_N = self.recipe.objective.beta * held_out_log_ratios(run, examples)
        metrics, calibrated = measures(examples, rewards_N)
        run.log.calibration(run.step, name, asdict(calibrated))
        return metrics | {"items": len(examples)}


def held_out_log_ratios(run: OfflineRun, examples: Examples) -> torch.Tensor:
    """Summed log-ratio [N] of single responses; collective."""
    from rlvr.learner.preference import PreferenceMixture, reference_column

    policy_N = run.learner.values(examples)[:, 0, 0]
    if "reference" in examples.columns:
        return policy_N - examples.columns["reference"].to(policy_N)
    mixture = run.learner.loss
    assert isinstance(mixture, PreferenceMixture)
    assert mixture.reference is not None
    with mixture.reference() as reference:
        return policy_N - reference_column(run.learner, examples, reference)


def measures(examples: Examples, rewards_N: torch.Tensor) -> tuple[dict[str, float], Calibration]:
    """Ranking and calibration of rewards, by name; what cannot be computed is left out.

    Prompts are told apart by their tokens alone.
    """
    from rlvr.reward_models.calibration import calibration
    from rlvr.reward_models.quality import ranking

    labels, prompts = examples.labels, [repr(ids) for ids in examples.prompt_ids]
    calibrated = calibration(rewards_N.tolist(), [float(label) for label in labels])
    ranked = ranking(rewards_N.tolist(), labels, prompts)
    return ranked.metrics | {"brier": calibrated.brier, "ece": calibrated.ece}, calibrated


def _in_bags(
    examples: Examples,
    tokenizer: Any,  # noqa: ANN401
    steps: str,
) -> Examples:
    """The same responses in steps, each of which holds the label of its response."""
    from rlvr.reward_models.steps import steps_of_ids

    ends = [steps_of_ids(tokenizer, ids, steps) for ids in examples.completion_ids]
    labels = examples.columns["label"].tolist()
    labels_NK = [[label] * len(own) for label, own in zip(labels, ends, strict=True)]
    encoded = list(zip(examples.prompt_ids, examples.completion_ids, strict=True))
    return _with_steps(encoded, ends, labels_NK)


def _with_steps(
    encoded: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
    ends: Sequence[Sequence[int]],
    labels_NK: Sequence[Sequence[float]],
) -> Examples:
    from rlvr.data.examples import Examples

    most, nan = max(map(len, ends)), float("nan")
    padded = [[*labels, *[nan] * (most - len(labels))] for labels in labels_NK]
    return Examples.of_one(
        [prompt for prompt, _ in encoded],
        [ids for _, ids in encoded],
        {"step_label": torch.tensor(padded)},
        step_ends=[tuple(own) for own in ends],
    )


def _without_reference(examples: Examples) -> Examples:
    """The log-ratio is then the log-probability: that of a reference of log 1."""
    known = examples.columns.get("step_label")
    shape = (len(examples.prompt_ids),) if known is None else known.shape
    return examples.with_columns(reference=torch.zeros(shape))
