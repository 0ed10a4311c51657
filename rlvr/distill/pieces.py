r"""Models of different vocabularies: they exchange pieces of text instead of tokens.

An extension of ours; the paper knows one vocabulary only. The teacher writes a piece, a word by
default, in its own tokens y_1 .. y_m; the student reads the same bytes in its own tokens s_1 .. s_n
and accepts the piece if all of them are in its pool and

    p(s_1) p(s_2 | s_1) ... p(s_n | s_<n)  >=  tau.

After R refused pieces the student writes one itself. Pieces are where both vocabularies can be cut
safely: text is never re-tokenised across a boundary, ids are appended and never changed.

A piece ends before a token that begins another: with white space (``word``) or with a first byte of
a character (``character``). To see that, one token is drawn ahead and thrown away; the next piece
then begins with a token drawn among those that begin pieces, which is the same law. So with R = 1
and every piece accepted the text has the teacher's own law. A word of more than ``piece_tokens``
tokens is parted where a character ends. Ends of turn and other special tokens are pieces of their
own; the teacher's end token stands for the student's.

Each row is a small coroutine that says what it wants to know next; all rows that want to know
something of the same model are asked at once.
"""

import time
from collections.abc import Iterable, Iterator, Sequence

import torch

from rlvr.distill.job import Job, Written
from rlvr.distill.lane import Lane
from rlvr.distill.lockstep import TransformersTraceSettings
from rlvr.distill.models import Loaded
from rlvr.distill.piece_side import make_side
from rlvr.distill.piece_writer import Answer, Ask, PieceWriter
from rlvr.distill.rule import (
    Pool,
    RuleSettings,
    fallback_pool,
    probabilities,
    propose,
    restricted,
    student_pool,
    teacher_pool,
)
from rlvr.distill.vocabulary import VocabularySettings


class PieceEngine:
    """Traces by pieces of text; see the module.

    Args:
        teacher: The model that proposes.
        student: The model that may refuse.
        vocabulary: What a piece is.
        rule: The rule.
        stop_ids: The student's tokens that end a trace.
        max_tokens: Most of the student's tokens in a trace.
        seed: Of all traces.
        settings: Rows.
    """

    def __init__(
        self,
        teacher: Loaded,
        student: Loaded,
        vocabulary: VocabularySettings,
        rule: RuleSettings,
        stop_ids: Sequence[int],
        max_tokens: int,
        seed: int,
        settings: TransformersTraceSettings,
    ) -> None:
        self.loaded = (student, teacher)
        self.rule, self.piece_tokens, self.rows = rule, vocabulary.piece_tokens, settings.rows
        self.max_tokens, self.seed = max_tokens, seed
        self.student = make_side(student, vocabulary, specials=True)
        self.teacher = make_side(teacher, vocabulary, specials=False)
        self.stop_ids = frozenset(stop_ids)
        self.end_of = _ends(teacher, student)
        self._may = [
            side.may.to(next(loaded.model.parameters()).device)
            for side, loaded in zip((self.student, self.teacher), self.loaded, strict=True)
        ]
        self._counts = dict.fromkeys(("tokens", "fallbacks", "redrawn", "rounds", "asked"), 0)
        self._spent = [0.0, 0.0]
        self._round_s = 0.0

    def close(self) -> None:
        """Nothing to free."""

    def metrics(self) -> dict[str, float]:
        """See docs/metrics.md."""
        tokens = max(1, self._counts["tokens"])
        return {
            "distill/tokens": self._counts["tokens"],
            "distill/fallback_rate": self._counts["fallbacks"] / tokens,
            "distill/redrawn_rate": self._counts["redrawn"] / tokens,
            "distill/rows_mean": self._counts["asked"] / max(1, self._counts["rounds"]),
            "distill/round_s": self._round_s,
            "distill/student_s": self._spent[0],
            "distill/teacher_s": self._spent[1],
        }

    @torch.no_grad()
    def generate(self, jobs: Iterable[Job]) -> Iterator[Written]:
        """See :class:`~rlvr.distill.job.TraceEngine`."""
        queue = iter(jobs)
        self.lanes = [Lane(loaded.model, self.rows) for loaded in self.loaded]
        writers: list[PieceWriter | None] = [None] * self.rows
        asks: list[Ask | None] = [None] * self.rows
        while True:
            for row, writer in enumerate(writers):
                if writer is None and (job := next(queue, None)) is not None:
                    writers[row], asks[row] = self._start(row, job)
            if not any(writers):
                return
            began = time.perf_counter()
            answers = self._ask(asks)
            self._round_s += time.perf_counter() - began
            for row, writer in enumerate(writers):
                answer = answers[row]
                if writer is None or answer is None:
                    continue
                asks[row] = writer.next(answer)
                if writer.written is not None:
                    self._count(writer.written)
                    yield writer.written
                    writers[row] = None
                    for lane in self.lanes:
                        lane.rest(row)

    def _start(self, row: int, job: Job) -> tuple[PieceWriter, Ask | None]:
        for lane, prompt in zip(self.lanes, (job.student_prompt, job.teacher_prompt), strict=True):
            lane.admit([row], [prompt[:-1]])
        writer = PieceWriter(self, row, job)
        return writer, writer.next(None)

    def _count(self, written: Written) -> None:
        self._counts["tokens"] += len(written.token_ids)
        self._counts["fallbacks"] += sum(draw == 0 for draw in written.draws)
        self._counts["redrawn"] += sum(draw > 1 for draw in written.draws)

    def _ask(self, asks: Sequence[Ask | None]) -> list[Answer | None]:
        """Ask both models, each for all rows that want something of it."""
        answers: list[Answer | None] = [None] * len(asks)
        self._counts["rounds"] += 1
        self._counts["asked"] += sum(ask is not None for ask in asks)
        for of_teacher in (False, True):
            rows = [r for r, a in enumerate(asks) if a is not None and a.of_teacher == of_teacher]
            if rows:
                mine = {row: ask for row in rows if (ask := asks[row]) is not None}
                for row, answer in self._ask_one(of_teacher, mine, len(asks)).items():
                    answers[row] = answer
        return answers

    def _ask_one(self, of_teacher: bool, asks: dict[int, Ask], rows: int) -> dict[int, Answer]:
        began = time.perf_counter()
        feed: list[tuple[int, ...]] = [asks[r].tokens if r in asks else () for r in range(rows)]
        logits_BQV = self.lanes[of_teacher].feed(feed)
        self._spent[of_teacher] += time.perf_counter() - began
        found: dict[int, Answer] = {}
        draws = [row for row, ask in asks.items() if not ask.targets]
        if draws:
            last = [len(asks[row].tokens) - 1 for row in draws]
            found |= self._drawn(of_teacher, logits_BQV[draws, last], draws, asks)
        for row, ask in asks.items():
            if ask.targets:
                stop = len(ask.tokens)
                logits_NV = logits_BQV[row, stop - len(ask.targets) : stop]
                pool = student_pool(logits_NV, self.rule)
                targets_N1 = torch.tensor(ask.targets, device=logits_NV.device)[:, None]
                found[row] = Answer(None, tuple(probabilities(pool, targets_N1)[:, 0].tolist()))
        return found

    def _drawn(
        self, of_teacher: bool, logits_bV: torch.Tensor, rows: list[int], asks: dict[int, Ask]
    ) -> dict[int, Answer]:
        pool: Pool
        if of_teacher:
            pool = teacher_pool(logits_bV, self.rule.teacher)
        else:
            pool = student_pool(logits_bV, self.rule)
        begins_b1 = torch.tensor([[int(asks[row].begins)] for row in rows], device=logits_bV.device)
        pool = restricted(pool, self._may[of_teacher][begins_b1, pool.ids_BK])
        if not of_teacher:  # "all of it where none passes" is said of what may be written here
            pool = self._never_empty(fallback_pool(pool, self.rule), logits_bV, begins_b1)
        numbers_b1 = torch.tensor(
            [[asks[row].number] for row in rows], dtype=torch.float64, device=logits_bV.device
        )
        tokens_b1 = propose(pool, numbers_b1)
        probs_b1 = probabilities(pool, tokens_b1)
        vocabulary = logits_bV.shape[-1]
        return {
            row: Answer(token if token < vocabulary else None, (prob,))
            for row, token, prob in zip(
                rows, tokens_b1[:, 0].tolist(), probs_b1[:, 0].tolist(), strict=True
            )
        }

    def _never_empty(self, pool: Pool, logits_bV: torch.Tensor, begins_b1: torch.Tensor) -> Pool:
        """Where the student's pool has no token that may be drawn, its likeliest that may."""
        empty_b1 = pool.weights_BK.sum(-1, keepdim=True) <= 0
        if not bool(empty_b1.any()):
            return pool
        best_b1 = logits_bV.masked_fill(~self._may[0][begins_b1[:, 0]], float("-inf")).argmax(
            -1, keepdim=True
        )
        probs_b1 = logits_bV.double().softmax(-1).gather(-1, best_b1).to(pool.probs_BK.dtype)
        only_BK = torch.zeros_like(pool.weights_BK)
        only_BK[:, 0] = 1
        return Pool(
            torch.where(empty_b1, best_b1.expand_as(pool.ids_BK), pool.ids_BK),
            torch.where(empty_b1, only_BK, pool.weights_BK),
            torch.where(empty_b1, probs_b1.expand_as(pool.probs_BK), pool.probs_BK),
        )


def _ends(teacher: Loaded, student: Loaded) -> dict[int, int]:
    """The student's end token for each of the teacher's: of the same name, else its own."""
    own = {student.tokenizer.convert_ids_to_tokens(end): end for end in student.stop_ids}
    default = int(student.tokenizer.eos_token_id)
    names = {end: teacher.tokenizer.convert_ids_to_tokens(end) for end in teacher.stop_ids}
    return {end: own.get(name, default) for end, name in names.items()}
