"""Values of prefixes against how often a policy completes them to a right answer.

The responses of a file are cut where their steps end. A reward model says what each prefix is worth
(an implicit one by the sum of its log-ratios so far, an explicit one by its reward of the prefix as
it stands), and the policy that the responses came from completes each prefix several times, which
the verifier judges. The share that is right is the Monte-Carlo rate that Wang et al., Math-Shepherd
(arXiv:2312.08935, section 3.3.1, soft estimation) label steps by, and what sigmoid(value) should
be:

    mse     mean (p - m)^2, m the rate of K completions
    noise   mean m (1 - m) / (K - 1), what a true probability would have for an mse all the same
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from reward import DEFAULT, VerifierPool
from reward.graders import graded_text
from rlvr.data import Prompt, load_template
from rlvr.data.decoding import ResponseDecoder
from rlvr.data.labelled_responses import Response, encode_responses
from rlvr.data.templates import ends_of
from rlvr.files import write_atomically
from rlvr.objective.uncertainty import correlation
from rlvr.policy.loading import load_policy, load_tokenizer, stop_token_ids
from rlvr.policy.settings import ModelSettings
from rlvr.progress import watching
from rlvr.reward_models.calibration import brier, calibration
from rlvr.reward_models.heads import load_reward_model
from rlvr.reward_models.outcome_scores import outcome_rewards
from rlvr.reward_models.reliability import reliability_svg
from rlvr.rollout.groups import sample_groups
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.transformers_engine import TransformersEngine
from rlvr.tasks.tools.score import Scoring, score
from rlvr.types import Problem

_Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Prefix:
    """The beginning of a response, and what a reward model gives it: nats, or the reward."""

    response: Response
    prompt_ids: _Ids
    ids: _Ids
    value: float

    @property
    def gold(self) -> str:
        """The reference answer."""
        return str(self.response.row["answer"])


def prefixes_of(responses: Sequence[Response], how: Scoring, limit: int) -> list[Prefix]:
    """Every proper prefix that ends with a step, of the first ``limit`` responses.

    Raises:
        ValueError: A response has no reference answer, none has two steps, or as
            :func:`rlvr.tasks.tools.score.score`.
    """
    responses = responses[:limit]
    for number, item in enumerate(responses, 1):
        if not isinstance(item.row.get("answer"), str):
            raise ValueError(
                f"response {number} has no reference in column answer, by which its completions "
                "would be judged; add it"
            )
    tokenizer = load_tokenizer(ModelSettings(path=how.model))
    encoded = encode_responses(responses, load_template(how.template), tokenizer)
    scored = score(responses, how)
    prefixes = [
        Prefix(item, prompt, ids[:end], sum(own.tokens[:end]))
        for item, (prompt, ids), own in zip(responses, encoded, scored, strict=True)
        for end in own.ends[:-1]
    ]
    if not prefixes:
        raise ValueError(f"none of {len(responses)} responses has more than one step; see --steps")
    if not how.explicit:
        return prefixes
    with watching(f"scoring prefixes by {how.model}") as progress:
        values = outcome_rewards(
            load_reward_model(ModelSettings(path=how.model)),
            [prefix.prompt_ids for prefix in prefixes],
            [prefix.ids for prefix in prefixes],
            tokens_per_micro_batch=how.tokens_per_micro_batch,
            progress=progress,
        )
    rewarded = zip(prefixes, values.tolist(), strict=True)
    return [replace(prefix, value=value) for prefix, value in rewarded]


def completion_rates(
    prefixes: Sequence[Prefix], policy: str, samples: int, max_tokens: int, seed: int = 0
) -> list[float]:
    """Share of a policy's completions of each prefix that the verifier finds right.

    Args:
        prefixes: In the policy's tokens.
        policy: Folder or Hub id.
        samples: Completions of each, at temperature 1.
        max_tokens: Of a completion; one that is cut counts as it stands.
        seed: Which are drawn.

    Raises:
        ValueError: No such model.
    """
    settings = ModelSettings(path=policy)
    tokenizer = load_tokenizer(settings)
    decode = ResponseDecoder(tokenizer)
    with VerifierPool(policy=replace(DEFAULT, thoughts=decode.thoughts)) as pool:
        model = load_policy(settings)
        prompts = [
            Prompt(
                Problem(str(number), prefix.response.messages, prefix.gold, "prefix"),
                (*prefix.prompt_ids, *prefix.ids),
            )
            for number, prefix in enumerate(prefixes)
        ]
        ends = ends_of(load_template("raw"), tokenizer, [prompt.ids for prompt in prompts])
        with watching("completing prefixes") as progress:
            groups = sample_groups(
                TransformersEngine(model, stop_token_ids(model, tokenizer, ends)),
                prompts,
                samples,
                Sampling(max_tokens=max_tokens),
                run_seed=seed,
                step=0,
                progress=progress,
            )
        texts = [
            graded_text(
                decode([*prefix.ids, *item.token_ids], finished=item.finish_reason == "stop"),
                decode.opened(prefix.prompt_ids),
            )
            for prefix, group in zip(prefixes, groups, strict=True)
            for item in group.completions
        ]
        golds = [prefix.gold for prefix in prefixes for _ in range(samples)]
        with watching("grading completions") as progress:
            grades = pool.grade_many(list(zip(texts, golds, strict=True)), progress)
        right = [grade.correct for grade in grades]
    return [fmean(right[at : at + samples]) for at in range(0, len(right), samples)]


def measure(
    prefixes: Sequence[Prefix], rates: Sequence[float], samples: int, beta: float
) -> dict[str, Any]:
    """How values agree with rates, as JSON values; ``bins`` is the reliability diagram."""
    r_B = beta * torch.tensor([prefix.value for prefix in prefixes], dtype=torch.float64)
    m_B = torch.tensor(rates, dtype=torch.float64)
    figures = asdict(calibration(r_B.tolist(), rates))
    figures["mse"] = figures.pop("brier")
    figures["mse_of_the_mean_rate"] = brier(m_B.mean().expand_as(m_B), m_B)
    if samples > 1:
        figures["noise"] = float((m_B * (1 - m_B)).mean()) / (samples - 1)
    agreement = correlation(r_B.sigmoid(), m_B)
    if agreement is not None:
        figures["correlation"] = agreement
    return {"prefixes": len(prefixes), "samples": samples, "beta": beta} | figures


def summary(figures: dict[str, Any]) -> str:
    """The figures as text."""
    shown = ("mse", "noise", "mse_of_the_mean_rate", "correlation", "ece", "ks", "nll")
    parts = [f"{name.replace('_', ' ')} {figures[name]:.3f}" for name in shown if name in figures]
    heading = f"{figures['prefixes']} prefixes, {figures['samples']} completions each"
    return f"{heading}\n{', '.join(parts)}"


def write_figures(
    figures: dict[str, Any],
    prefixes: Sequence[Prefix],
    rates: Sequence[float],
    out: Path | None,
    plot: Path | None,
) -> None:
    """Write all figures with every prefix as JSON, and the reliability diagram as SVG."""
    if out is not None:
        rows = [
            {"problem_id": p.response.problem, "tokens": len(p.ids), "value": p.value, "rate": rate}
            for p, rate in zip(prefixes, rates, strict=True)
        ]
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, json.dumps({**figures, "rows": rows}, indent=1))
    if plot is not None:
        values = [figures["beta"] * prefix.value for prefix in prefixes]
        bins = calibration(values, list(rates)).bins
        plot.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(plot, reliability_svg({"prefixes": bins}, "Prefixes"))
