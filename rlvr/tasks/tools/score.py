"""Scoring sampled responses by a reward model, from files.

The model is an implicit process reward model with its reference, or an explicit one, which is told
by the head beside its weights: its one reward of a response stands for that of a single step.

An implicit one's log-probabilities come from the learner's own model or from a vLLM engine, of the
reward model and then of its reference, one model at a time. An engine computes with the weights
that it proved to have; in float32 its numbers are the learner's up to rounding. The reference alone
may go through another engine than the reward model, but what both round alike cancels in the log-
ratio.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlvr.data import load_template
from rlvr.data.labelled_responses import Response, encode_responses, load_responses
from rlvr.data.solutions import Solution
from rlvr.files import write_atomically
from rlvr.policy.loading import load_policy, load_tokenizer
from rlvr.policy.model import Policy
from rlvr.policy.responses import response_logprobs
from rlvr.policy.settings import ModelSettings
from rlvr.policy.vocabulary import check_token_ids
from rlvr.progress import Done, watching
from rlvr.reward_models.engine_scores import engine_logprobs, ratios
from rlvr.reward_models.heads import has_head, load_reward_model
from rlvr.reward_models.implicit import step_rewards
from rlvr.reward_models.outcome_scores import outcome_rewards
from rlvr.reward_models.steps import given_step_ends, steps_of_ids
from rlvr.rollout.settings import VllmEngineSettings
from rlvr.rollout.vllm_engine import VllmEngine
from rlvr.settings import load_settings

ENGINES = ("learner", "vllm")
_Encoded = Sequence[tuple[Sequence[int], Sequence[int]]]


@dataclass(frozen=True, slots=True)
class Scoring:
    """With what, and how, responses are scored.

    ``engine_settings`` are ``key=value`` of a vLLM engine.
    """

    model: str
    reference: str | None = None
    no_reference: bool = False
    template: str = "raw"
    steps: str = "blank_lines"
    tokens_per_micro_batch: int = 4096
    engine: str = "learner"
    reference_engine: str | None = None
    engine_settings: tuple[str, ...] = ()

    @property
    def explicit(self) -> bool:
        """Whether the model is one with a head."""
        return has_head(self.model)

    def check(self) -> None:
        """See that it is whole.

        Raises:
            ValueError: It is not clear what the reference is, or an engine is unknown.
        """
        if self.explicit:
            self._check_explicit()
            return
        if (self.reference is None) == (not self.no_reference):
            raise ValueError(
                "a reward model needs its reference: name the model that its training started "
                "from with --reference, or take log-probabilities alone with --no-reference (not "
                "both)"
            )
        engines = {self.engine, self.reference_engine or self.engine}
        for engine in engines - set(ENGINES):
            raise ValueError(f"engine {engine!r} is not one of {', '.join(ENGINES)}")
        if self.engine_settings and "vllm" not in engines:
            raise ValueError(
                f"engine setting {self.engine_settings[0]!r} is for --engine vllm; leave it out"
            )

    def _check_explicit(self) -> None:
        if self.reference is not None:
            raise ValueError(
                f"{self.model!r} is an explicit reward model, which has no reference; leave "
                "--reference out"
            )
        if self.engine != "learner":
            raise ValueError(
                f"{self.model!r} is an explicit reward model, whose head the engine "
                f"{self.engine!r} does not run; leave --engine out"
            )


@dataclass(frozen=True, slots=True)
class ScoredResponse:
    """A response and its log-ratios in nats: of tokens and of steps, which end where it says.

    Of an ``explicit`` model both are the one reward, for the whole response.
    """

    response: Response
    tokens: tuple[float, ...]
    steps: tuple[float, ...]
    ends: tuple[int, ...]
    explicit: bool = False


def score(responses: Sequence[Response], how: Scoring) -> list[ScoredResponse]:
    """Score responses, whose steps are found in their text.

    Raises:
        ValueError: The models cannot be loaded, or do not fit the prompts.
    """
    how.check()
    tokenizer = load_tokenizer(ModelSettings(path=how.model))
    encoded = encode_responses(responses, load_template(how.template), tokenizer)
    if how.explicit:
        return _score_whole(responses, encoded, how)
    ends = [steps_of_ids(tokenizer, ids, how.steps) for _, ids in encoded]
    return _scored(responses, encoded, ends, how)


def _score_whole(
    responses: Sequence[Response], encoded: _Encoded, how: Scoring
) -> list[ScoredResponse]:
    """By an explicit reward model."""
    model = load_reward_model(ModelSettings(path=how.model))
    _check_fit(encoded, model.policy)
    with watching(f"scoring by {how.model}") as progress:
        rewards = outcome_rewards(
            model,
            [prompt for prompt, _ in encoded],
            [ids for _, ids in encoded],
            tokens_per_micro_batch=how.tokens_per_micro_batch,
            progress=progress,
        )
    return [
        ScoredResponse(item, (reward,), (reward,), (len(ids),), explicit=True)
        for item, (_, ids), reward in zip(responses, encoded, rewards.tolist(), strict=True)
    ]


def score_solutions(solutions: Sequence[Solution], how: Scoring) -> list[ScoredResponse]:
    """Score solutions by the steps that they are given in.

    Raises:
        ValueError: As :func:`score`, a step has no token of its own, or the model gives none to
            steps.
    """
    how.check()
    if how.explicit:
        raise ValueError(
            f"{how.model!r} is an explicit reward model, which says nothing of single steps; name "
            "an implicit one (task: prm)"
        )
    tokenizer = load_tokenizer(ModelSettings(path=how.model))
    responses = [item.response for item in solutions]
    encoded = encode_responses(responses, load_template(how.template), tokenizer)
    ends = [
        given_step_ends(tokenizer, ids, item.starts, item.place, item.response.text)
        for item, (_, ids) in zip(solutions, encoded, strict=True)
    ]
    return _scored(responses, encoded, ends, how)


def _scored(
    responses: Sequence[Response], encoded: _Encoded, ends: Sequence[Sequence[int]], how: Scoring
) -> list[ScoredResponse]:
    own = _logprobs(how.model, how.engine, encoded, how)
    reference = None
    if how.reference is not None:
        engine = how.reference_engine or how.engine
        reference = _logprobs(how.reference, engine, encoded, how)
    return [
        ScoredResponse(item, tuple(row.tolist()), tuple(step_rewards(row, at).tolist()), tuple(at))
        for item, row, at in zip(responses, ratios(own, reference), ends, strict=True)
    ]


def _logprobs(path: str, engine: str, encoded: _Encoded, how: Scoring) -> list[torch.Tensor]:
    """Log-probabilities of all responses under one model, which is then let go."""
    with watching(f"scoring by {path}") as progress:
        return _logprobs_watched(path, engine, encoded, how, progress)


def _logprobs_watched(
    path: str, engine: str, encoded: _Encoded, how: Scoring, progress: Done
) -> list[torch.Tensor]:
    policy = load_policy(ModelSettings(path=path))
    longest = _check_fit(encoded, policy)
    prompts, responses = [prompt for prompt, _ in encoded], [ids for _, ids in encoded]
    if engine == "learner":
        return response_logprobs(
            policy,
            prompts,
            responses,
            tokens_per_micro_batch=how.tokens_per_micro_batch,
            progress=progress,
        )
    settings = load_settings(VllmEngineSettings, {}, how.engine_settings)
    # vLLM scores a prompt while it answers it, with one token at least.
    running = VllmEngine(policy, [], settings, longest + 1)
    try:
        running.publish(policy, 0)
        policy.to("cpu")  # the device's memory is the engine's now
        running.load()
        return engine_logprobs(running, prompts, responses, progress=progress)
    finally:
        running.close()


def _check_fit(encoded: _Encoded, policy: Policy) -> int:
    """The longest sequence, which fits the model.

    Raises:
        ValueError: It does not, or a token is unknown to the model.
    """
    sequences = [(*prompt, *ids) for prompt, ids in encoded]
    check_token_ids(
        policy,
        ((f"response {number}", ids) for number, ids in enumerate(sequences, 1)),
        wrong_token="reward model and reference must share the tokenizer",
        too_long="leave such responses out",
    )
    return max(map(len, sequences))


def score_file(sources: Sequence[Path], how: Scoring, out: Path) -> int:
    """Write every row again with its scores; returns how many there are.

    Raises:
        ValueError: As :func:`score`, or the rows are no responses.
    """
    scored = score(load_responses(sources, labelled=False), how)
    lines = []
    for item in scored:
        row: dict[str, Any] = dict(item.response.row)
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


def read_scored(sources: Sequence[Path], how: Scoring | None = None) -> list[ScoredResponse]:
    """Labelled responses with their scores: from the rows, or by a model.

    Raises:
        ValueError: A row has neither scores nor is a model given; and as :func:`score`.
    """
    responses = load_responses(sources)
    if how is not None:
        return score(responses, how)
    scored = []
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
        scored.append(ScoredResponse(item, *values, (), explicit=explicit))
    return scored
