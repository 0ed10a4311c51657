"""Which adapter does an engine run? Its tensors are compared, and its log-probabilities.

After few updates an adapter changes log-probabilities by less than rounding does, and before the
first update it changes nothing: B = 0 (Hu et al. 2021, https://arxiv.org/abs/2106.09685). The proof
of merged weights would then accept an old adapter, a lost tensor, or the base alone. So there are
two more looks, neither of which depends on how much the adapter does:

- the engine tells a fingerprint of every matrix that it multiplies with, which must be that of the
  matrix in the learner, scaled by alpha / rank (:func:`tensor_fault`);
- log-probabilities that are nearer to those of the base, or of the version before, than to those of
  the learner name what answers, even within the tolerance (:func:`other_answer`).
"""

from collections.abc import Mapping, Sequence

import torch

from rlvr.policy.settings import Precision
from rlvr.rollout.arrival import listed
from rlvr.rollout.weight_sync import measure_difference

Fingerprint = tuple[float, float]
"""Norm of a matrix, and its product with a fixed vector from either side."""

# Nats between two policies from which rounding cannot make one of them look like the other.
RESOLUTION: dict[Precision, float] = {"float32": 1e-4, "bfloat16": 0.25}
# Of a norm: fingerprints are float64 sums, which depend on the order of summation.
_SAME = 1e-9
# Of a norm: a matrix that was scaled before it was rounded, and one that was scaled afterwards.
_SCALED = 1e-3


def fingerprint(matrix: torch.Tensor) -> Fingerprint:
    """The fingerprint of a matrix [M, N], in float64; another order of rows or columns changes it.

    u^T X v with u_i = cos(i) and v_j = cos(j).
    """
    value = matrix.detach().double()
    rows, columns = (
        torch.arange(size, dtype=torch.float64, device=value.device).cos() for size in value.shape
    )
    return float(value.norm()), float(rows @ value @ columns)


def tensor_fault(
    sent: Mapping[str, Fingerprint],
    held: Mapping[str, Fingerprint | None],
    before: Mapping[str, Fingerprint] | None = None,
) -> str | None:
    """What is wrong with the matrices that an engine holds; None is nothing.

    Args:
        sent: Fingerprints of the adapter's matrices by name, scaled as the engine should have them.
        held: What the engine holds of each; None is nothing.
        before: Those of the version before, which an engine may have kept.
    """
    wrong = [name for name in sent if not _same(sent[name], held.get(name))]
    if not wrong:
        return None
    if before is not None and all(_same(before.get(name), held.get(name)) for name in sent):
        return "it still holds the version before"
    lost = [name for name in wrong if _lost(held.get(name))]
    if lost:
        return f"{listed(lost)} did not arrive"
    factor = _common_factor([(sent[name], held[name]) for name in wrong])
    if factor is not None:
        return f"{listed(wrong)} arrived multiplied by {factor:.6g}: alpha or rank is another"
    for name in wrong:
        source = next((other for other in sent if _same(sent[other], held[name])), None)
        if source is not None:
            return f"{name} holds the values of {source}"
    return f"{listed(wrong)} arrived with other values"


def other_answer(
    engine: Sequence[float],
    learner: Sequence[float],
    others: Mapping[str, Sequence[float]],
    resolution: float,
) -> str | None:
    """Who of ``others`` an engine answers as, rather than as the learner; None is nobody.

    Others within ``resolution`` nats of the learner cannot be told from it, and are left out.

    Args:
        engine: The engine's log-probabilities of a sequence.
        learner: The learner's.
        others: Those of other policies, by what a message calls them.
        resolution: See :data:`RESOLUTION`.
    """
    own = distance(engine, learner)
    for name, logprobs in others.items():
        apart, near = distance(learner, logprobs), distance(engine, logprobs)
        if apart > resolution and own - near > apart / 2:
            return f"{name} ({near:.3g} nats away; the learner is {own:.3g} nats away)"
    return None


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Mean |difference| in nats of log-probabilities of the same tokens."""
    return measure_difference(list(one), list(other)).mean


def _same(one: Fingerprint | None, other: Fingerprint | None, share: float = _SAME) -> bool:
    if one is None or other is None:
        return False
    limit = share * max(one[0], other[0])
    return all(abs(a - b) <= limit for a, b in zip(one, other, strict=True))


def _lost(held: Fingerprint | None) -> bool:
    return held is None or held[0] == 0


def _common_factor(pairs: Sequence[tuple[Fingerprint, Fingerprint | None]]) -> float | None:
    """What all matrices were multiplied by, if it is one number."""
    sent, held = pairs[0]
    if held is None or not sent[0]:
        return None
    factor = held[0] / sent[0]
    scaled = all(_same((factor * own[0], factor * own[1]), got, _SCALED) for own, got in pairs)
    return factor if scaled else None
