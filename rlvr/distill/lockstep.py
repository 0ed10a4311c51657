"""Many traces at once, token by token: two caches, one vectorised accept or replace.

At one token a round the teacher's and the student's forward passes do not depend on each other and
may overlap; a round takes as long as the slower one. With ``block: K`` the teacher drafts K tokens
and the student judges them in one pass; what follows the first refusal is rolled back. A draft is
the teacher's first draw at its position and is judged with the numbers of that position, so that
the traces are the same for every K. No token of the student's is added behind an accepted block:
that would make it student-written without a refusal.

A finished row is replaced at once by the next trace of the queue.

Left out: paged memory; a row's buffer is as long as the longest row's.
"""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from rlvr.distill.job import Job, Written
from rlvr.distill.lane import LaneSource
from rlvr.distill.rule import (
    NO_TOKEN,
    Choice,
    Pool,
    RuleSettings,
    choose,
    propose,
    uniforms,
)
from rlvr.distill.scores import Scores
from rlvr.distill.vocabulary import Vocabulary
from rlvr.settings import Settings
from rlvr.types import FinishReason

# Idle rows leave the batch once they are one in this many.
_LEAVE_TOGETHER = 8


class TransformersTraceSettings(Settings):
    """Generate traces with both models in this process: exact, the reference."""

    name: Literal["transformers"] = "transformers"
    """Both models in this process, through transformers."""
    rows: int = Field(64, ge=1)
    """Traces generated side by side."""
    block: int = Field(1, ge=1, le=64)
    """Tokens the teacher drafts before the student judges them (K); the traces are the same."""
    overlap: bool | None = None
    """Run both models at the same time where a round allows it (block 1); null does where they are
    on different devices."""


@dataclass
class Row:
    """One trace in progress; ``*_next`` are tokens that its model has not been fed yet."""

    job: Job
    numbers: np.ndarray
    student_next: tuple[int, ...]
    teacher_next: tuple[int, ...]
    tokens: list[int] = field(default_factory=list)
    draws: list[int] = field(default_factory=list)
    teacher_prob: list[float] = field(default_factory=list)
    student_prob: list[float] = field(default_factory=list)

    def written(self, rule: RuleSettings, reason: FinishReason) -> Written:
        """The finished trace."""
        nobody = (None,) * len(self.tokens)
        return Written(
            self.job,
            tuple(self.tokens),
            tuple(self.draws),
            tuple(map(_known, self.teacher_prob)) if rule.uses_teacher else nobody,
            tuple(map(_known, self.student_prob)) if rule.uses_student else nobody,
            reason,
        )


def _known(probability: float) -> float | None:
    """An engine that gives the likeliest tokens only does not know the others'."""
    return None if math.isnan(probability) else probability


class LockstepEngine:
    """Traces by the rule, exactly, for models of which tokens are matched one to one.

    Args:
        teacher: The model that proposes; None in the student's arm.
        student: The model that may refuse; None in the teacher's arm.
        vocabulary: How their tokens belong together.
        rule: The rule.
        stop_ids: The student's tokens that end a trace.
        max_tokens: Most tokens of a trace.
        seed: Of all traces.
        settings: Rows, block, overlap.
    """

    def __init__(
        self,
        teacher: LaneSource | None,
        student: LaneSource | None,
        vocabulary: Vocabulary,
        rule: RuleSettings,
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
        """End the second thread and free the models, where that is to be done."""
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
    def generate(self, jobs: Iterable[Job]) -> Iterator[Written]:
        """See :class:`~rlvr.distill.job.TraceEngine`."""
        queue = iter(jobs)
        self.rows: list[Row | None] = [None] * self.settings.rows
        teacher, student = self.sources
        alone = self.rule.arm == "teacher"
        rows, unshared = len(self.rows), self._maps.unshared if alone else None
        self.teacher = None if teacher is None else teacher.lane(rows, unshared)
        self.student = None if student is None else student.lane(rows, self._maps.unreadable)
        self._refill(queue)
        while any(row is not None for row in self.rows):
            began = time.perf_counter()
            finished = list(self._round())
            self._spent["round_s"] += time.perf_counter() - began
            yield from finished
            if finished:
                self._refill(queue)

    def _refill(self, queue: Iterator[Job]) -> None:
        """Put the next traces into empty rows; where there are none left, empty rows go."""
        admitted = []
        for index, row in enumerate(self.rows):
            if row is None and (job := next(queue, None)) is not None:
                self.rows[index] = self._started(job)
                admitted.append((index, job))
        places = [index for index, _ in admitted]
        if self.teacher is not None and admitted:
            self.teacher.admit(places, [job.teacher_prompt[:-1] for _, job in admitted])
        if self.student is not None and admitted:
            self.student.admit(places, [job.student_prompt[:-1] for _, job in admitted])
        busy = [index for index, row in enumerate(self.rows) if row is not None]
        if busy and (len(self.rows) - len(busy)) * _LEAVE_TOGETHER >= len(self.rows):
            self.rows = [self.rows[index] for index in busy]
            for lane in (self.teacher, self.student):
                if lane is not None:
                    lane.keep(busy)

    def _started(self, job: Job) -> Row:
        numbers = uniforms(
            self.seed,
            job.problem_id,
            job.sample,
            self.max_tokens + self.block,
            self.rule.draws,
        )
        return Row(job, numbers, job.student_prompt[-1:], job.teacher_prompt[-1:])

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
        """What both models say behind what is committed; at the same time where that pays."""
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
        """What the teacher says behind each row's last token."""
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
        """What the student says, [B * K], behind what is committed and behind each draft."""
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
        """What the teacher says at K positions, its pools, and its first K - 1 drafts."""
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
                # A pool may be empty: then nothing is accepted here, and the draft is a dummy.
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
        """The rule at every row and position, as if each were a row of its own."""
        teacher = student = None
        if pools:
            parts = [torch.stack(part, dim=1).flatten(0, 1) for part in zip(*pools, strict=True)]
            teacher = Pool(*parts)
        if student_scores is not None:
            student = student_scores.student_pool(self.rule)
        return choose(teacher, student, numbers_BKN.flatten(0, 1), self.rule)

    def _teacher_probs(self, scores: list[Scores], tokens_BK: torch.Tensor) -> torch.Tensor:
        """The teacher's probabilities of tokens at temperature 1; 0 for what it cannot write."""
        if not scores:
            return torch.full(tokens_BK.shape, float("nan"))
        theirs_BK, known_BK = self._maps.to_teacher(tokens_BK)
        columns = [item.probs(theirs_BK[:, position]) for position, item in enumerate(scores)]
        return torch.where(known_BK.cpu(), torch.stack(columns, dim=1).cpu(), 0.0)

    def _commit(
        self,
        index: int,
        row: Row,
        tokens: list[int],
        draws: list[int],
        teacher_probs: list[float],
        student_probs: list[float],
    ) -> Iterator[Written]:
        """Keep tokens up to the first that is no accepted draft; finish or roll back the row."""
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
            for lane in (self.teacher, self.student):
                if lane is not None:
                    lane.rest(index)
            yield row.written(self.rule, reason)
            return
        row.student_next = (tokens[kept - 1],)
        row.teacher_next = self.vocabulary.spelled(tokens[kept - 1])
        for lane in (self.teacher, self.student):
            if lane is not None and kept < self.block:
                lane.roll_back(index, lane.lengths[index] - (self.block - kept))

    def _reason(self, index: int, token: int, length: int, surplus: int) -> FinishReason | None:
        """Why a trace ends with ``token``, its ``length``-th, if it does.

        ``surplus`` is how many tokens the caches hold behind it. A context may be full before the
        limit: spelled out, a trace may be longer for the teacher than for the student.
        """
        if token in self.stop_ids:
            return "stop"
        if length >= self.max_tokens:
            return "length"
        for lane, count in (
            (self.teacher, len(self.vocabulary.spelled(token))),
            (self.student, 1),
        ):
            if lane is not None and lane.limit is not None:
                held = lane.lengths[index] - surplus
                if held + count > lane.limit:
                    return "length"
        return None


class _Maps:
    """A vocabulary's maps on the devices that use them.

    ``unshared`` are the teacher's ids that the student lacks: where the teacher writes alone, they
    leave its pool before it is cut, so that it never is empty. ``unreadable`` are the student's
    ids that stand for no text: rows that pad its output head.
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
        """The teacher's ids (0 where it has none) and whether it has one."""
        if self._teacher_ids is None:
            known = tokens < NO_TOKEN
            return tokens * known, known
        inside = tokens < len(self._teacher_ids)
        found = self._teacher_ids[tokens * inside]
        known = inside & (found >= 0)
        return found * known, known
