"""How often verdicts are wrong, estimated from those that a second judge gave again.

Of N accepted verdicts n are drawn, each independently with the probability pi_a; the judge agrees
with a, contradicts d and says nothing of u of them, n = a + d + u. The share of accepted answers
that it would reject is estimated by

    p_a = d / (a + d),        between d / n and (d + u) / n whatever it would have said of the rest,

with Wilson's interval (J. Am. Stat. Assoc. 22, 1927) for (a + d) / (1 - n / N) draws: a sample
without replacement tells more, and all there is to know when n = N. The same holds for the
rejected. Of all verdicts the share is, each counted by its inverse probability (Horvitz and
Thompson, J. Am. Stat. Assoc. 47, 1952; divided by the sum of the weights, after Hajek),

    p = (d_a / pi_a + d_r / pi_r) / ((a_a + d_a) / pi_a + (a_r + d_r) / pi_r).

The randomness is that of the draw, so intervals hold for the verdicts of this run, however alike
the completions of a prompt are.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from eval.statistics import wilson
from rlvr.runs.rewards import CheckSettings
from rlvr.runs.scoring import ScoredCompletion

_ERRORS = {"accepted": "false_accepts", "rejected": "false_rejects"}
_FAULTS = frozenset({"crash", "error"})


def counted_opinions(groups: Iterable[Iterable[ScoredCompletion]]) -> Counter[str]:
    """Verdicts that could be drawn, that were, and what the second judge made of them."""
    counts: Counter[str] = Counter()
    for item in (item for group in groups for item in group):
        if item.second is None or item.grade is None:
            continue
        kind = "accepted" if item.grade.correct else "rejected"
        counts[kind] += 1
        if item.second.grade is None:
            continue
        counts[f"{kind}_judged"] += 1
        counts[f"{kind}_disputed"] += item.disputed
        counts[f"{kind}_undecided"] += item.second.says is None
        counts["timeouts"] += item.second.grade.status == "timeout"
        counts["faults"] += item.second.grade.status in _FAULTS
    return counts


def check_metrics(counts: Mapping[str, int], settings: CheckSettings) -> dict[str, float]:
    """The counts and what they say, as metrics ``check/...``; a share of nothing is left out.

    Args:
        counts: Sums of :func:`counted_opinions` over the run.
        settings: The shares that were drawn.
    """
    names = [f"{kind}{part}" for kind in _ERRORS for part in ("", *_PARTS)]
    metrics = {name: float(counts.get(name, 0)) for name in (*names, "timeouts", "faults")}
    for kind, error in _ERRORS.items():
        metrics |= {f"{error}{end}": value for end, value in _estimate(counts, kind).items()}
    overall = _weighted(counts, settings)
    if overall is not None:
        metrics["disputed"] = overall
    return {f"check/{name}": value for name, value in metrics.items()}


_PARTS = ("_judged", "_disputed", "_undecided")


def _estimate(counts: Mapping[str, int], kind: str) -> dict[str, float]:
    """The estimate with its interval and its bounds, by the ends of their names."""
    there = counts.get(kind, 0)
    judged, disputed, undecided = (counts.get(f"{kind}{part}", 0) for part in _PARTS)
    if not judged:
        return {}
    bounds = {"_least": disputed / judged, "_most": (disputed + undecided) / judged}
    decided = judged - undecided
    if not decided:
        return bounds
    share = disputed / decided
    if judged == there:
        low = high = share
    else:
        low, high = wilson(share, decided / (1 - judged / there))
    return {"": share, "_low": low, "_high": high, **bounds}


def _weighted(counts: Mapping[str, int], settings: CheckSettings) -> float | None:
    """The share of all verdicts that are disputed; None if a kind of verdict was never judged."""
    disputed = decided = 0.0
    for kind, probability in (("accepted", settings.accepted), ("rejected", settings.rejected)):
        judged, against, undecided = (counts.get(f"{kind}{part}", 0) for part in _PARTS)
        if counts.get(kind, 0) and judged == undecided:
            return None
        if judged:
            disputed += against / probability
            decided += (judged - undecided) / probability
    return disputed / decided if decided else None
