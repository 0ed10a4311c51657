r"""How long a step takes on a number of GPUs, and how to split them: a discrete-event model.

Rollout GPUs decode and learner GPUs train. They work at the same time as far as
``rollout.max_staleness`` allows (rlvr/rl/rollouts.py). The model uses measured times of the phases:

- **An engine** with b completions in flight takes ``decode_s + decode_row_s * b`` for one token of
  each. Completions wait in one queue; an engine with a free slot takes the next one, reads its
  prompt (``prompt_tokens / prefill_tokens_per_s``, which delays the others) and decodes it to its
  length. Between two such events b is constant, so an engine's time is computed event by event.
- **Lengths** are log-normal with a mean and a 95 % quantile, cut at ``max_tokens``.
- **The learner** trains ``trained_tokens_per_s`` tokens per second and GPU; when the number of GPUs
  doubles, each keeps ``learner_scaling`` of its rate.
- **A sync** takes ``sync_s`` for any number of engines (it is a broadcast).

With u_s the end of update s, g_s the end of rollout s and y the sync, for staleness k:

    rollout s begins at  max(g_{s-1}, u_{s-1-k} + y)        when its weights exist
    update s begins at   max(g_s, u_{s-1})
    colocated:           rollout, update and sync run one after another on all GPUs

The model ignores network contention, failures, evaluation and checkpoints, the sharing of a prompt
by a group's completions in an engine's cache, and pipelining within a rollout.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from pydantic import Field, model_validator

from rlvr.lazy import np
from rlvr.settings import Settings


class Lengths(Settings):
    """Distribution of completion lengths."""

    mean: float = Field(gt=0)
    """Mean number of tokens of a completion, before the limit cuts it."""
    p95: float = Field(gt=0)
    """95 % quantile of the length."""
    max_tokens: int = Field(ge=1)
    """Maximum number of tokens of a completion."""

    @model_validator(mode="after")
    def _possible(self) -> Lengths:
        if self.p95 < self.mean or self._spread() is None:
            raise ValueError(
                f"no log-normal distribution has mean {self.mean:g} and 95 % quantile "
                f"{self.p95:g}; the quantile must be between the mean and 3.87 times the mean"
            )
        return self

    def _spread(self) -> float | None:
        """Sigma of the logarithm: p95 / mean = exp(1.645 sigma - sigma^2 / 2), the smaller root."""
        quantile = NormalDist().inv_cdf(0.95)
        inside = quantile**2 - 2 * math.log(self.p95 / self.mean)
        return None if inside < 0 else quantile - math.sqrt(inside)

    def draw(self, count: int, seed: int) -> np.ndarray:
        """Lengths of ``count`` completions in tokens, from 1 to the limit."""
        sigma = self._spread()
        assert sigma is not None
        mu = math.log(self.mean) - sigma**2 / 2
        drawn = np.random.default_rng(seed).lognormal(mu, sigma, count)
        return np.clip(np.rint(drawn), 1, self.max_tokens).astype(int)


class Measured(Settings):
    """Measured figures of one rollout GPU and one learner GPU (``rlvr bench`` prints them)."""

    prompts_per_step: int = Field(ge=1)
    """Number of prompts in a step."""
    samples_per_prompt: int = Field(ge=1)
    """Number of completions of each prompt."""
    prompt_tokens: int = Field(ge=0)
    """Number of tokens of a prompt."""
    lengths: Lengths
    """Distribution of completion lengths."""
    decode_s: float = Field(ge=0)
    """Seconds of an empty decoding step: reading the weights, launching kernels."""
    decode_row_s: float = Field(ge=0)
    """Seconds that each completion in flight adds to a decoding step."""
    prefill_tokens_per_s: float = Field(gt=0)
    """Prompt tokens prefilled per second."""
    max_num_seqs: int = Field(128, ge=1)
    """Maximum number of completions in flight per engine."""
    gpus_per_engine: int = Field(1, ge=1)
    """Number of GPUs of an engine (tensor parallelism)."""
    trained_tokens_per_s: float = Field(gt=0)
    """Tokens, including prompts, on which one learner GPU trains per second."""
    learner_scaling: float = Field(0.95, gt=0, le=1)
    """Share of its rate that a learner GPU keeps when the number of GPUs doubles."""
    gpus_per_learner: int = Field(1, ge=1)
    """Minimum number of GPUs that can hold the training state."""
    sync_s: float = Field(ge=0)
    """Seconds to send new weights to the engines."""
    overhead_s: float = Field(0.0, ge=0)
    """Seconds of a step outside generation and training."""

    @property
    def completions(self) -> int:
        """Number of completions in a step."""
        return self.prompts_per_step * self.samples_per_prompt


@dataclass(frozen=True)
class Prediction:
    """A split of the GPUs and the times of a step with it.

    Attributes:
        gpus: Total number of GPUs.
        rollout: GPUs that decode; 0 means colocated: all GPUs do both, one after the other.
        learner: GPUs that train.
        step_s: Seconds of a step, averaged over the simulated steps.
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
        """The phase that limits the speed."""
        if not self.rollout:
            return "colocated"
        return "rollout" if self.rollout_s > self.update_s else "update"


def rollout_seconds(lengths: Sequence[int], measured: Measured, engines: int) -> list[float]:
    """When each engine finishes its share of a rollout, in seconds from its start.

    All engines share one queue, as in our rollout: an engine with a free slot takes the next
        completion.
    """
    waiting = list(lengths)[::-1]
    # For each engine: the time, the tokens decoded since its start, the ends of completions in
    # flight.
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
    """Seconds of an update of ``tokens`` tokens on ``gpus`` learner GPUs."""
    kept = measured.learner_scaling ** math.log2(gpus)
    return tokens / (measured.trained_tokens_per_s * gpus * kept)


def predict(
    measured: Measured, rollout: int, learner: int, staleness: int, steps: int = 20, seed: int = 0
) -> Prediction:
    """Simulate ``steps`` steps of one split; ``rollout`` 0 is colocated on the learner's GPUs.

    Raises:
        ValueError: The split has no learner, or fewer GPUs than an engine or learner needs.
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
    """The fastest use of a number of GPUs: the best split, or colocated.

    Raises:
        ValueError: There are too few GPUs for a learner or an engine.
    """
    least = max(measured.gpus_per_learner, measured.gpus_per_engine)
    if gpus < least:
        raise ValueError(f"{gpus} GPUs are too few: a learner or an engine needs {least}")
    found = [predict(measured, 0, gpus, staleness, steps)]
    unit = measured.gpus_per_engine
    most = (gpus - measured.gpus_per_learner) // unit
    # The best split is near the one where rollout and update take equally long: search a coarse
    # grid, then around it.
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
