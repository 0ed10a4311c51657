r"""Reverse speculative decoding: the teacher proposes the next token, the student may refuse it.

Kim, Seo and Lee, "In Their Own Words: Reasoning Traces Tailored for Small Models Make Them Better
Reasoners", arXiv 2509.22230. With q the teacher's pool (its top k tokens, restricted to those the
student has, renormalised) and p the student's probabilities, up to R tokens are drawn from q; the
first y with p(y) >= tau among the student's top k is written. If all R are refused, the student
draws the token itself from its own top k ("fallback"). With A the mass of q that is allowed, one
step is therefore the kernel

    r(y) = [1 - (1 - A)^R] q(y) 1[allowed] / A  +  (1 - A)^R f(y),

where f is the student's pool, renormalised: either all of it, or (our extension) truncated to p >=
tau, which makes the bound hold for every token. R = 1 is the rule as the paper describes it, R = 5
is what its authors ran. The limits tau -> 0 and tau > 1 are the teacher and the student alone; here
they are arms.

Everything is a function of pools and uniform numbers, row by row, so that neither the rest of the
batch nor the order of work can change a token. Entries of a pool are sorted by id, so that rounding
cannot swap two nearly equal probabilities and move a boundary.

Shape letters: B rows, V vocabulary, K pool entries, R draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from rlvr.lazy import np, torch
from rlvr.rollout.sampling import Sampling, sample_seed, truncate, uniform_stream
from rlvr.settings import Settings

NO_TOKEN = 2**40
"""Id of empty pool entries; it is larger than any vocabulary."""


class PoolSettings(Settings):
    """What a model draws from."""

    temperature: float = Field(1.0, ge=0)
    """Divides the logits; 0 takes the likeliest token."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Keep the likeliest tokens that together reach this probability mass of the whole
    vocabulary."""
    top_k: int = Field(20, ge=0)
    """Keep this many of the likeliest tokens; 0 keeps all. For the student it also limits what it
    may accept: it refuses a token outside its pool, whatever its probability."""


class AcceptanceRule(Settings):
    """The acceptance rule."""

    arm: Literal["rsd", "teacher", "student"] = "rsd"
    """"rsd": the teacher proposes and the student refuses; "teacher", "student": that model alone
    (the limits of the threshold at 0 and above 1), as control arms."""
    threshold: float = 0.01
    """A proposed token less likely than this under the student is refused; in (0, 1]."""
    threshold_on: Literal["raw", "processed"] = "raw"
    """The student's distribution that is compared with the threshold: "raw" is the whole
    distribution at temperature 1, "processed" is after the student's temperature and top_p."""
    draws: int = Field(5, ge=1, le=64)
    """Tokens that the teacher may propose at a position before the student writes one itself
    (R)."""
    fallback: Literal["pool", "truncated"] = "pool"
    """What the student then draws from: "pool" is its whole pool, "truncated" only the tokens that
    pass the threshold (the whole pool if none does)."""
    teacher: PoolSettings = PoolSettings()
    """What the teacher draws from."""
    student: PoolSettings = PoolSettings()
    """What the student draws from, and which tokens it may accept."""

    @model_validator(mode="after")
    def _threshold_is_a_probability(self) -> AcceptanceRule:
        if not 0 < self.threshold <= 1:
            raise ValueError(
                f"threshold = {self.threshold} is outside (0, 1]; for the limits set "
                "acceptance_rule.arm=teacher (accepts everything) or acceptance_rule.arm=student "
                "(accepts nothing)"
            )
        return self

    @property
    def uses_teacher(self) -> bool:
        """Whether the arm runs the teacher."""
        return self.arm != "student"

    @property
    def uses_student(self) -> bool:
        """Whether the arm runs the student."""
        return self.arm != "teacher"


class Pool(NamedTuple):
    """The tokens that may be drawn at one position of each row, in ascending order of ids.

    ``weights_BK`` sum to one, or to zero if there is nothing to draw. ``probs_BK`` are the
    probabilities to report; the student's are also compared with the threshold.
    """

    ids_BK: torch.Tensor
    weights_BK: torch.Tensor
    probs_BK: torch.Tensor


@dataclass(frozen=True, slots=True)
class Choice:
    """The token chosen at one position of each row.

    ``draws_B`` says which of the teacher's draws was accepted, from 1; 0 is the student's fallback.
    ``student_probs_B`` is NaN if the student did not run.
    """

    tokens_B: torch.Tensor
    draws_B: torch.Tensor
    student_probs_B: torch.Tensor


def uniforms(seed: int, problem_id: str, sample: int, positions: int, draws: int) -> np.ndarray:
    """The random numbers of a trace, [positions, 1 + draws], in [0, 1).

    Column 0 is for the student's fallback, column r for the teacher's r-th draw. Each column is a
    separate stream, so that neither the length limit nor the number of draws changes the others.
    """
    streams = [
        uniform_stream(sample_seed(seed, column, problem_id, sample), positions)
        for column in range(draws + 1)
    ]
    return np.stack(streams, axis=1)


def teacher_pool(
    logits_BV: torch.Tensor, settings: PoolSettings, student_ids_V: torch.Tensor | None = None
) -> Pool:
    """The teacher's pool, in the student's token ids.

    Args:
        logits_BV: The teacher's logits.
        settings: Temperature, top-p and top-k; they apply before the restriction.
        student_ids_V: The student's id of each teacher token, -1 if the student lacks it; None is
            the identity.
    """
    ids_BK, logits_BK = _top(logits_BV, settings.top_k)
    weights_BK = _weights(logits_BV, ids_BK, logits_BK, settings)
    return in_ids_of(student_ids_V, ids_BK, weights_BK, _raw(logits_BV, logits_BK))


def in_ids_of(
    student_ids_V: torch.Tensor | None,
    ids_BK: torch.Tensor,
    weights_BK: torch.Tensor,
    probs_BK: torch.Tensor,
) -> Pool:
    """A pool of teacher tokens in the student's ids, without tokens that the student lacks."""
    if student_ids_V is not None:
        ids_BK = student_ids_V[ids_BK]
        weights_BK = weights_BK * (ids_BK >= 0)
        ids_BK = ids_BK.masked_fill(ids_BK < 0, NO_TOKEN)
    return make_pool(ids_BK, weights_BK, probs_BK)


def student_pool(logits_BV: torch.Tensor, rule: AcceptanceRule) -> Pool:
    """The student's pool, with the probabilities that are compared with the threshold."""
    ids_BK, logits_BK = _top(logits_BV, rule.student.top_k)
    weights_BK = _weights(logits_BV, ids_BK, logits_BK, rule.student)
    if rule.threshold_on == "raw":
        return make_pool(ids_BK, weights_BK, _raw(logits_BV, logits_BK))
    return make_pool(ids_BK, weights_BK, _processed(logits_BV, rule.student).gather(-1, ids_BK))


def make_pool(ids_BK: torch.Tensor, weights_BK: torch.Tensor, probs_BK: torch.Tensor) -> Pool:
    """Build a pool from entries in any order and weights on any scale."""
    ids_BK, order_BK = ids_BK.sort(dim=-1)
    weights_BK = weights_BK.double().gather(-1, order_BK)
    total_B1 = weights_BK.sum(-1, keepdim=True)
    weights_BK = weights_BK / torch.where(total_B1 > 0, total_B1, 1.0)
    return Pool(ids_BK, weights_BK, probs_BK.gather(-1, order_BK))


def restricted(pool: Pool, allowed_BK: torch.Tensor) -> Pool:
    """The pool without the entries that are not allowed, renormalised."""
    return make_pool(pool.ids_BK, pool.weights_BK * allowed_BK, pool.probs_BK)


def propose(pool: Pool, uniforms_BR: torch.Tensor) -> torch.Tensor:
    """Draw a token for each number by inverting the pool's cumulative weights, [B, R].

    A pool whose weights are all zero gives :data:`NO_TOKEN`.
    """
    cumulative_BK = pool.weights_BK.cumsum(-1)
    thresholds_BR = uniforms_BR.double() * cumulative_BK[:, -1:]
    index_BR = torch.searchsorted(cumulative_BK, thresholds_BR, right=True)
    # u * total may round up to the total itself; then take the last entry with weight.
    last_B1 = (pool.weights_BK > 0).cumsum(-1).argmax(-1, keepdim=True)
    tokens_BR = pool.ids_BK.gather(-1, torch.minimum(index_BR, last_B1))
    return tokens_BR.masked_fill(cumulative_BK[:, -1:] <= 0, NO_TOKEN)


def probabilities(pool: Pool, tokens_BR: torch.Tensor) -> torch.Tensor:
    """The pool's probabilities [B, R] of tokens; 0 for tokens that are not in it."""
    index_BR = torch.searchsorted(pool.ids_BK, tokens_BR.contiguous())
    index_BR = index_BR.clamp_max(pool.ids_BK.shape[-1] - 1)
    there_BR = pool.ids_BK.gather(-1, index_BR) == tokens_BR
    return pool.probs_BK.gather(-1, index_BR) * there_BR


def choose(
    teacher: Pool | None, student: Pool | None, uniforms_BN: torch.Tensor, rule: AcceptanceRule
) -> Choice:
    """Apply the rule to one position of each row.

    Args:
        teacher: The teacher's pool; None in the student arm.
        student: The student's pool; None in the teacher arm.
        uniforms_BN: Random numbers in the layout of :func:`uniforms`, N = 1 + R.
        rule: The acceptance rule.
    """
    if rule.arm == "teacher" or student is None:
        assert teacher is not None, "the teacher arm needs the teacher"
        tokens_B = propose(teacher, uniforms_BN[:, 1:2])[:, 0]
        unknown_B = torch.full_like(teacher.probs_BK[:, 0], float("nan"))
        return Choice(tokens_B, torch.ones_like(tokens_B), unknown_B)
    fallback_B1 = propose(fallback_pool(student, rule), uniforms_BN[:, :1])
    if rule.arm == "student" or teacher is None:
        probs_B1 = probabilities(student, fallback_B1)
        return Choice(fallback_B1[:, 0], torch.zeros_like(fallback_B1[:, 0]), probs_B1[:, 0])
    candidates_BR = propose(teacher, uniforms_BN[:, 1 : 1 + rule.draws])
    probs_BR = probabilities(student, candidates_BR)
    accepted_BR = probs_BR >= rule.threshold
    first_B1 = accepted_BR.int().argmax(-1, keepdim=True)
    any_B1 = accepted_BR.any(-1, keepdim=True)
    tokens_B1 = torch.where(any_B1, candidates_BR.gather(-1, first_B1), fallback_B1)
    draws_B1 = torch.where(any_B1, first_B1 + 1, 0)
    return Choice(tokens_B1[:, 0], draws_B1[:, 0], probabilities(student, tokens_B1)[:, 0])


def fallback_pool(student: Pool, rule: AcceptanceRule) -> Pool:
    """What the student draws from after a refusal."""
    if rule.fallback == "pool" or rule.arm == "student":
        return student
    passing_BK = student.weights_BK * (student.probs_BK >= rule.threshold)
    none_B1 = passing_BK.sum(-1, keepdim=True) <= 0
    return make_pool(
        student.ids_BK, torch.where(none_B1, student.weights_BK, passing_BK), student.probs_BK
    )


def _top(logits_BV: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and logits of the likeliest tokens, in at least float32."""
    logits_BV = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))
    if top_k and top_k < logits_BV.shape[-1]:
        found = logits_BV.topk(top_k, dim=-1)
        return found.indices, found.values
    ids_V = torch.arange(logits_BV.shape[-1], device=logits_BV.device)
    return ids_V.expand_as(logits_BV), logits_BV


def _raw(logits_BV: torch.Tensor, logits_BK: torch.Tensor) -> torch.Tensor:
    """Probabilities of pool entries at temperature 1, normalised over the whole vocabulary."""
    return (logits_BK - logits_BV.to(logits_BK.dtype).logsumexp(-1, keepdim=True)).exp()


def _processed(logits_BV: torch.Tensor, settings: PoolSettings) -> torch.Tensor:
    """Probabilities of the whole vocabulary after temperature and top-p."""
    logits_BV = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))
    if settings.temperature == 0:
        likeliest_B1 = logits_BV.argmax(-1, keepdim=True)
        return torch.zeros_like(logits_BV).scatter_(-1, likeliest_B1, 1.0)
    logprobs_BV = (logits_BV / settings.temperature).log_softmax(-1)
    return truncate(logprobs_BV, Sampling(top_p=settings.top_p)).softmax(-1)


def _weights(
    logits_BV: torch.Tensor,
    ids_BK: torch.Tensor,
    logits_BK: torch.Tensor,
    settings: PoolSettings,
) -> torch.Tensor:
    """Weights for drawing pool entries, on any scale."""
    if settings.temperature > 0 and settings.top_p == 1:
        # Only ratios within the pool matter, so the rest of the vocabulary is not needed.
        return (logits_BK / settings.temperature).softmax(-1)
    return _processed(logits_BV, settings).gather(-1, ids_BK)
