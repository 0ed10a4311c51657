"""Supervised fine-tuning on traces, or on responses as text.

    rlvr train recipes/sft/tiny.yaml

The loss of a step is that of its learnt tokens (``rlvr/learner/token_losses.py``), whatever rows
and ranks they stand on; prompt tokens are read, and not learnt unless the recipe says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from rlvr.data import TemplateChoice, load_template
from rlvr.learner.settings import Schedule, UpdateSettings
from rlvr.runs.base_recipe import (
    OfflineData,
    OfflineRecipe,
    ProblemEvaluation,
    impossible_names,
    without_hub,
)
from rlvr.runs.offline_task import OfflineTask

if TYPE_CHECKING:
    from rich.console import Console

    from rlvr.data.demonstrations import Demonstration
    from rlvr.data.examples import Examples
    from rlvr.learner.launch import Launch
    from rlvr.learner.offline import OfflineLearner
    from rlvr.policy.model import Policy
    from rlvr.runs.clock import Clock
    from rlvr.runs.offline_run import OfflineRun


class SftData(OfflineData):
    """What is imitated and how it becomes tokens."""

    sources: tuple[Path, ...] = Field(min_length=1)
    """Files (.jsonl, .json, .csv, .parquet), or folders that ``datasets`` saved, of traces (their
    ids are used as stored), of prompts with responses, of messages, whose last turn is learnt, or
    of texts; or run folders, which stand for the completions kept."""
    template: TemplateChoice = Field(default_factory=lambda: load_template("plain").settings)
    """How the prompt of a row of text becomes tokens: the name of a built-in template, a YAML file,
    or the template itself. Traces have theirs as ids."""
    max_tokens: int | None = Field(None, ge=2)
    """Longest sequence, prompt and response together; longer ones are left out (and counted),
    never cut. null is the model's context."""
    per_step: int = Field(16, ge=1)
    """Sequences of an optimizer step."""
    learn: Literal["response", "all"] = "response"
    """Which tokens are learnt: those of responses, or also those of prompts after the first."""


class SftSchedule(Schedule):
    """Learning rate over the run: linear warm-up, then cosine to 0, unless told otherwise."""

    shape: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape after the warm-up."""
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    """Warm-up as a share of all updates, rounded up; warmup_updates above 0 takes its place."""

    def fraction(self, update: int, total: int) -> float:
        """Fraction of the learning rate for update number ``update`` (from 0) of ``total``."""
        warmup = self.warmup_updates or math.ceil(self.warmup_fraction * total)
        plain = Schedule(
            shape=self.shape, warmup_updates=warmup, final_fraction=self.final_fraction
        )
        return plain.fraction(update, total)


class SftLearner(UpdateSettings):
    """How weights are updated; the defaults are those of s1 (docs/methods/sft.md)."""

    lr: float = Field(1e-5, gt=0)
    """Peak learning rate of AdamW."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's moments."""
    weight_decay: float = Field(1e-4, ge=0)
    """Decoupled weight decay on matrices (never on norms and biases)."""
    schedule: SftSchedule = SftSchedule()
    """Learning rate over the run."""
    layout: Literal["auto", "packed", "padded"] = "auto"
    """packed lays several sequences out on a row, each of which sees itself alone, and sequences
    of one prompt share it; auto does so where a trial shows that it gives this model's numbers."""


class SftEvaluation(ProblemEvaluation):
    """Held-out traces that are scored, and problems that the model answers, from time to time."""

    traces: dict[str, tuple[Path, ...]] = Field(default_factory=dict)
    """Held-out demonstrations by name, as ``data.sources``."""
    max_prompt_tokens: int = Field(1024, ge=1)
    """Problems whose prompt is longer are left out (and counted), never cut."""


class SftRecipe(OfflineRecipe):
    """Supervised fine-tuning: the recipe of ``rlvr train`` with ``task: sft``."""

    task: Literal["sft"]
    """What is trained: a model, on demonstrations."""
    epochs: int | None = Field(None, ge=1)
    """Passes over the data; give these or steps."""
    steps: int | None = Field(None, ge=1)  # type: ignore[assignment]  # a run's recipe has them
    """Optimizer steps; give these or epochs."""
    data: SftData
    """The demonstrations."""
    tau: float = Field(1.0, ge=0.5, le=2)
    """The loss of a token of probability p, (1 - p^(tau-1)) / (tau-1): 1 is -log p, 2 is 1 - p.
    Above 1 improbable tokens, such as those of noisy demonstrations, have less weight
    (docs/methods/comp_sum.md)."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """e: the share of a token's target that is spread evenly over the vocabulary."""
    learner: SftLearner = SftLearner()
    """The optimizer."""
    evaluation: SftEvaluation = SftEvaluation()
    """Held-out demonstrations and problems."""

    def faults(self) -> list[str]:
        """Combinations of valid settings that cannot work, each with its remedy."""
        faults, asked = super().faults(), self.evaluation
        if (self.steps is None) == (self.epochs is None):
            faults.append(
                f"epochs = {self.epochs} and steps = {self.steps}: give one of the two, to say "
                "how long to train"
            )
        if self.label_smoothing and self.tau != 1:
            faults.append(
                f"label_smoothing = {self.label_smoothing} is of cross-entropy, which tau = "
                f"{self.tau} replaces; leave one out"
            )
        faults += without_hub(self, "supervised fine-tuning")
        faults += impossible_names(asked.sets, "evaluation.sets")
        faults += impossible_names(asked.traces, "evaluation.traces")
        return faults + [
            f"evaluation.sets and evaluation.traces both name {name!r}; rename one"
            for name in asked.sets.keys() & asked.traces.keys()
        ]


class SftTask(OfflineTask[SftRecipe]):
    """A run of supervised fine-tuning."""

    schema = SftRecipe
    prefix = "sft"
    too_long = "set data.max_tokens"

    @property
    def prompt_limit(self) -> int:
        """Longest prompt of problems that are answered."""
        return self.recipe.evaluation.max_prompt_tokens

    def count(self) -> tuple[int, list[str]]:
        """How many sequences there are, and lines about them."""
        from rich.console import Console

        from rlvr.learner.token_losses import learnt_tokens
        from rlvr.policy.loading import load_tokenizer

        examples, _ = self.load(load_tokenizer(self.recipe.model), Console(stderr=True))
        lengths = _lengths(examples)
        return len(examples), [
            f"sequences: {len(examples)}, the longest of {max(lengths)} tokens",
            f"tokens: {sum(lengths)}, of which {learnt_tokens(examples)} are learnt",
        ]

    def load(
        self,
        tokenizer: Any,  # noqa: ANN401
        console: Console,
    ) -> tuple[Examples, dict[str, Examples]]:
        """Demonstrations to learn from, and held-out ones by name.

        Raises:
            ValueError: They cannot be read, or none is short enough.
        """
        from rlvr.data.demonstrations import load_demonstrations

        data = self.recipe.data
        template = load_template(data.template)

        def load(name: str, sources: Sequence[Path], learn: str = "response") -> Examples:
            demonstrations = load_demonstrations(sources, template, tokenizer)
            examples = _examples(demonstrations, learn)
            return _short_enough(name, examples, data.max_tokens, console)

        training = load("data", data.sources, data.learn)
        traces = self.recipe.evaluation.traces
        return training, {name: load(name, files) for name, files in traces.items()}

    def fitting(self, policy: Policy, name: str, examples: Examples, console: Console) -> Examples:
        """Without ``data.max_tokens`` those that the model's context holds."""
        if self.recipe.data.max_tokens is None:
            examples = _short_enough(name, examples, policy.context_length, console)
        return super().fitting(policy, name, examples, console)

    def total_steps(self, count: int) -> int:
        """Optimizer steps of the run; the last of an epoch may be smaller."""
        if self.recipe.steps is not None:
            return self.recipe.steps
        assert self.recipe.epochs is not None
        return self.recipe.epochs * math.ceil(count / self.recipe.data.per_step)

    def learner(self, policy: Policy, launch: Launch, checkpoint: Path | None) -> OfflineLearner:
        """The loss of tokens."""
        from rlvr.learner.offline import OfflineLearner
        from rlvr.learner.token_losses import TokenLoss

        recipe = self.recipe
        assert recipe.steps is not None, "the run counts its epochs"
        loss = TokenLoss(recipe.tau, recipe.label_smoothing)
        return OfflineLearner(
            policy,
            loss,
            recipe.learner,
            total_updates=recipe.steps,
            launch=launch,
            seed=recipe.seed,
        )

    def next(self, run: OfflineRun, clock: Clock) -> tuple[Examples, dict[str, float]]:
        """The coming sequences; a step ends where an epoch does."""
        left = len(run.data) - run.sampler.drawn % len(run.data)
        return run.data.select(run.sampler.next(min(self.recipe.data.per_step, left))), {}

    def epoch(self, run: OfflineRun) -> float:
        """Passes over the data so far."""
        whole, rest = divmod(run.sampler.drawn, len(run.data))
        return whole + rest / len(run.data)

    def measure(self, run: OfflineRun, name: str, examples: Examples) -> dict[str, float]:
        """How improbable held-out responses are."""
        from rlvr.learner.token_losses import surprisal

        return surprisal(run.learner, examples)


def _examples(demonstrations: Sequence[Demonstration], learn: str) -> Examples:
    from rlvr.data.examples import Examples

    pairs = [(item.prompt_ids, item.token_ids) for item in demonstrations]
    if learn == "all":  # each token is learnt from those before it; the first has none
        pairs = [(prompt[:1], (*prompt[1:], *ids)) for prompt, ids in pairs]
    return Examples.of_one(
        [prompt for prompt, _ in pairs],
        [ids for _, ids in pairs],
        groups=[item.name for item in demonstrations],
    )


def _short_enough(name: str, examples: Examples, limit: int | None, console: Console) -> Examples:
    """The sequences of at most so many tokens.

    Raises:
        ValueError: There are none.
    """
    from rlvr.runs.log import notify

    lengths = _lengths(examples)
    kept = [row for row, length in enumerate(lengths) if limit is None or length <= limit]
    if not kept:
        raise ValueError(
            f"{name}: none of {len(lengths)} sequences is within data.max_tokens = {limit}; the "
            f"shortest has {min(lengths)} tokens"
        )
    if len(kept) < len(lengths):
        left = len(lengths) - len(kept)
        notify(console, f"{name}: left out {left} of {len(lengths)} sequences of more than {limit} "
            "tokens")  # fmt: skip
    return examples.select(kept)


def _lengths(examples: Examples) -> list[int]:
    both = zip(examples.prompt_ids, examples.completion_ids, strict=True)
    return [len(prompt) + len(ids) for prompt, ids in both]
