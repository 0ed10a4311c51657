"""The schema of a recipe with ``task: sft``: supervised fine-tuning on traces or responses."""

import math
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from rlvr.data import Source, TemplateChoice, load_template
from rlvr.learner import OptimizerSettings, Schedule
from rlvr.rollout import Sampling
from rlvr.settings import Settings
from rlvr.train.base_recipe import BaseEvaluation, BaseRecipe, impossible_names, without_hub


class SftData(Settings):
    """What is imitated and how it becomes tokens."""

    sources: tuple[Path, ...] = Field(min_length=1)
    """JSONL files of traces (their ids are used as stored), of prompts with responses, or of
    messages, whose last turn is learnt; or run folders, which stand for the completions kept."""
    template: TemplateChoice = Field(default_factory=lambda: load_template("plain").settings)
    """How the prompt of a row of text becomes tokens: the name of a built-in template, a YAML file,
    or the template itself. Traces have theirs as ids."""
    max_tokens: int | None = Field(None, ge=2)
    """Longest sequence, prompt and response together; longer ones are left out (and counted),
    never cut. null is the model's context."""
    per_step: int = Field(16, ge=1)
    """Sequences of an optimizer step; with packing, packed rows."""
    shuffle: bool = True
    """Visit them in a new random order in every epoch."""
    packing: bool = False
    """Lay several sequences out on a row of max_tokens, each seeing itself alone. Refused where a
    trial shows that the model's attention lets them see each other."""


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


class SftLearner(OptimizerSettings):
    """How weights are updated; the defaults are those of s1 (docs/methods/sft.md)."""

    lr: float = Field(1e-5, gt=0)
    """Peak learning rate of AdamW."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's moments."""
    weight_decay: float = Field(1e-4, ge=0)
    """Decoupled weight decay on matrices (never on norms and biases)."""
    schedule: SftSchedule = SftSchedule()
    """Learning rate over the run."""
    rows_per_micro_batch: int = Field(1, ge=1)
    """Sequences (with packing, rows) run at once by a process. data.per_step must be a multiple of
    it times the number of processes."""


class SftEvaluation(BaseEvaluation):
    """Held-out traces that are scored, and problems that the model answers, from time to time."""

    traces: dict[str, tuple[Path, ...]] = Field(default_factory=dict)
    """Held-out demonstrations by name, as ``data.sources``."""
    sets: dict[str, Source] = Field(default_factory=dict)
    """Problems by name; the model's answers are graded by the verifier."""
    template: TemplateChoice | None = None
    """Template of the problems; null is that of the data."""
    max_prompt_tokens: int = Field(1024, ge=1)
    """Problems whose prompt is longer are left out (and counted), never cut."""
    samples: int = Field(1, ge=1)
    """Completions of each problem."""
    sampling: Sampling = Sampling(max_tokens=512, temperature=0.0)
    """How the model's answers are drawn."""
    tokens_per_micro_batch: int = Field(4096, ge=1)
    """Most input positions of held-out demonstrations run at once, padding included."""


class SftRecipe(BaseRecipe):
    """Supervised fine-tuning: the recipe of ``rlvr train`` with ``task: sft``."""

    task: Literal["sft"]
    """What is trained: a model, on demonstrations."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Order of the data, initialisation of adapters."""
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
    learner: SftLearner = SftLearner()  # type: ignore[assignment]  # no micro-batches of ours
    """The optimizer."""
    evaluation: SftEvaluation = SftEvaluation()
    """Held-out demonstrations and problems."""

    @model_validator(mode="after")
    def _possible(self) -> "SftRecipe":
        for fault in _impossible(self):
            raise ValueError(fault)
        return self

    def total_steps(self, rows: int) -> int:
        """Optimizer steps of the run over so many rows; the last of an epoch may be smaller."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return self.epochs * math.ceil(rows / self.data.per_step)


def _impossible(recipe: SftRecipe) -> list[str]:
    """Combinations of valid settings that cannot work, each with its remedy."""
    faults = []
    if (recipe.steps is None) == (recipe.epochs is None):
        faults.append(
            f"epochs = {recipe.epochs} and steps = {recipe.steps}: give one of the two, to say "
            "how long to train"
        )
    if recipe.data.packing and recipe.data.max_tokens is None:
        faults.append(
            "data.packing fills rows of data.max_tokens, which is null; say how long a row is"
        )
    if recipe.data.per_step % recipe.learner.rows_per_micro_batch:
        faults.append(
            f"data.per_step = {recipe.data.per_step} is no multiple of "
            f"learner.rows_per_micro_batch = {recipe.learner.rows_per_micro_batch}; change one"
        )
    if recipe.model.compile:
        faults.append("model.compile is not used by task sft; set it to false")
    if recipe.checkpoint.background:
        faults.append("checkpoint.background is not done by task sft; set it to false")
    faults += without_hub(recipe, "supervised fine-tuning")
    faults += impossible_names(recipe.evaluation.sets, "evaluation.sets")
    faults += impossible_names(recipe.evaluation.traces, "evaluation.traces")
    for name in recipe.evaluation.sets.keys() & recipe.evaluation.traces.keys():
        faults.append(f"evaluation.sets and evaluation.traces both name {name!r}; rename one")
    return faults
