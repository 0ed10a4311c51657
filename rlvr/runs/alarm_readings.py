"""What each alarm reads in a step: pure functions of its metrics and of a few before it.

A reading is a figure, large where something is wrong, and a sentence that says it. Where a step has
not the metrics that an alarm is about, there is no reading, and the alarm stays as it is. The
thresholds are not laws: docs/alarms.md says where each comes from.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median, stdev

Row = Mapping[str, float]
"""The metrics of a step."""

FEW = 8
"""Steps that a first level, or a mean, is taken from."""
WINDOW = 64
"""Steps whose median is the level that a step is compared with."""
_LEAST_JUDGED = 20
# Of an accuracy: that of 0 or 1 has none by resampling.
_LEAST_ERROR = 0.01
_LEAST_ENTROPY = 1e-9
# A bias that is smaller than this is none to speak of, however certain it is.
_LEAST_LENGTH_BIAS = 0.05
_LEAST_DIFFICULTY_BIAS = 0.1


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An accuracy on a held-out set, and the mean rewards of the steps up to it."""

    step: int
    accuracy: float
    error: float
    rewards: tuple[float, ...]


@dataclass
class Past:
    """What alarms know of the steps before one."""

    first_entropies: list[float] = field(default_factory=list)
    recent: deque[Row] = field(default_factory=lambda: deque(maxlen=WINDOW))
    best: dict[str, Evaluation] = field(default_factory=dict)
    """The best evaluation of each held-out set."""

    def values(self, name: str, most: int = WINDOW) -> list[float]:
        """The finite values of a metric in the last steps that have it, oldest first."""
        found = [row[name] for row in self.recent if math.isfinite(row.get(name, math.nan))]
        return found[-most:]

    def add(self, step: int, row: Row) -> None:
        """Take in a step, after it was read."""
        entropy = row.get("policy/entropy")
        if entropy is not None and len(self.first_entropies) < FEW:
            self.first_entropies.append(entropy)
        for name, found in evaluations(step, row, self).items():
            if found.rewards and found.accuracy > getattr(self.best.get(name), "accuracy", -1):
                self.best[name] = found
        if "time/step" in row:  # and not an evaluation alone, as before the first step
            self.recent.append(row)


@dataclass(frozen=True, slots=True)
class Reading:
    """A figure, and what it is in words."""

    figure: float
    says: str


Read = Callable[[int, Row, Past], Reading | None]
"""Called with (step, its metrics, the steps before)."""


def evaluations(step: int, row: Row, past: Past) -> dict[str, Evaluation]:
    """The accuracies that a step has, by set."""
    rewards = [*past.values("reward/mean"), *([row["reward/mean"]] if "reward/mean" in row else [])]
    names = [name.split("/")[1] for name in row if _is_accuracy(name)]
    return {
        name: Evaluation(
            step,
            row[f"eval/{name}/accuracy"],
            row.get(f"eval/{name}/accuracy_se", 0.0),
            tuple(rewards[-FEW:]),
        )
        for name in names
    }


def _is_accuracy(name: str) -> bool:
    return name.startswith("eval/") and name.endswith("/accuracy")


def gradient_norm(step: int, row: Row, past: Past) -> Reading | None:
    """The norm over the median of the last steps."""
    return _against_median(row, past, "learner/grad_norm")


def length_explosion(step: int, row: Row, past: Past) -> Reading | None:
    """The mean length over the median of the last steps."""
    return _against_median(row, past, "completion/length_mean")


def _against_median(row: Row, past: Past, name: str) -> Reading | None:
    before = past.values(name)
    now = row.get(name, math.nan)
    if len(before) < FEW or not math.isfinite(now) or not median(before):
        return None
    level = median(before)
    says = f"{name} {now:.4g} is {now / level:.3g} times the median of {len(before)} steps before"
    return Reading(now / level, f"{says} ({level:.4g})")


def mismatch(step: int, row: Row, past: Past) -> Reading | None:
    """The mean |log-ratio|; where rollouts are older than the policy it says something else."""
    now = row.get("mismatch/difference")
    if now is None or row.get("rollout/staleness_max", 0):
        return None
    return Reading(now, f"mismatch/difference {now:.3g} nats")


def entropy_collapse(step: int, row: Row, past: Past) -> Reading | None:
    """The entropy of the first steps over that of now."""
    now = row.get("policy/entropy")
    if now is None or len(past.first_entropies) < FEW:
        return None
    first = median(past.first_entropies)
    times = first / max(now, _LEAST_ENTROPY)
    return Reading(times, f"policy/entropy {now:.3g} nats, {first:.3g} in the first {FEW} steps")


def truncation(step: int, row: Row, past: Past) -> Reading | None:
    """The share that is cut."""
    return _share(row, "completion/truncated")


def zero_variance(step: int, row: Row, past: Past) -> Reading | None:
    """The share of groups of equal rewards."""
    return _share(row, "reward/zero_variance_groups")


def disputed(step: int, row: Row, past: Past) -> Reading | None:
    """The share of verdicts that are disputed, once enough were judged again."""
    kinds = ("accepted", "rejected")
    judged = sum(
        row.get(f"check/{k}_judged", 0) - row.get(f"check/{k}_undecided", 0) for k in kinds
    )
    return _share(row, "check/disputed") if judged >= _LEAST_JUDGED else None


def _share(row: Row, name: str) -> Reading | None:
    now = row.get(name)
    return None if now is None else Reading(now, f"{name} {now:.3g}")


def held_out_gap(step: int, row: Row, past: Past) -> Reading | None:
    """How far a set is below its best, in standard errors, if the reward has risen since then."""
    found = evaluations(step, row, past)
    gaps = [_gap(name, now, past.best[name]) for name, now in found.items() if name in past.best]
    return max(gaps, key=lambda gap: gap.figure, default=None)


def _gap(name: str, now: Evaluation, best: Evaluation) -> Reading:
    error = max(_LEAST_ERROR, math.hypot(now.error, best.error))
    drop = best.accuracy - now.accuracy
    risen = _risen(best.rewards, now.rewards)
    says = (
        f"eval/{name}/accuracy {now.accuracy:.3f}, {best.accuracy:.3f} at step {best.step}, while "
        f"reward/mean went from {fmean(best.rewards):.3g} to {fmean(now.rewards):.3g}"
    )
    return Reading(drop / error if risen and drop > 0 else 0.0, says)


def _risen(before: Sequence[float], now: Sequence[float]) -> bool:
    """Whether a mean is above another by more than twice the standard error of the difference."""
    error = math.hypot(*(_error(values) for values in (before, now)))
    return fmean(now) - fmean(before) > 2 * error


def _error(values: Sequence[float]) -> float:
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def length_bias(step: int, row: Row, past: Past) -> Reading | None:
    """Standard errors between the mean lengths of what is trained on and what was drawn."""
    ratios = _with(row, past, "bias/length")
    if not ratios:
        return None
    ratio = fmean(ratios)
    says = f"what is trained on has {ratio:.3g} times the mean length of what was drawn"
    return _bias(row, past, "bias/length_z", abs(ratio - 1) > _LEAST_LENGTH_BIAS, says)


def difficulty_bias(step: int, row: Row, past: Past) -> Reading | None:
    """Standard errors between the shares of right answers."""
    changes = _with(row, past, "bias/difficulty")
    if not changes:
        return None
    change = fmean(changes)
    says = f"the share of right answers trained on is {change:+.3g} above that of what was drawn"
    return _bias(row, past, "bias/difficulty_z", abs(change) > _LEAST_DIFFICULTY_BIAS, says)


def _with(row: Row, past: Past, name: str) -> list[float]:
    """A metric in this step and a few before it; empty if the step has it not."""
    return [*past.values(name, FEW - 1), row[name]] if name in row else []


def _bias(row: Row, past: Past, name: str, large: bool, says: str) -> Reading | None:
    """Standard errors of several steps together (Stouffer): their sum over the root of how many."""
    errors = _with(row, past, name)
    if not errors:
        return None
    z = sum(errors) / math.sqrt(len(errors))
    says = f"{says} over {len(errors)} steps ({z:+.3g} standard errors)"
    return Reading(abs(z) if large else 0.0, says)


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm as it comes.

    Attributes:
        read: What it reads.
        above: The figure above which a step counts.
        steps: Steps in a row that begin and end it.
        shown: Metrics in whose charts it is marked; ``*`` stands for any name.
        advice: What to look at.
    """

    read: Read
    above: float
    steps: int
    shown: tuple[str, ...]
    advice: str


MISMATCH = {"float32": 1e-3, "bfloat16": 0.1}
"""Nats of ``mismatch/difference`` that a precision explains (docs/alarms.md#mismatch)."""

ALARMS: dict[str, Alarm] = {
    "gradient_norm": Alarm(
        gradient_norm, 10, 1, ("learner/grad_norm",), "look at the step's data; lower learner.lr"
    ),
    "mismatch": Alarm(
        mismatch, MISMATCH["float32"], 3, ("mismatch/*",), "set correction, or engine transformers"
    ),
    "entropy_collapse": Alarm(
        entropy_collapse, 10, 3, ("policy/entropy",), "lower learner.lr, or use clip with high 0.28"
    ),
    "length_explosion": Alarm(
        length_explosion, 2, 3, ("completion/length_mean",), "read completions; reward overlong"
    ),
    "truncation": Alarm(
        truncation, 0.3, 3, ("completion/truncated",), "raise rollout.sampling.max_tokens"
    ),
    "held_out_gap": Alarm(
        held_out_gap,
        2,
        2,
        ("reward/mean", "eval/*/accuracy"),
        "read rewarded completions: the reward may be gamed",
    ),
    "disputed": Alarm(
        disputed, 0.1, 3, ("check/disputed",), "read disputed.jsonl; another reward.verifier"
    ),
    "zero_variance": Alarm(
        zero_variance,
        0.8,
        3,
        ("reward/zero_variance_groups",),
        "other problems, more samples_per_prompt, or dynamic_sampling_rounds",
    ),
    "length_bias": Alarm(
        length_bias, 3, 3, ("bias/length*",), "see whether filters or masks pick by length"
    ),
    "difficulty_bias": Alarm(
        difficulty_bias, 3, 3, ("bias/difficulty*",), "see whether filters pick what you want"
    ),
}
"""Every alarm by name."""


def merged(rows: Iterable[Row]) -> dict[int, dict[str, float]]:
    """The metrics of each step, whose lines in ``metrics.jsonl`` may be several."""
    steps: dict[int, dict[str, float]] = {}
    for row in rows:
        steps.setdefault(int(row["step"]), {}).update(row)
    return steps
