"""Generate many traces at once, token by token: two caches, one vectorised accept or replace.

With one token per round, the forward passes of teacher and student do not depend on each other and
may overlap; a round then takes as long as the slower pass. With ``block: K`` the teacher drafts K
tokens and the student judges them in one pass; tokens after the first refusal are rolled back. A
draft is the teacher's first draw at its position and is judged with the random numbers of that
position, so the traces are the same for every K. The student adds no token after an accepted block:
that token would be written by the student without a refusal.

A finished row is immediately replaced by the next trace of the queue.

Memory is not paged: every row's buffer is as long as the longest row.
"""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from rlvr.distill.acceptance_rule import (
    NO_TOKEN,
    AcceptanceRule,
    Choice,
    Pool,
    choose,
    propose,
    uniforms,
)
from rlvr.distill.decode_batch import DecodeModel
from rlvr.distill.next_token_scores import Scores
from rlvr.distill.settings import TransformersTraceSettings
from rlvr.distill.trace_request import TraceRequest, Written
from rlvr.distill.vocabulary_match import Vocabulary
from rlvr.types import FinishReason

# Idle rows are removed once they make up one in this many.
_LEAVE_TOGETHER = 8


@dataclass
class TraceInProgress:
    """One trace in progress; ``*_next`` are tokens that have not been fed to that model yet."""

    request: TraceRequest
    numbers: np.ndarray
    student_next: tuple[int, ...]
    teacher_next: tuple[int, ...]
    tokens: list[int] = field(default_factory=list)
    draws: list[int] = field(default_factory=list)
    teacher_prob: list[float] = field(default_factory=list)
    student_prob: list[float] = field(default_factory=list)

    def written(self, rule: AcceptanceRule, reason: FinishReason) -> Written:
        """The finished trace."""
        nobody = (None,) * len(self.tokens)
        return Written(
            self.request,
            tuple(self.tokens),
            tuple(self.draws),
            tuple(map(_known, self.teacher_prob)) if rule.uses_teacher else nobody,
            tuple(map(_known, self.student_prob)) if rule.uses_student else nobody,
            reason,
        )


def _known(probability: float) -> float | None:
    """None for NaN: an engine that reports only the likeliest tokens does not know the others."""
    return None if math.isnan(probability) else probability


class LockstepEngine:
    """Traces by the exact acceptance rule, for models whose tokens are matched one to one.

    Args:
        teacher: The model that proposes; None in the student arm.
        student: The model that may refuse; None in the teacher arm.
        vocabulary: How their tokens correspond.
        rule: The acceptance rule.
        stop_ids: Token ids of the student that end a trace.
        max_tokens: Maximum number of tokens in a trace.
        seed: Seed of all traces.
        settings: Number of rows, block, overlap.
    """

    def __init__(
        self,
        teacher: DecodeModel | None,
        student: DecodeModel | None,
        vocabulary: Vocabulary,
        rule: AcceptanceRule,
        stop_ids: Sequence[int],
        max_tokens: int,
        seed: int,
        settings: TransformersTraceSettings | None = None,
    ) -> None:
        self.sources = (teacher, student)
        self.vocabulary, self.rule = vocabulary, rule
        self.stop_ids, self.max_tokens, self.seed = frozenset(stop_ids), max_tokens, seed
        self.settings = settings or TransformersTraceSettings()
        self.block = self.settings.block if rule.arm == "rsd" else 1
        devices = [source.device for source in self.sources if source is not None]
        self.device = devices[-1]
        self._maps = _Maps(vocabulary, devices[0], self.device)
        overlap = self.settings.overlap
        overlap = devices[0] != devices[-1] if overlap is None else overlap
        self._thread = ThreadPoolExecutor(1) if overlap and rule.arm == "rsd" else None
        self._spent = dict.fromkeys(("teacher_s", "student_s", "rule_s", "round_s"), 0.0)
        self._counts = dict.fromkeys(("rounds", "drafted", "tokens", "fallbacks", "redrawn"), 0)

    def close(self) -> None:
        """End the second thread and free the models, if the engine owns them."""
        if self._thread is not None:
            self._thread.shutdown()
        for source in self.sources:
            if source is not None:
                source.close()

    def metrics(self) -> dict[str, float]:
        """See docs/metrics.md."""
        counts, tokens = self._counts, max(1, self._counts["tokens"])
        return {
            "distill/tokens": counts["tokens"],
            "distill/fallback_rate": counts["fallbacks"] / tokens,
            "distill/redrawn_rate": counts["redrawn"] / tokens,
            "distill/rows_mean": counts["drafted"] / max(1, counts["rounds"]) / self.block,
            "distill/draft_yield": counts["tokens"] / max(1, counts["drafted"]),
            **{f"distill/{name}": value for name, value in self._spent.items()},
        }

    @torch.no_grad()
    def generate(self, requests: Iterable[TraceRequest]) -> Iterator[Written]:
        """See :class:`~rlvr.distill.trace_request.TraceEngine`."""
        queue = iter(requests)
        self.rows: list[TraceInProgress | None] = [None] * self.settings.rows
        teacher, student = self.sources
        alone = self.rule.arm == "teacher"
        rows, unshared = len(self.rows), self._maps.unshared if alone else None
        self.teacher = None if teacher is None else teacher.decode_batch(rows, unshared)
        self.student = (
            None if student is None else student.decode_batch(rows, self._maps.unreadable)
        )
        self._refill(queue)
        while any(row is not None for row in self.rows):
            began = time.perf_counter()
            finished = list(self._round())
            self._spent["round_s"] += time.perf_counter() - began
            yield from finished
            if finished:
                self._refill(queue)

    def _refill(self, queue: Iterator[TraceRequest]) -> None:
        """Put the next traces into empty rows; when no traces are left, remove empty rows."""
        admitted = []
        for index, row in enumerate(self.rows):
            if row is None and (request := next(queue, None)) is not None:
                self.rows[index] = self._started(request)
                admitted.append((index, request))
        places = [index for index, _ in admitted]
        if self.teacher is not None and admitted:
            self.teacher.admit(places, [request.teacher_prompt[:-1] for _, request in admitted])
        if self.student is not None and admitted:
            self.student.admit(places, [request.student_prompt[:-1] for _, request in admitted])
        busy = [index for index, row in enumerate(self.rows) if row is not None]
        if busy and (len(self.rows) - len(busy)) * _LEAVE_TOGETHER >= len(self.rows):
            self.rows = [self.rows[index] for index in busy]
            for batch in (self.teacher, self.student):
                if batch is not None:
                    batch.keep(busy)

    def _started(self, request: TraceRequest) -> TraceInProgress:
        numbers = uniforms(
            self.seed,
            request.problem_id,
            request.sample,
            self.max_tokens + self.block,
            self.rule.draws,
        )
        return TraceInProgress(
            request, numbers, request.student_prompt[-1:], request.teacher_prompt[-1:]
        )

    def _round(self) -> Iterator[Written]:
        numbers_BKN = self._numbers()
        if self.block == 1:
            teacher_scores, student_scores = self._both()
            pools = [self._pool(scores) for scores in teacher_scores]
        else:
            teacher_scores, pools, drafts = self._draft(numbers_BKN)
            student_scores = self._judge(drafts)
        began = time.perf_counter()
        choice = self._choose(pools, student_scores, numbers_BKN)
        shape = (len(self.rows), self.block)
        tokens_BK = choice.tokens_B.view(shape)
        teacher_probs = self._teacher_probs(teacher_scores, tokens_BK)
        columns = (
            tokens_BK.tolist(),
            choice.draws_B.view(shape).tolist(),
            teacher_probs.tolist(),
            choice.student_probs_B.view(shape).tolist(),
        )
        self._spent["rule_s"] += time.perf_counter() - began
        self._counts["rounds"] += 1
        for index, row in enumerate(self.rows):
            if row is not None:
                yield from self._commit(index, row, *(column[index] for column in columns))

    def _numbers(self) -> torch.Tensor:
        """The numbers of the next ``block`` positions of each row, [B, K, 1 + R]."""
        nothing = np.zeros((self.block, self.rule.draws + 1))
        found = [
            nothing if row is None else row.numbers[len(row.tokens) : len(row.tokens) + self.block]
            for row in self.rows
        ]
        return torch.from_numpy(np.stack(found)).to(self.device)

    def _both(self) -> tuple[list[Scores], Scores | None]:
        """The scores of both models after the committed tokens; run at the same time if
        overlapped."""
        if self._thread is None:
            return self._teacher_step(), self._student_step()
        ahead = self._thread.submit(self._teacher_step)
        student = self._student_step()
        return ahead.result(), student

    def _teacher_step(self) -> list[Scores]:
        if self.teacher is None:
            return []
        return [self._teacher_feed([() if row is None else row.teacher_next for row in self.rows])]

    @torch.no_grad()
    def _teacher_feed(self, tokens: Sequence[Sequence[int]]) -> Scores:
        """The teacher's scores after each row's last token."""
        assert self.teacher is not None
        began = time.perf_counter()
        scores = self.teacher.last(tokens)
        self._spent["teacher_s"] += time.perf_counter() - began
        return scores

    def _student_step(self) -> Scores | None:
        if self.student is None:
            return None
        return self._judge([()] * len(self.rows))

    @torch.no_grad()
    def _judge(self, drafts: Sequence[Sequence[int]]) -> Scores:
        """The student's scores [B * K] after the committed tokens and after each draft."""
        assert self.student is not None
        began = time.perf_counter()
        feed = [
            () if row is None else (*row.student_next, *draft)
            for row, draft in zip(self.rows, drafts, strict=True)
        ]
        scores = self.student.every(feed, self.block)
        self._spent["student_s"] += time.perf_counter() - began
        return scores

    def _pool(self, scores: Scores) -> Pool:
        pool = scores.teacher_pool(self.rule.teacher, self._maps.student_ids)
        return Pool(*(part.to(self.device) for part in pool))

    def _draft(self, numbers_BKN: torch.Tensor) -> tuple[list[Scores], list[Pool], list[list[int]]]:
        """The teacher's scores at K positions, its pools, and its first K - 1 drafts."""
        scores: list[Scores] = []
        pools: list[Pool] = []
        drafts: list[list[int]] = [[] for _ in self.rows]
        feed: Sequence[Sequence[int]] = [
            () if row is None else row.teacher_next for row in self.rows
        ]
        for position in range(self.block):
            scores.append(self._teacher_feed(feed))
            pools.append(self._pool(scores[-1]))
            if position + 1 < self.block:
                proposed_B = propose(pools[-1], numbers_BKN[:, position, 1:2])[:, 0]
                theirs_B, known_B = self._maps.to_teacher(proposed_B)
                # If a pool is empty, nothing is accepted here, and the draft is a dummy.
                ours = (proposed_B * known_B).tolist()
                feed = [
                    () if row is None else (token,)
                    for row, token in zip(self.rows, theirs_B.tolist(), strict=True)
                ]
                for draft, token in zip(drafts, ours, strict=True):
                    draft.append(token)
        return scores, pools, drafts

    def _choose(
        self, pools: list[Pool], student_scores: Scores | None, numbers_BKN: torch.Tensor
    ) -> Choice:
        """Apply the rule at every row and position, as if each position were a separate row."""
        teacher = student = None
        if pools:
            parts = [torch.stack(part, dim=1).flatten(0, 1) for part in zip(*pools, strict=True)]
            teacher = Pool(*parts)
        if student_scores is not None:
            student = student_scores.student_pool(self.rule)
        return choose(teacher, student, numbers_BKN.flatten(0, 1), self.rule)

    def _teacher_probs(self, scores: list[Scores], tokens_BK: torch.Tensor) -> torch.Tensor:
        """The teacher's probabilities of tokens at temperature 1; 0 for tokens that it cannot
        write."""
        if not scores:
            return torch.full(tokens_BK.shape, float("nan"))
        theirs_BK, known_BK = self._maps.to_teacher(tokens_BK)
        columns = [item.probs(theirs_BK[:, position]) for position, item in enumerate(scores)]
        return torch.where(known_BK.cpu(), torch.stack(columns, dim=1).cpu(), 0.0)

    def _commit(
        self,
        index: int,
        row: TraceInProgress,
        tokens: list[int],
        draws: list[int],
        teacher_probs: list[float],
        student_probs: list[float],
    ) -> Iterator[Written]:
        """Keep tokens up to the first that is not an accepted draft; finish or roll back the
        row."""
        kept, reason = 0, None
        for token, draw in zip(tokens, draws, strict=True):
            kept += 1
            self._counts["fallbacks"] += draw == 0
            self._counts["redrawn"] += draw > 1
            reason = self._reason(index, token, len(row.tokens) + kept, self.block - kept)
            if reason is not None or draw != 1:
                break
        row.tokens += tokens[:kept]
        row.draws += draws[:kept]
        row.teacher_prob += teacher_probs[:kept]
        row.student_prob += student_probs[:kept]
        self._counts["tokens"] += kept
        self._counts["drafted"] += self.block
        if reason is not None:
            self.rows[index] = None
            for batch in (self.teacher, self.student):
                if batch is not None:
                    batch.rest(index)
            yield row.written(self.rule, reason)
            return
        row.student_next = (tokens[kept - 1],)
        row.teacher_next = self.vocabulary.spelled(tokens[kept - 1])
        for batch in (self.teacher, self.student):
            if batch is not None and kept < self.block:
                batch.roll_back(index, batch.lengths[index] - (self.block - kept))

    def _reason(self, index: int, token: int, length: int, surplus: int) -> FinishReason | None:
        """Why a trace ends with ``token``, its ``length``-th token; None if it goes on.

        ``surplus`` is the number of tokens that the caches hold after it. The teacher's context may
        be full before the limit, because a trace may have more tokens in the teacher's vocabulary.
        """
        if token in self.stop_ids:
            return "stop"
        if length >= self.max_tokens:
            return "length"
        for batch, count in (
            (self.teacher, len(self.vocabulary.spelled(token))),
            (self.student, 1),
        ):
            if batch is not None and batch.limit is not None:
                held = batch.lengths[index] - surplus
                if held + count > batch.limit:
                    return "length"
        return None


class _Maps:
    """The id maps of two vocabularies, each on the device that uses it.

    ``unshared`` are the teacher's ids that the student lacks. In the teacher arm they are removed
    before the pool is cut, so that the pool is never empty. ``unreadable`` are the student's ids
    that stand for no text: rows that pad its output head.
    """

    def __init__(
        self, vocabulary: Vocabulary, teacher: torch.device, student: torch.device
    ) -> None:
        own, theirs = vocabulary.student_ids, vocabulary.teacher_ids
        self.student_ids = None if own is None else own.to(teacher)
        self._teacher_ids = None if theirs is None else theirs.to(student)
        silent = [token for token, spelled in vocabulary.spellings.items() if not spelled]
        self.unreadable = torch.tensor(silent, device=student) if silent else None
        lacking = torch.empty(0) if own is None else (own < 0).nonzero()[:, 0]
        self.unshared = lacking.to(teacher) if len(lacking) else None

    def to_teacher(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The teacher's ids (0 for tokens it lacks), and whether it has each token."""
        if self._teacher_ids is None:
            known = tokens < NO_TOKEN
            return tokens * known, known
        inside = tokens < len(self._teacher_ids)
        found = self._teacher_ids[tokens * inside]
        known = inside & (found >= 0)
        return found * known, known
