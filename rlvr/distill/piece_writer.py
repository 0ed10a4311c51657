"""One trace by pieces of text: a coroutine that asks two models and never sees a batch.

The method is described in :mod:`rlvr.distill.pieces`, which answers.
"""

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rlvr.distill.job import Job, Written
from rlvr.distill.piece_side import Side
from rlvr.distill.rule import uniforms
from rlvr.types import FinishReason

if TYPE_CHECKING:
    from rlvr.distill.pieces import PieceEngine


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


class PieceWriter:
    """One trace in progress: a coroutine of what it asks, and its place in both caches.

    ``held`` are the lengths of the caches that are committed, ``waiting`` the tokens behind them
    that are committed too and fed with the next question: student first, teacher second.
    """

    def __init__(self, engine: "PieceEngine", row: int, job: Job) -> None:
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
            return (self.engine.end_of[piece.tokens[0]],)
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
