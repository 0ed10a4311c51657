"""Learning from preferences: pairs of completions, or single ones with a label.

    rlvr train recipes/preference_dpo.yaml

Reference log-probabilities are taken once before training, or in every step. The losses are those
of ``rlvr/preference/losses``; what they look at is taken by ``rlvr/learner/preference.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from rlvr.data import load_template
from rlvr.data.preferences import PreferenceSource
from rlvr.lazy import torch
from rlvr.policy.settings import ModelSettings
from rlvr.preference.losses.base import PreferenceLoss, UnpairedLoss
from rlvr.preference.resample import Resampler, Resampling
from rlvr.runs.base_recipe import OfflineData, OfflineRecipe, ProblemEvaluation, impossible_names
from rlvr.runs.offline_task import OfflineTask
from rlvr.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console

    from rlvr.data.examples import Examples
    from rlvr.data.preferences import EncodedPreference
    from rlvr.learner.launch import Launch
    from rlvr.learner.offline import OfflineLearner
    from rlvr.policy.model import Policy
    from rlvr.runs.clock import Clock
    from rlvr.runs.offline_run import OfflineRun


class PreferenceData(OfflineData):
    """Where the preferences come from and how they become tokens."""

    source: PreferenceSource
    """The preferences: a file, or a data set of the Hub."""
    max_prompt_tokens: int = Field(1024, ge=1)
    """Preferences with a longer prompt are left out (and counted), never cut."""
    max_completion_tokens: int = Field(1024, ge=1)
    """Preferences with a longer completion are left out (and counted), never cut."""
    per_step: int = Field(32, ge=1)
    """Pairs (or labelled completions) of an optimizer step."""
    resample: Resampling | None = None
    """For noisy labels: in the place of each pair of a step, draw one of its prompt by loss (PLD);
    null takes the pairs as they come."""


class ReferenceSettings(Settings):
    """When log-probabilities under the frozen reference, the model of the recipe, are taken."""

    mode: Literal["auto", "precomputed", "live"] = "auto"
    """precomputed: once for all data before training, kept in the run folder; no second model is
    held. live: in every step, from a second model, or from the policy with its adapters off. auto
    is live where a loss needs other completions than the data's (kto), else precomputed."""


class PreferenceEvaluation(ProblemEvaluation):
    """Held-out pairs that are measured, and problems that the policy answers, from time to time."""

    pairs: dict[str, PreferenceSource] = Field(default_factory=dict)
    """Held-out preferences by name, of the same kind as the training data."""


class PreferenceRecipe(OfflineRecipe):
    """Learning from preferences: the recipe of ``rlvr train`` with ``task: preference``."""

    task: Literal["preference"]
    """What is trained: a policy, from preferences."""
    model: ModelSettings
    """The policy, which as it is before training is also the reference."""
    data: PreferenceData
    """The preferences."""
    losses: tuple[PreferenceLoss, ...] = Field(min_length=1)
    """One loss, or a mixture of several with weights."""
    ld_alpha: float | None = Field(None, ge=0, le=1)
    """Length desensitising (LD-DPO): weight of tokens beyond the shorter side's length."""
    weighting: bool = False
    """Weigh pairs by how probable the policy finds them (WPO), for one more forward pass."""
    reference: ReferenceSettings | None = None
    """When reference log-probabilities are taken; leave it out for losses without a reference."""
    evaluation: PreferenceEvaluation = PreferenceEvaluation()
    """Held-out preferences and problems."""

    @property
    def kind(self) -> Literal["pairs", "labelled"]:
        """What the losses learn from."""
        return "labelled" if isinstance(self.losses[0], UnpairedLoss) else "pairs"

    @property
    def needs_reference(self) -> bool:
        """Whether a loss looks at the reference."""
        return any(loss.needs_reference for loss in self.losses)

    @property
    def live_reference(self) -> bool:
        """Whether reference log-probabilities are taken in every step."""
        mode = self.reference.mode if self.reference else "auto"
        return self.needs_reference and (mode == "live" or (mode == "auto" and self._mismatched))

    @property
    def holds_frozen_weights(self) -> bool:
        """See :meth:`rlvr.runs.base_recipe.BaseRecipe.holds_frozen_weights`."""
        return self.live_reference or super().holds_frozen_weights

    @property
    def _mismatched(self) -> bool:
        return any(loss.uses_baseline for loss in self.losses)

    def faults(self) -> list[str]:
        """Combinations of valid settings that cannot work, each with its remedy."""
        return [
            *self._kind_faults(),
            *self._reference_faults(),
            *self._whole_step_faults(),
            *super().faults(),
            *self._name_faults(),
        ]

    def _kind_faults(self) -> list[str]:
        faults, names = [], [loss.name for loss in self.losses]
        if len({isinstance(loss, UnpairedLoss) for loss in self.losses}) > 1:
            faults.append(
                f"losses {names} mix losses over pairs with losses over single completions; use "
                "one kind"
            )
        if (self.ld_alpha is not None or self.weighting) and self.kind == "labelled":
            faults.append(
                f"ld_alpha and weighting compare the sides of a pair, which the losses {names} do "
                "not have; leave them out"
            )
        if self.data.resample is not None and self.kind == "labelled":
            faults.append(
                f"data.resample draws pairs of a prompt, but the losses {names} take single "
                "completions; leave it out"
            )
        return faults

    def _reference_faults(self) -> list[str]:
        faults = self.model.dropout_faults("a reference") if self.needs_reference else []
        if self.reference is not None and not self.needs_reference:
            faults.append(
                f"reference is given, but no loss of {[loss.name for loss in self.losses]} looks "
                "at a reference; leave it out"
            )
        if self.reference and self.reference.mode == "precomputed" and self._mismatched:
            faults.append(
                "reference.mode = 'precomputed' cannot serve the loss 'kto', which takes "
                "completions of other prompts in every step; use live"
            )
        return faults

    def _whole_step_faults(self) -> list[str]:
        if not any(loss.whole_step for loss in self.losses):
            return []
        faults = []
        if self.weighting:
            faults.append(
                "weighting is of pairs, but aot sorts each side by itself; drop one of them"
            )
        if self.data.resample is not None:
            faults.append(
                "data.resample compares losses of single pairs, but aot's is of a whole step; drop "
                "one"
            )
        return faults

    def _name_faults(self) -> list[str]:
        asked = self.evaluation
        return impossible_names((*asked.pairs, *asked.sets), "evaluation") + [
            f"evaluation.pairs and evaluation.sets both name {name!r}; rename one"
            for name in asked.pairs.keys() & asked.sets.keys()
        ]


class PreferenceTask(OfflineTask[PreferenceRecipe]):
    """A run of learning from preferences."""

    schema = PreferenceRecipe
    prefix = "preference"
    too_long = "lower data.max_prompt_tokens or data.max_completion_tokens"
    resampler: Resampler | None = None

    @property
    def prompt_limit(self) -> int:
        """Longest prompt of problems that are answered."""
        return self.recipe.data.max_prompt_tokens

    def count(self) -> tuple[int, list[str]]:
        """How many preferences there are, and lines about the losses."""
        from rlvr.data.preferences import load_preferences

        recipe, reference = self.recipe, "none"
        count = len(load_preferences(recipe.data.source, recipe.kind))
        for source in recipe.evaluation.pairs.values():
            load_preferences(source, recipe.kind)
        if recipe.needs_reference:
            reference = "in every step" if recipe.live_reference else "once, before training"
        return count, [
            f"{'pairs' if recipe.kind == 'pairs' else 'labelled completions'}: {count}",
            f"loss: {' + '.join(f'{loss.weight:g} x {loss.name}' for loss in recipe.losses)}",
            f"reference log-probabilities: {reference}",
        ]

    def load(
        self,
        tokenizer: Any,  # noqa: ANN401
        console: Console,
    ) -> tuple[Examples, dict[str, Examples]]:
        """Training preferences, and held-out ones by name.

        Raises:
            ValueError: They cannot be read, or cannot serve the recipe's losses.
        """
        from rlvr.data.preferences import encode_preferences, load_preferences
        from rlvr.runs.log import notify

        settings = self.recipe.data
        template = load_template(settings.template)

        def load(name: str, source: Any) -> Examples:  # noqa: ANN401
            encoded = encode_preferences(
                load_preferences(source, self.recipe.kind),
                template,
                tokenizer,
                max_prompt_tokens=settings.max_prompt_tokens,
                max_completion_tokens=settings.max_completion_tokens,
                notify=lambda text: notify(console, f"{name}: {text}"),
            )
            return self._examples(name, encoded)

        training = load("data", settings.source)
        if settings.resample is not None:
            prompts = [training.prompt_ids[own[0]] for own in training.rows]
            self.resampler = Resampler(settings.resample, prompts, self.recipe.seed)
        sets = self.recipe.evaluation.pairs
        return training, {name: load(name, source) for name, source in sets.items()}

    def _examples(self, name: str, encoded: Sequence[EncodedPreference]) -> Examples:
        """All preferences.

        Raises:
            ValueError: A loss needs scores, and a pair has none or equal ones.
        """
        from rlvr.data.examples import Examples

        scored = [item.scores for item in encoded]
        if any(loss.needs_scores for loss in self.recipe.losses):
            bad = [i for i, s in enumerate(scored) if s is None or s[0] <= s[1]]
            if bad:
                columns = self.recipe.data.source.columns
                raise ValueError(
                    f"{name}: the loss 'odpo' needs a higher score of the chosen completion "
                    f"(columns {columns.chosen_score!r} and {columns.rejected_score!r}), but pair "
                    f"{bad[0] + 1} has {scored[bad[0]]}"
                )
        columns_NK: dict[str, torch.Tensor] = {}
        if None not in scored:
            columns_NK["score"] = torch.tensor(scored)
        if self.recipe.kind == "labelled":
            columns_NK["label"] = torch.tensor([[float(bool(x.desirable))] for x in encoded])
        return Examples.of_several(
            [item.prompt_ids for item in encoded],
            [item.completion_ids for item in encoded],
            columns_NK,
        )

    def learner(self, policy: Policy, launch: Launch, checkpoint: Path | None) -> OfflineLearner:
        """The mixture of losses, with a live reference where one is wanted."""
        from rlvr.learner.offline import OfflineLearner
        from rlvr.learner.preference import PreferenceMixture
        from rlvr.runs.reference import live_reference

        recipe = self.recipe
        mixture = PreferenceMixture(
            recipe.losses,
            reference=live_reference(policy, recipe.model) if recipe.live_reference else None,
            ld_alpha=recipe.ld_alpha,
            weighting=recipe.weighting,
        )
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

        if self.recipe.needs_reference and not self.recipe.live_reference:
            add_reference(run, ld_alpha=self.recipe.ld_alpha)

    def next(self, run: OfflineRun, clock: Clock) -> tuple[Examples, dict[str, float]]:
        """As the sampler says, or drawn by loss."""
        epochs = run.sampler.drawn / len(run.data)
        places, resampler = run.sampler.next(self.recipe.data.per_step), self.resampler
        if resampler is None or epochs < resampler.settings.after_epochs:
            return run.data.select(places), {}
        run.log.phase("drawing pairs")
        picked = resampler.pick(
            run.step, places, lambda asked: run.learner.example_losses(run.data.select(asked))
        )
        return run.data.select(picked.items), {
            "preference/resampled": picked.changed / len(places),
            "preference/candidate_loss": picked.candidate_loss,
            "preference/picked_loss": picked.loss,
        }

    def measure(self, run: OfflineRun, name: str, examples: Examples) -> dict[str, float]:
        """A step's metrics, of held-out preferences."""
        measured = run.learner.measure(examples)
        return {"items": len(examples)} | {
            key.removeprefix("preference/"): value for key, value in measured.items()
        }
