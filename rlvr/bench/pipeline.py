r"""How long a step takes on so many GPUs, and how to split them: a discrete-event model.

Rollout GPUs decode, learner GPUs train, and the two run side by side as ``rollout.max_staleness``
allows (rlvr/train/ahead.py). Everything follows from phase times that were measured:

- **An engine** with b completions in flight takes ``decode_s + decode_row_s * b`` for a token of
  each. Completions wait in one queue; an engine that has a place free takes the next, reads its
  prompt (``prompt_tokens / prefill_tokens_per_s``, which holds the others up) and decodes it to its
  length. Between two such events b is constant, so an engine's time is worked out event by event.
- **Lengths** are log-normal with a mean and a 95 % quantile, cut at ``max_tokens``.
- **The learner** trains tokens at ``trained_tokens_per_s`` a GPU; doubling its GPUs keeps
  ``learner_scaling`` of the rate of each.
- **A sync** takes ``sync_s`` whatever the number of engines (a broadcast).

With u_s the end of update s, g_s the end of rollout s and y the sync, for staleness k:

    rollout s begins at  max(g_{s-1}, u_{s-1-k} + y)        its weights are old enough
    update s begins at   max(g_s, u_{s-1})
    colocated:           rollout, update and sync take turns on all GPUs

Left out: network contention, failures, evaluation and checkpoints, prompts shared by a group's
completions in an engine's cache beyond the first, and pipelining within a rollout.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from pydantic import Field, model_validator

from rlvr.settings import Settings


class Lengths(Settings):
    """Distribution of completion lengths."""

    mean: float = Field(gt=0)
    """Mean tokens of a completion, before the limit cuts it."""
    p95: float = Field(gt=0)
    """Length that 95 % of completions stay below."""
    max_tokens: int = Field(ge=1)
    """Limit at which completions are cut."""

    @model_validator(mode="after")
    def _possible(self) -> "Lengths":
        if self.p95 < self.mean or self._spread() is None:
            raise ValueError(
                f"no log-normal distribution has mean {self.mean:g} and 95 % quantile "
                f"{self.p95:g}; the quantile is between the mean and 3.87 times the mean"
            )
        return self

    def _spread(self) -> float | None:
        """Sigma of the logarithm: p95 / mean = exp(1.645 sigma - sigma^2 / 2), the smaller root."""
        quantile = NormalDist().inv_cdf(0.95)
        inside = quantile**2 - 2 * math.log(self.p95 / self.mean)
        return None if inside < 0 else quantile - math.sqrt(inside)

    def draw(self, count: int, seed: int) -> np.ndarray:
        """Lengths of ``count`` completions, whole tokens from 1 to the limit."""
        sigma = self._spread()
        assert sigma is not None
        mu = math.log(self.mean) - sigma**2 / 2
        drawn = np.random.default_rng(seed).lognormal(mu, sigma, count)
        return np.clip(np.rint(drawn), 1, self.max_tokens).astype(int)


class Measured(Settings):
    """What was measured of one rollout GPU and one learner GPU (``rlvr bench`` says them)."""

    prompts_per_step: int = Field(ge=1)
    """Prompts of a step."""
    samples_per_prompt: int = Field(ge=1)
    """Completions of each."""
    prompt_tokens: int = Field(ge=0)
    """Tokens of a prompt."""
    lengths: Lengths
    """Tokens of the completions."""
    decode_s: float = Field(ge=0)
    """Seconds of a decoding step with nothing in it: reading the weights, launching kernels."""
    decode_row_s: float = Field(ge=0)
    """Seconds that each completion in flight adds to a decoding step."""
    prefill_tokens_per_s: float = Field(gt=0)
    """Prompt tokens read a second."""
    max_num_seqs: int = Field(128, ge=1)
    """Completions an engine has in flight."""
    gpus_per_engine: int = Field(1, ge=1)
    """GPUs of an engine (tensor parallel)."""
    trained_tokens_per_s: float = Field(gt=0)
    """Tokens, prompts included, that one learner GPU trains on a second."""
    learner_scaling: float = Field(0.95, gt=0, le=1)
    """Share of a learner GPU's rate that is kept when their number doubles."""
    gpus_per_learner: int = Field(1, ge=1)
    """Least GPUs that hold the training state."""
    sync_s: float = Field(ge=0)
    """Seconds of giving new weights to the engines."""
    overhead_s: float = Field(0.0, ge=0)
    """Seconds of a step that neither generate nor train."""

    @property
    def completions(self) -> int:
        """Completions of a step."""
        return self.prompts_per_step * self.samples_per_prompt


@dataclass(frozen=True)
class Prediction:
    """A split of the GPUs and what a step takes with it.

    Attributes:
        gpus: All of them.
        rollout: Those that decode; 0 is colocated, all do both in turn.
        learner: Those that train.
        step_s: Seconds of a step, mean over the simulated ones.
        rollout_s: Seconds of a rollout alone.
        update_s: Seconds of an update alone.
        idle: Share of GPU seconds in which a GPU waits for others.
    """

    gpus: int
    rollout: int
    learner: int
    step_s: float
    rollout_s: float
    update_s: float
    idle: float

    @property
    def bound_by(self) -> str:
        """What is to be made faster."""
        if not self.rollout:
            return "both in turn"
        return "rollout" if self.rollout_s > self.update_s else "update"


def rollout_seconds(lengths: Sequence[int], measured: Measured, engines: int) -> list[float]:
    """When each engine is done with its share of a rollout, seconds from its begin.

    One queue, as our worker keeps it: whoever has a place free takes the next completion.
    """
    waiting = list(lengths)[::-1]
    # Of each engine: the time, tokens decoded since its begin, ends of what is in flight.
    times, decoded = [0.0] * engines, [0.0] * engines
    flying: list[list[float]] = [[] for _ in range(engines)]
    reading = measured.prompt_tokens / measured.prefill_tokens_per_s

    def admit(engine: int) -> None:
        heapq.heappush(flying[engine], decoded[engine] + waiting.pop())
        times[engine] += reading

    for _ in range(measured.max_num_seqs):
        for engine in range(engines):
            if waiting:
                admit(engine)
    agenda: list[tuple[float, int]] = []

    def plan(engine: int) -> None:
        if flying[engine]:
            token_s = measured.decode_s + measured.decode_row_s * len(flying[engine])
            ends = times[engine] + (flying[engine][0] - decoded[engine]) * token_s
            heapq.heappush(agenda, (ends, engine))

    for engine in range(engines):
        plan(engine)
    while agenda:
        ends, engine = heapq.heappop(agenda)
        times[engine] = ends
        decoded[engine] = heapq.heappop(flying[engine])
        if waiting:
            admit(engine)
        plan(engine)
    return times


def update_seconds(tokens: int, measured: Measured, gpus: int) -> float:
    """Seconds of an update of so many tokens on so many learner GPUs."""
    kept = measured.learner_scaling ** math.log2(gpus)
    return tokens / (measured.trained_tokens_per_s * gpus * kept)


def predict(
    measured: Measured, rollout: int, learner: int, staleness: int, steps: int = 20, seed: int = 0
) -> Prediction:
    """Simulate ``steps`` steps of one split; ``rollout`` 0 is colocated on the learner's GPUs.

    Raises:
        ValueError: A split without learners, or with fewer GPUs than an engine or learner needs.
    """
    _check_split(measured, rollout, learner)
    gpus = rollout + learner
    engines = (rollout or learner) // measured.gpus_per_engine
    ended, updated = 0.0, [0.0]
    rollouts, updates, busy = [], [], 0.0
    for step in range(1, steps + 1):
        lengths = measured.lengths.draw(measured.completions, seed + step)
        own = rollout_seconds(lengths.tolist(), measured, engines)
        tokens = int(lengths.sum()) + measured.completions * measured.prompt_tokens
        train = update_seconds(tokens, measured, learner)
        rollouts.append(max(own))
        updates.append(train)
        busy += sum(own) * measured.gpus_per_engine + train * learner
        if not rollout:
            ended = updated[-1] + measured.sync_s + max(own)
        else:
            allowed = updated[max(0, step - 1 - staleness)]
            ended = max(ended, allowed + measured.sync_s) + max(own)
        updated.append(max(ended, updated[-1]) + train + measured.overhead_s)
    # The first steps fill the pipeline.
    skipped = min(staleness + 1, steps - 1)
    step_s = (updated[-1] - updated[skipped]) / (steps - skipped)
    return Prediction(
        gpus=gpus,
        rollout=rollout,
        learner=learner,
        step_s=step_s,
        rollout_s=float(np.mean(rollouts)),
        update_s=float(np.mean(updates)),
        idle=max(0.0, 1 - busy / (gpus * updated[-1])),
    )


def best_split(measured: Measured, gpus: int, staleness: int, steps: int = 20) -> Prediction:
    """The fastest way to use so many GPUs: the best split, or all for both in turn.

    Raises:
        ValueError: Too few GPUs for a learner or an engine.
    """
    least = max(measured.gpus_per_learner, measured.gpus_per_engine)
    if gpus < least:
        raise ValueError(f"{gpus} GPUs are too few: a learner or an engine needs {least}")
    found = [predict(measured, 0, gpus, staleness, steps)]
    unit = measured.gpus_per_engine
    most = (gpus - measured.gpus_per_learner) // unit
    # Where rollout and update take equally long is near the best; a coarse grid, then around it.
    stride = max(1, most // 16)
    tried = set(range(1, most + 1, stride))
    for _ in range(2):
        found += [predict(measured, e * unit, gpus - e * unit, staleness, steps) for e in tried]
        best = min(found, key=lambda one: one.step_s).rollout // unit
        near = range(max(1, best - stride), min(most, best + stride) + 1)
        tried = {*near[:: max(1, stride // 4)]} - tried
    return min(found, key=lambda one: one.step_s)


def _check_split(measured: Measured, rollout: int, learner: int) -> None:
    if learner < measured.gpus_per_learner:
        raise ValueError(
            f"{learner} learner GPUs; the training state needs {measured.gpus_per_learner}"
        )
    if (rollout or learner) < measured.gpus_per_engine:
        raise ValueError(
            f"{rollout or learner} rollout GPUs; an engine needs {measured.gpus_per_engine}"
        )
