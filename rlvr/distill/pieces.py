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
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from rlvr.distill.job import Job, Written
from rlvr.distill.lane import Lane
from rlvr.distill.lockstep import TransformersTraceSettings
from rlvr.distill.models import Loaded
from rlvr.distill.rule import (
    Pool,
    RuleSettings,
    fallback_pool,
    probabilities,
    propose,
    restricted,
    student_pool,
    teacher_pool,
    uniforms,
)
from rlvr.distill.token_bytes import Speller
from rlvr.distill.vocabulary import VocabularySettings
from rlvr.types import FinishReason


class Ask(NamedTuple):
    """What a row wants of a model: feed ``tokens``, then draw one token, or judge ``targets``."""

    of_teacher: bool
    tokens: tuple[int, ...]
    begins: bool = False
    """Draw among tokens that begin a piece only."""
    number: float = 0.0
    """The random number of the draw."""
    targets: tuple[int, ...] = ()
    """Tokens to judge, one behind each of the last tokens fed."""


class Answer(NamedTuple):
    """Of a draw one token (None: nothing to draw) and its probability; of targets theirs, 0 for
    one outside the pool."""

    token: int | None
    probs: tuple[float, ...]


class Piece(NamedTuple):
    """A piece in the tokens of the model that wrote it.

    ``open_end`` says that no boundary was seen behind it, so that the next may begin with anything.
    """

    tokens: tuple[int, ...]
    probs: tuple[float, ...]
    ends: bool
    open_end: bool


_Asks = Generator[Ask, Answer, Piece | None]


@dataclass(frozen=True)
class Side:
    """One model's vocabulary in terms of bytes."""

    speller: Speller
    end_ids: frozenset[int]
    may: torch.Tensor
    """[2, V]: tokens that may be drawn, and those of them that begin a piece."""
    texts: dict[int, bytes]
    """Special tokens that may be drawn, as text."""

    def data(self, tokens: Sequence[int]) -> bytes:
        """The bytes of tokens, special ones as their text."""
        parts = [self.texts.get(token) or self.speller.bytes_of[token] or b"" for token in tokens]
        return b"".join(parts)

    def begins(self, token: int) -> bool:
        """Whether a token begins a piece."""
        return bool(self.may[1, token])

    def alone(self, token: int) -> bool:
        """Whether a token is a piece of its own."""
        return token in self.end_ids or token in self.texts


def make_side(loaded: Loaded, settings: VocabularySettings, *, specials: bool) -> Side:
    """Read a vocabulary.

    Args:
        loaded: The model.
        settings: What a piece is.
        specials: Whether its special tokens may be drawn, besides its end tokens.

    Raises:
        ValueError: Its way of writing tokens is unknown.
    """
    speller = Speller(loaded.tokenizer)
    ends = frozenset(loaded.stop_ids)
    texts = {}
    may = torch.zeros(2, loaded.vocabulary, dtype=torch.bool)
    for token, data in enumerate(speller.bytes_of[: loaded.vocabulary]):
        special = data is None and token < len(loaded.tokenizer) and token not in ends
        if special and specials and (text := loaded.tokenizer.convert_ids_to_tokens(token)):
            texts[token] = text.encode()
        may[0, token] = bool(data) or token in ends or token in texts
        may[1, token] = not data or _begins_piece(data, settings)
    may[1] &= may[0]
    return Side(speller, ends, may, texts)


def _begins_piece(data: bytes, settings: VocabularySettings) -> bool:
    if settings.piece == "word":
        return data[:1].isspace()
    return not 0x80 <= data[0] < 0xC0


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
        self.end_id = int(student.tokenizer.eos_token_id)
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
        writers: list[_Writer | None] = [None] * self.rows
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

    def _start(self, row: int, job: Job) -> tuple["_Writer", Ask | None]:
        for lane, prompt in zip(self.lanes, (job.student_prompt, job.teacher_prompt), strict=True):
            lane.admit([row], [prompt[:-1]])
        writer = _Writer(self, row, job)
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
            pool = fallback_pool(student_pool(logits_bV, self.rule), self.rule)
        begins_b1 = torch.tensor([[int(asks[row].begins)] for row in rows], device=logits_bV.device)
        pool = restricted(pool, self._may[of_teacher][begins_b1, pool.ids_BK])
        if not of_teacher:
            pool = self._never_empty(pool, logits_bV, begins_b1)
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


class _Writer:
    """One trace in progress: a coroutine of what it asks, and its place in both caches.

    ``held`` are the lengths of the caches that are committed, ``waiting`` the tokens behind them
    that are committed too and fed with the next question: student first, teacher second.
    """

    def __init__(self, engine: PieceEngine, row: int, job: Job) -> None:
        self.engine, self.row, self.job = engine, row, job
        self.held = [len(job.student_prompt) - 1, len(job.teacher_prompt) - 1]
        self.waiting = [job.student_prompt[-1:], job.teacher_prompt[-1:]]
        self.begins, self.pieces = False, 0
        self._known = -1, np.empty(0)
        self.written: Written | None = None
        self.tokens: list[int] = []
        self.draws: list[int] = []
        self.student_prob: list[float | None] = []
        self.teacher_prob: list[float | None] = []
        self._coroutine = self._write()

    def next(self, answer: Answer | None) -> Ask | None:
        """Go on with an answer to the next question; None when the trace is finished."""
        try:
            return next(self._coroutine) if answer is None else self._coroutine.send(answer)
        except StopIteration as stop:
            self.written = stop.value
            return None

    def _write(self) -> Generator[Ask, Answer, Written]:
        reason: FinishReason | None = None
        while reason is None:
            reason = yield from self._one_piece()
            self.pieces += 1
            if reason is None and len(self.tokens) >= self.engine.max_tokens:
                reason = "length"
            if reason is None and self._context_is_full():
                reason = "length"
        rule, limit = self.engine.rule, self.engine.max_tokens
        nobody = (None,) * len(self.tokens)
        return Written(
            self.job,
            tuple(self.tokens[:limit]),
            tuple(self.draws[:limit]),
            tuple(self.teacher_prob if rule.uses_teacher else nobody)[:limit],
            tuple(self.student_prob if rule.uses_student else nobody)[:limit],
            "length" if len(self.tokens) > limit else reason,
        )

    def _context_is_full(self) -> bool:
        room = 2 * self.engine.piece_tokens + 1
        return any(
            lane.limit is not None and held + len(waiting) + room > lane.limit
            for lane, held, waiting in zip(self.engine.lanes, self.held, self.waiting, strict=True)
        )

    def _one_piece(self) -> Generator[Ask, Answer, FinishReason | None]:
        """Let the teacher propose until the student accepts, or let the student write."""
        rule = self.engine.rule
        for draw in range(1, (1 if rule.arm == "teacher" else rule.draws) + 1):
            if rule.arm == "student":
                break
            piece = yield from self._piece(of_teacher=True, draw=draw)
            if piece is None:
                continue
            ours = self._translated(piece)
            if ours is None:
                continue
            probs = yield from self._judged(ours)
            if probs is not None:
                return self._accept(piece, ours, probs, draw)
        piece = yield from self._piece(of_teacher=False, draw=0)
        assert piece is not None, "the student always finds a token"
        return self._fall_back(piece)

    def _piece(self, *, of_teacher: bool, draw: int) -> _Asks:
        """A piece of one model's; None if it has no token to begin with or leaves a character
        unfinished."""
        engine, side = self.engine, self.engine.teacher if of_teacher else self.engine.student
        numbers = self._numbers(draw)
        engine.lanes[of_teacher].roll_back(self.row, self.held[of_teacher])
        tokens: list[int] = []
        probs: list[float] = []
        feed, begins = self.waiting[of_teacher], self.begins
        for number in numbers:
            answer = yield Ask(of_teacher, feed, begins and not tokens, number)
            token = answer.token
            if token is None:
                return self._cut(side, tokens, probs) if tokens else None
            if tokens and (side.begins(token) or side.alone(token)) and self._whole(side, tokens):
                return Piece(tuple(tokens), tuple(probs), False, False)
            tokens.append(token)
            probs.append(answer.probs[0])
            if side.alone(token):
                return self._lone(side, tokens, probs)
            feed = (token,)
        return self._cut(side, tokens, probs)

    def _numbers(self, draw: int) -> list[float]:
        """One number for each token of a piece and one for the look ahead."""
        return [float(number) for number in self._streams()[: self.engine.piece_tokens + 1, draw]]

    def _streams(self) -> np.ndarray:
        engine, (piece, streams) = self.engine, self._known
        if piece != self.pieces:
            name = f"{self.job.problem_id}\x1f{self.pieces}"
            streams = uniforms(
                engine.seed, name, self.job.sample, engine.piece_tokens + 1, engine.rule.draws
            )
            self._known = self.pieces, streams
        return streams

    def _lone(self, side: Side, tokens: list[int], probs: list[float]) -> Piece | None:
        """A special token: alone it is a piece, behind others it left a character unfinished."""
        if len(tokens) > 1:
            return self._cut(side, tokens[:-1], probs[:-1])
        return Piece(tuple(tokens), tuple(probs), tokens[0] in side.end_ids, True)

    def _whole(self, side: Side, tokens: Sequence[int]) -> bool:
        try:
            side.data(tokens).decode("utf-8")
        except UnicodeDecodeError:
            return False
        return True

    def _cut(self, side: Side, tokens: list[int], probs: list[float]) -> Piece | None:
        """The longest beginning that ends with a whole character.

        Of the student's, which has to write something, the whole if there is none.
        """
        limit = min(len(tokens), self.engine.piece_tokens)
        for count in range(limit, 0, -1):
            if self._whole(side, tokens[:count]):
                return Piece(tuple(tokens[:count]), tuple(probs[:count]), False, True)
        if side is self.engine.student:
            return Piece(tuple(tokens[:limit]), tuple(probs[:limit]), False, True)
        return None

    def _translated(self, piece: Piece) -> tuple[int, ...] | None:
        """The teacher's piece in the student's tokens; None if the student cannot write it."""
        if piece.ends:
            return (self.engine.end_id,)
        return self.engine.student.speller.spell(self.engine.teacher.data(piece.tokens))

    def _judged(self, ours: tuple[int, ...]) -> Generator[Ask, Answer, tuple[float, ...] | None]:
        """The student's probabilities of a piece; None where it refuses."""
        rule = self.engine.rule
        if rule.arm == "teacher":
            return (float("nan"),) * len(ours)
        self.engine.lanes[0].roll_back(self.row, self.held[0])
        answer = yield Ask(False, (*self.waiting[0], *ours[:-1]), targets=ours)
        product = 1.0
        for prob in answer.probs:
            product *= prob
        return answer.probs if product >= rule.threshold else None

    def _accept(
        self, piece: Piece, ours: tuple[int, ...], probs: tuple[float, ...], draw: int
    ) -> FinishReason | None:
        teacher_prob = 1.0
        for prob in piece.probs:
            teacher_prob *= prob
        stopped = self._record(ours, probs, draw, teacher_prob)
        self._advance(1, piece.tokens)
        if self.engine.rule.arm == "teacher":
            self.waiting[0] = (*self.waiting[0], *ours)
        else:
            self._advance(0, ours)
        self.begins = not piece.open_end
        return "stop" if stopped else None

    def _fall_back(self, piece: Piece) -> FinishReason | None:
        stopped = self._record(piece.tokens, piece.probs, 0, None)
        self._advance(0, piece.tokens)
        self.begins = not piece.open_end
        if stopped:
            return "stop"
        if self.engine.rule.uses_teacher:
            data = self.engine.student.data(piece.tokens)
            theirs = self.engine.teacher.speller.spell(data)
            if theirs is None:
                raise ValueError(
                    f"the student wrote {data!r}, which the teacher's vocabulary cannot spell; "
                    "choose a teacher with byte tokens"
                )
            self.waiting[1] = (*self.waiting[1], *theirs)
        return None

    def _advance(self, of_teacher: int, tokens: tuple[int, ...]) -> None:
        """Commit a piece that the model was fed, all but its last token."""
        self.held[of_teacher] += len(self.waiting[of_teacher]) + len(tokens) - 1
        self.waiting[of_teacher] = tokens[-1:]

    def _record(
        self,
        tokens: tuple[int, ...],
        probs: tuple[float, ...],
        draw: int,
        teacher_prob: float | None,
    ) -> bool:
        """Keep a piece, up to a stop token within; whether there was one."""
        stops = [index for index, token in enumerate(tokens) if token in self.engine.stop_ids]
        count = stops[0] + 1 if stops else len(tokens)
        self.tokens += tokens[:count]
        self.draws += [draw] * count
        self.student_prob += probs[:count]
        self.teacher_prob += [teacher_prob] + [None] * (count - 1)
        return bool(stops)
