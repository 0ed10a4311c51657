"""Scoring and ranking sampled responses by a reward model, from files.

The model is an implicit process reward model with its reference, or an explicit one, which is told
by the head beside its weights: its one reward of a response stands for that of a single step.

The curves stand beside what they have to beat: a random choice, majority vote and pass@N, which are
those of ``eval/metrics.py``, exact over the draw of N responses. So is best of N; the weighted vote
is averaged over drawn subsets. Errors are a bootstrap over problems (``eval/statistics.py``).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import torch

from eval.metrics import REFERENCE, maj_at_k, pass_at_k, shown_ks
from eval.statistics import Bootstrap
from rlvr.data import load_template
from rlvr.data.responses import Response, encode_responses, load_responses
from rlvr.policy import ModelSettings, load_policy, load_tokenizer
from rlvr.prm import (
    expected_best,
    expected_vote,
    log_ratios,
    ranking,
    response_score,
    step_rewards,
    steps_of_ids,
)
from rlvr.prm.best_of_n import Aggregate, Values
from rlvr.rm import calibration, has_head, load_reward_model, response_rewards
from rlvr.train.log import write_atomically


@dataclass(frozen=True, slots=True)
class Scoring:
    """With what, and how, responses are scored."""

    model: str
    reference: str | None = None
    no_reference: bool = False
    template: str = "raw"
    steps: str = "blank_lines"
    tokens_per_micro_batch: int = 4096

    @property
    def explicit(self) -> bool:
        """Whether the model is one with a head."""
        return has_head(self.model)

    def check(self) -> None:
        """See that it is whole.

        Raises:
            ValueError: It is not clear what the reference is.
        """
        if self.explicit:
            if self.reference is not None:
                raise ValueError(
                    f"{self.model!r} is an explicit reward model, which has no reference; leave "
                    "--reference out"
                )
            return
        if (self.reference is None) == (not self.no_reference):
            raise ValueError(
                "a reward model needs its reference: name the model that its training started "
                "from with --reference, or take log-probabilities alone with --no-reference (not "
                "both)"
            )


@dataclass(frozen=True, slots=True)
class Scored:
    """A response and its log-ratios in nats: of tokens and of steps, which end where it says.

    Of an ``explicit`` model both are the one reward, for the whole response.
    """

    response: Response
    tokens: tuple[float, ...]
    steps: tuple[float, ...]
    ends: tuple[int, ...]
    explicit: bool = False


def score(responses: Sequence[Response], how: Scoring) -> list[Scored]:
    """Score responses.

    Raises:
        ValueError: The models cannot be loaded, or do not fit the prompts.
    """
    how.check()
    settings = ModelSettings(path=how.model)
    tokenizer = load_tokenizer(settings)
    encoded = encode_responses(responses, load_template(how.template), tokenizer)
    if how.explicit:
        return _score_whole(responses, encoded, how)
    ends = [steps_of_ids(tokenizer, ids, how.steps) for _, ids in encoded]
    model = load_policy(settings)
    reference = load_policy(ModelSettings(path=how.reference)) if how.reference else None
    _check_fit(encoded, [model, *([reference] if reference else [])])
    ratios = log_ratios(
        model,
        reference,
        [prompt for prompt, _ in encoded],
        [ids for _, ids in encoded],
        tokens_per_micro_batch=how.tokens_per_micro_batch,
    )
    return [
        Scored(item, tuple(row.tolist()), tuple(step_rewards(row, at).tolist()), tuple(at))
        for item, row, at in zip(responses, ratios, ends, strict=True)
    ]


def _score_whole(
    responses: Sequence[Response],
    encoded: Sequence[tuple[Sequence[int], Sequence[int]]],
    how: Scoring,
) -> list[Scored]:
    """By an explicit reward model."""
    model = load_reward_model(ModelSettings(path=how.model))
    _check_fit(encoded, [model.policy])
    rewards = response_rewards(
        model,
        [prompt for prompt, _ in encoded],
        [ids for _, ids in encoded],
        tokens_per_micro_batch=how.tokens_per_micro_batch,
    )
    return [
        Scored(item, (reward,), (reward,), (len(ids),), explicit=True)
        for item, (_, ids), reward in zip(responses, encoded, rewards.tolist(), strict=True)
    ]


def _check_fit(
    encoded: Sequence[tuple[Sequence[int], Sequence[int]]], models: Sequence[Any]
) -> None:
    top = max(max(*prompt, *ids) for prompt, ids in encoded)
    longest = max(len(prompt) + len(ids) for prompt, ids in encoded)
    for model in models:
        words = model.causal_lm.get_input_embeddings().num_embeddings
        if top >= words:
            raise ValueError(
                f"a response holds token {top}, but a model has {words} embeddings; reward model "
                "and reference must share the tokenizer"
            )
        if model.context_length is not None and longest > model.context_length:
            raise ValueError(
                f"a prompt with its response has {longest} tokens, more than the model's context "
                f"of {model.context_length}; leave such responses out"
            )


def score_file(sources: Sequence[Path], how: Scoring, out: Path) -> int:
    """Write every row again with its scores; returns how many there are.

    Raises:
        ValueError: As :func:`score`, or the rows are no responses.
    """
    scored = score(load_responses(sources, labelled=False), how)
    lines = []
    for item in scored:
        row = dict(item.response.row)
        row |= {
            "problem_id": item.response.problem,
            "reward": round(sum(item.tokens), 5),
            "step_rewards": [round(value, 5) for value in item.steps],
            "step_ends": list(item.ends),
        }
        if item.explicit:
            row["explicit"] = True
        else:
            row["token_rewards"] = [round(value, 5) for value in item.tokens]
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, "".join(lines))
    return len(lines)


def read_scored(sources: Sequence[Path], how: Scoring | None = None) -> list[Scored]:
    """Labelled responses with their scores: from the rows, or by a model.

    Raises:
        ValueError: A row has neither scores nor is a model given; and as :func:`score`.
    """
    responses = load_responses(sources)
    if how is not None:
        return score(responses, how)
    found = []
    for number, item in enumerate(responses, 1):
        steps = item.row.get("step_rewards")
        if not isinstance(steps, list) or not steps:
            raise ValueError(
                f"response {number} has no step_rewards; score the file first with rlvr prm "
                "score, or give --model and --reference here"
            )
        tokens = item.row.get("token_rewards") or steps
        explicit = item.row.get("explicit") is True
        values = tuple(map(float, tokens)), tuple(map(float, steps))
        found.append(Scored(item, *values, (), explicit=explicit))
    return found


def rank(
    scored: Sequence[Scored],
    *,
    values: str = "diff",
    aggregate: str = "min",
    vote_coefficient: float | None = None,
    beta: float | None = None,
    draws: int = 200,
) -> dict[str, Any]:
    """Curves over N and the quality of the scores, as JSON values.

    Args:
        scored: Several responses to each problem; the smallest number of them bounds N.
        values: diff or cumulative.
        aggregate: min, sum or last.
        vote_coefficient: Of the weighted vote; None is 0.05, or 1 where the model is explicit.
        beta: Scale of rewards, for calibration; None likewise.
        draws: Subsets that the weighted vote is averaged over.

    Raises:
        ValueError: An unknown choice.
    """
    if values not in ("diff", "cumulative"):
        raise ValueError(f"values {values!r} is neither diff nor cumulative")
    how = cast("tuple[Values, Aggregate]", (values, aggregate))
    scale = 1.0 if scored and scored[0].explicit else 0.05
    vote_coefficient = scale if vote_coefficient is None else vote_coefficient
    beta = scale if beta is None else beta
    problems: dict[str, list[Scored]] = {}
    for item in scored:
        problems.setdefault(item.response.problem, []).append(item)
    groups = list(problems.values())
    numbers = [[response_score(torch.tensor(s.steps), *how) for s in group] for group in groups]
    labels = [bool(item.response.correct) for group in groups for item in group]
    names = [name for name, group in problems.items() for _ in group]
    totals = [beta * sum(item.tokens) for group in groups for item in group]
    return {
        "problems": len(groups),
        "responses": len(scored),
        "settings": {"values": values, "aggregate": aggregate, "beta": beta}
        | {"vote_coefficient": vote_coefficient},
        "curves": _curves(groups, numbers, vote_coefficient, draws),
        "quality": asdict(ranking(totals, labels, names))
        | {"by_score": asdict(ranking([s for row in numbers for s in row], labels, names))}
        | {"calibration": asdict(calibration(totals, [float(label) for label in labels]))},
    }


def _curves(
    groups: Sequence[Sequence[Scored]],
    numbers: Sequence[Sequence[float]],
    coefficient: float,
    draws: int,
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Accuracy with its error by method and N."""
    correct = [[bool(item.response.correct) for item in group] for group in groups]
    votes = [_votes(group) for group in groups]
    voting = any(vote is not None for row in votes for vote in row)
    bootstrap = Bootstrap(len(groups), "prm rank")
    curves: dict[str, dict[str, dict[str, float | None]]] = {}

    def add(name: str, n: int, per_problem: list[float]) -> None:
        estimate = bootstrap.estimate(per_problem)
        row = {"value": estimate.value, "se": estimate.se, "low": estimate.low}
        curves.setdefault(name, {})[str(n)] = row | {"high": estimate.high}

    for n in shown_ks(min(map(len, groups))):
        add("random", n, [fmean(row) for row in correct])
        add("best_of_n", n, [expected_best(c, s, n) for c, s in zip(correct, numbers, strict=True)])
        if voting:
            add("majority", n, [maj_at_k(row, n) for row in votes])
            add(
                "weighted_vote",
                n,
                [
                    expected_vote(v, s, REFERENCE, n, coefficient, draws=draws, seed=str(index))
                    for index, (v, s) in enumerate(zip(votes, numbers, strict=True))
                ],
            )
        add("pass", n, [pass_at_k(len(row), sum(row), n) for row in correct])
    return curves


def _votes(group: Sequence[Scored]) -> list[int | None]:
    """A class for each response: the reference's, or one of equal wrong answers."""
    classes: dict[str, int] = {}
    votes: list[int | None] = []
    for item in group:
        answer = item.response.extracted
        if answer is None:
            votes.append(None)
        elif item.response.correct:
            votes.append(REFERENCE)
        else:
            votes.append(classes.setdefault(answer, REFERENCE + 1 + len(classes)))
    return votes


def rank_table(found: dict[str, Any]) -> str:
    """The curves and the quality as text."""
    curves, settings = found["curves"], found["settings"]
    ns = list(next(iter(curves.values())))
    name = f"{settings['values']} {settings['aggregate']}"
    labels = {
        "random": "random",
        "best_of_n": f"best of N ({name})",
        "majority": "majority vote",
        "weighted_vote": f"weighted vote ({settings['vote_coefficient']:g})",
        "pass": "pass@N",
    }
    lines = [f"{found['problems']} problems, {found['responses']} responses"]
    lines.append(f"{'N':32}" + "".join(f"{n:>16}" for n in ns))
    for key, row in curves.items():
        cells = [
            f"{row[n]['value']:.3f}" + ("" if row[n]["se"] is None else f" ({row[n]['se']:.3f})")
            for n in ns
        ]
        lines.append(f"{labels[key]:32}" + "".join(f"{cell:>16}" for cell in cells))
    quality = found["quality"]
    shown = {
        "AUC within prompts": quality["auc_within"],
        "pairs": quality["pairs"],
        "AUC": quality["auc"],
        "AUC of scores within prompts": quality["by_score"]["auc_within"],
        "Brier": quality["calibration"]["brier"],
        "ECE": quality["calibration"]["ece"],
    }
    parts = [f"{label} {value:.3f}" for label, value in shown.items() if value is not None]
    return "\n".join([*lines, ", ".join(parts)])


def write_ranking(found: dict[str, Any], out: Path) -> None:
    """Write all figures as JSON."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, json.dumps(found, indent=1))
