"""From scored groups to the learner's columns, and the numbers that describe a rollout."""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any, Literal

import torch

from rlvr.objective.parts import Advantage
from rlvr.objective.uncertainty import Uncertainty, correlation
from rlvr.runs.scoring import ScoredCompletion, logged_metrics
from rlvr.types import Batch


def group_advantages(
    scored: Sequence[Sequence[ScoredCompletion]],
    advantage: Advantage,
    uncertainty: Uncertainty | None = None,
) -> torch.Tensor:
    """Advantages [B] of all completions, groups in order; zeros where a critic is to give them."""
    rewards_B, index_B = _rewards(scored, uncertainty), _group_index(scored)
    advantages_B = advantage(rewards_B, index_B)
    if uncertainty is None or uncertainty.apply != "advantages":
        return advantages_B
    return advantages_B * uncertainty.weights(_spreads(scored), index_B).to(advantages_B)


def _rewards(
    scored: Sequence[Sequence[ScoredCompletion]], uncertainty: Uncertainty | None
) -> torch.Tensor:
    rewards_B = torch.tensor([item.reward for group in scored for item in group])
    if uncertainty is None or uncertainty.apply != "rewards":
        return rewards_B
    return uncertainty.shrunk(rewards_B, _spreads(scored), _group_index(scored))


def _spreads(scored: Sequence[Sequence[ScoredCompletion]]) -> torch.Tensor:
    return torch.tensor([item.uncertainty for group in scored for item in group])


def build_batch(
    scored: Sequence[Sequence[ScoredCompletion]],
    advantage: Advantage,
    truncated: Literal["keep", "mask"] = "keep",
    uncertainty: Uncertainty | None = None,
) -> Batch:
    """Columns [B] and [B, T] of all completions, groups in order.

    ``truncated: mask`` takes completions that were cut at the token limit out of the loss: all
    their tokens are masked. They still count in their group's mean.
    """
    rows = [item for group in scored for item in group]
    width = max(len(item.completion.token_ids) for item in rows)
    mask_BT = torch.zeros(len(rows), width)
    rollout_BT = torch.zeros(len(rows), width)
    for row, item in enumerate(rows):
        length = len(item.completion.token_ids)
        rollout_BT[row, :length] = torch.tensor(item.completion.logprobs)
        if truncated == "mask" and item.completion.truncated:
            continue
        for start, stop in item.completion.spans:
            mask_BT[row, start:stop] = 1.0
    return Batch(
        prompt_ids=tuple(item.completion.prompt_ids for item in rows),
        completion_ids=tuple(item.completion.token_ids for item in rows),
        group_index_B=_group_index(scored),
        rewards_B=_rewards(scored, uncertainty),
        advantages_BT=group_advantages(scored, advantage, uncertainty)[:, None] * mask_BT,
        mask_BT=mask_BT,
        rollout_logprobs_BT=rollout_BT,
        columns=_columns(rows),
    )


def _columns(rows: Sequence[ScoredCompletion]) -> dict[str, Any]:
    """What else methods may ask for: the verdicts, a mixture's choices if the engine tells, and
    which tokens were sampled where an environment said others."""
    columns: dict[str, Any] = {}
    if any(item.completion.turns for item in rows):
        columns["spans"] = tuple(item.completion.spans for item in rows)
    if all(item.grade is not None for item in rows):
        columns["labels"] = torch.tensor([float(bool(item.correct)) for item in rows])
    experts = tuple(x for item in rows if (x := item.completion.experts) is not None)
    return columns | ({"experts": experts} if len(experts) == len(rows) else {})


def _group_index(scored: Sequence[Sequence[ScoredCompletion]]) -> torch.Tensor:
    return torch.tensor([index for index, group in enumerate(scored) for _ in group])


def rollout_metrics(scored: Sequence[Sequence[ScoredCompletion]]) -> dict[str, float]:
    """Rewards, lengths and truncation of a rollout (docs/metrics.md)."""
    rows = [item for group in scored for item in group]
    rewards = torch.tensor([item.reward for item in rows], dtype=torch.float64)
    lengths = [item.completion.length for item in rows]
    flat = [max(r) == min(r) for group in scored if (r := [item.reward for item in group])]
    return {
        "reward/mean": float(rewards.mean()),
        "reward/std": float(rewards.std(correction=0)),
        **_shares_of_verdicts(rows),
        "reward/zero_variance_groups": fmean(flat),
        "completion/length_mean": fmean(lengths),
        "completion/length_max": float(max(lengths)),
        "completion/truncated": fmean(item.completion.truncated for item in rows),
        "completion/logprob_mean": sum(sum(item.completion.logprobs) for item in rows)
        / max(1, sum(lengths)),
        **_episode_metrics(rows),
        **term_metrics(rows),
        **uncertainty_metrics(rows),
        **logged_metrics(rows),
    }


def _episode_metrics(rows: Sequence[ScoredCompletion]) -> dict[str, float]:
    """Turns, what environments said, and which limits ended episodes."""
    episodes = [item.completion for item in rows if item.completion.turns]
    if not episodes:
        return {}
    ends = Counter(one.finish_reason for one in episodes)
    return {
        "episode/turns_mean": fmean(len(one.turns) for one in episodes),
        "episode/turns_max": float(max(len(one.turns) for one in episodes)),
        "episode/observed_tokens_mean": fmean(len(one.token_ids) - one.length for one in episodes),
        **{f"episode/ended/{why}": count / len(episodes) for why, count in sorted(ends.items())},
    }


def _shares_of_verdicts(rows: Sequence[ScoredCompletion]) -> dict[str, float]:
    graded = [item.correct for item in rows if item.correct is not None]
    return {"reward/correct": fmean(graded)} if graded else {}


def term_metrics(rows: Sequence[ScoredCompletion]) -> dict[str, float]:
    """The values of each term: mean, spread, and how often it did not apply or failed."""
    metrics: dict[str, float] = {}
    names = dict.fromkeys(name for item in rows for name in (*item.rewards, *item.failed))
    for name in names:
        values = [item.rewards[name] for item in rows if name in item.rewards]
        if values:
            values_B = torch.tensor(values, dtype=torch.float64)
            metrics[f"reward/{name}/mean"] = float(values_B.mean())
            metrics[f"reward/{name}/std"] = float(values_B.std(correction=0))
        if len(values) < len(rows):
            metrics[f"reward/{name}/not_applicable"] = 1 - len(values) / len(rows)
        if any(item.failed for item in rows):
            metrics[f"reward/{name}/failed"] = fmean(name in item.failed for item in rows)
    return metrics


def uncertainty_metrics(rows: Sequence[ScoredCompletion]) -> dict[str, float]:
    """How much scores of a term disagree, and whether that tells where it errs."""
    metrics: dict[str, float] = {}
    for name in dict.fromkeys(name for item in rows for name in item.uncertainties):
        having = [item for item in rows if name in item.uncertainties]
        spreads_B = torch.tensor([item.uncertainties[name] for item in having])
        metrics[f"reward/{name}/uncertainty"] = float(spreads_B.mean())
        if any(item.correct is None for item in having):
            continue
        values_B = torch.tensor([item.rewards[name] for item in having])
        errors_B = (values_B - torch.tensor([float(bool(item.correct)) for item in having])).abs()
        agreement = correlation(spreads_B, errors_B)
        if agreement is not None:
            metrics[f"reward/{name}/uncertainty_error"] = agreement
    return metrics
