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
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from reward import VerifierPool
from rlvr.data import Prompt, load_template
from rlvr.data.responses import Response, encode_responses
from rlvr.objective import correlation
from rlvr.policy import ModelSettings, load_policy, load_tokenizer, stop_token_ids
from rlvr.report.reliability import reliability_svg
from rlvr.rm import brier, calibration, load_reward_model, response_rewards
from rlvr.rollout import Sampling, TransformersEngine, sample_groups
from rlvr.train.log import write_atomically
from rlvr.train.prm_score import Scoring, score
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
            :func:`rlvr.train.prm_score.score`.
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
    found = [
        Prefix(item, prompt, ids[:end], sum(own.tokens[:end]))
        for item, (prompt, ids), own in zip(responses, encoded, scored, strict=True)
        for end in own.ends[:-1]
    ]
    if not found:
        raise ValueError(f"none of {len(responses)} responses has more than one step; see --steps")
    if not how.explicit:
        return found
    values = response_rewards(
        load_reward_model(ModelSettings(path=how.model)),
        [prefix.prompt_ids for prefix in found],
        [prefix.ids for prefix in found],
        tokens_per_micro_batch=how.tokens_per_micro_batch,
    )
    return [
        Prefix(prefix.response, prefix.prompt_ids, prefix.ids, value)
        for prefix, value in zip(found, values.tolist(), strict=True)
    ]


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
    with VerifierPool() as pool:
        model, tokenizer = load_policy(settings), load_tokenizer(settings)
        prompts = [
            Prompt(
                Problem(str(number), prefix.response.messages, prefix.gold, "prefix"),
                (*prefix.prompt_ids, *prefix.ids),
            )
            for number, prefix in enumerate(prefixes)
        ]
        groups = sample_groups(
            TransformersEngine(model, stop_token_ids(model, tokenizer)),
            prompts,
            samples,
            Sampling(max_tokens=max_tokens),
            run_seed=seed,
            step=0,
        )
        texts = tokenizer.batch_decode(
            [
                [*prefix.ids, *item.token_ids]
                for prefix, group in zip(prefixes, groups, strict=True)
                for item in group.completions
            ],
            skip_special_tokens=True,
        )
        golds = [prefix.gold for prefix in prefixes for _ in range(samples)]
        right = [grade.correct for grade in pool.grade_many(list(zip(texts, golds, strict=True)))]
    return [fmean(right[at : at + samples]) for at in range(0, len(right), samples)]


def measure(
    prefixes: Sequence[Prefix], rates: Sequence[float], samples: int, beta: float
) -> dict[str, Any]:
    """How values agree with rates, as JSON values; ``bins`` is the reliability diagram."""
    r_B = beta * torch.tensor([prefix.value for prefix in prefixes], dtype=torch.float64)
    m_B = torch.tensor(rates, dtype=torch.float64)
    found = asdict(calibration(r_B.tolist(), rates))
    found["mse"] = found.pop("brier")
    found["mse_of_the_mean_rate"] = brier(m_B.mean().expand_as(m_B), m_B)
    if samples > 1:
        found["noise"] = float((m_B * (1 - m_B)).mean()) / (samples - 1)
    agreement = correlation(r_B.sigmoid(), m_B)
    if agreement is not None:
        found["correlation"] = agreement
    return {"prefixes": len(prefixes), "samples": samples, "beta": beta} | found


def summary(found: dict[str, Any]) -> str:
    """The figures as text."""
    shown = ("mse", "noise", "mse_of_the_mean_rate", "correlation", "ece", "ks", "nll")
    parts = [f"{name.replace('_', ' ')} {found[name]:.3f}" for name in shown if name in found]
    return f"{found['prefixes']} prefixes, {found['samples']} completions each\n" + ", ".join(parts)


def write_figures(
    found: dict[str, Any],
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
        write_atomically(out, json.dumps({**found, "rows": rows}, indent=1))
    if plot is not None:
        bins = calibration([found["beta"] * prefix.value for prefix in prefixes], list(rates)).bins
        plot.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(plot, reliability_svg({"prefixes": bins}, "Prefixes"))
