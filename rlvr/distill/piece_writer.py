"""Write one trace by pieces of text: a coroutine that queries two models and never sees a batch.

:mod:`rlvr.distill.pieces` describes the method and replies to the queries.
"""

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rlvr.distill.acceptance_rule import uniforms
from rlvr.distill.tokenizer_view import TokenizerView
from rlvr.distill.trace_request import TraceRequest, Written
from rlvr.types import FinishReason

if TYPE_CHECKING:
    from rlvr.distill.pieces import PieceEngine


class Query(NamedTuple):
    """A row's query to a model: feed ``tokens``, then draw one token or judge ``targets``."""

    of_teacher: bool
    tokens: tuple[int, ...]
    begins: bool = False
    """Draw only among tokens that begin a piece."""
    number: float = 0.0
    """The random number of the draw."""
    targets: tuple[int, ...] = ()
    """Tokens to judge, one after each of the last tokens fed."""


class QueryReply(NamedTuple):
    """A drawn token (None: nothing to draw) and its probability, or the probabilities of the
    targets, 0 for a target outside the pool."""

    token: int | None
    probs: tuple[float, ...]


class TextPiece(NamedTuple):
    """A piece in the tokens of the model that wrote it.

    ``open_end`` says that no boundary was found after it, so the next may begin with any token.
    """

    tokens: tuple[int, ...]
    probs: tuple[float, ...]
    ends: bool
    open_end: bool


_Queries = Generator[Query, QueryReply, TextPiece | None]


class PieceWriter:
    """One trace in progress: a coroutine that yields queries, and its place in both caches.

    ``held`` are the committed lengths of both caches. ``waiting`` are committed tokens after them,
    which are fed with the next query. The student comes first, the teacher second.
    """

    def __init__(self, engine: "PieceEngine", row: int, request: TraceRequest) -> None:
        self.engine, self.row, self.request = engine, row, request
        self.held = [len(request.student_prompt) - 1, len(request.teacher_prompt) - 1]
        self.waiting = [request.student_prompt[-1:], request.teacher_prompt[-1:]]
        self.begins, self.pieces = False, 0
        self._known = -1, np.empty(0)
        self.written: Written | None = None
        self.tokens: list[int] = []
        self.draws: list[int] = []
        self.student_prob: list[float | None] = []
        self.teacher_prob: list[float | None] = []
        self._coroutine = self._write()

    def next(self, reply: QueryReply | None) -> Query | None:
        """Continue with a reply; return the next query, or None when the trace is finished."""
        try:
            return next(self._coroutine) if reply is None else self._coroutine.send(reply)
        except StopIteration as stop:
            self.written = stop.value
            return None

    def _write(self) -> Generator[Query, QueryReply, Written]:
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
            self.request,
            tuple(self.tokens[:limit]),
            tuple(self.draws[:limit]),
            tuple(self.teacher_prob if rule.uses_teacher else nobody)[:limit],
            tuple(self.student_prob if rule.uses_student else nobody)[:limit],
            "length" if len(self.tokens) > limit else reason,
        )

    def _context_is_full(self) -> bool:
        room = 2 * self.engine.piece_tokens + 1
        return any(
            batch.limit is not None and held + len(waiting) + room > batch.limit
            for batch, held, waiting in zip(
                self.engine.batches, self.held, self.waiting, strict=True
            )
        )

    def _one_piece(self) -> Generator[Query, QueryReply, FinishReason | None]:
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
        assert piece is not None, "the student always has a token to draw"
        return self._fall_back(piece)

    def _piece(self, *, of_teacher: bool, draw: int) -> _Queries:
        """A piece from one model; None if it has no token to begin with or leaves a character
        unfinished."""
        engine, view = self.engine, self.engine.teacher if of_teacher else self.engine.student
        numbers = self._numbers(draw)
        engine.batches[of_teacher].roll_back(self.row, self.held[of_teacher])
        tokens: list[int] = []
        probs: list[float] = []
        feed, begins = self.waiting[of_teacher], self.begins
        for number in numbers:
            reply = yield Query(of_teacher, feed, begins and not tokens, number)
            token = reply.token
            if token is None:
                return self._cut(view, tokens, probs) if tokens else None
            if tokens and (view.begins(token) or view.alone(token)) and self._whole(view, tokens):
                return TextPiece(tuple(tokens), tuple(probs), False, False)
            tokens.append(token)
            probs.append(reply.probs[0])
            if view.alone(token):
                return self._lone(view, tokens, probs)
            feed = (token,)
        return self._cut(view, tokens, probs)

    def _numbers(self, draw: int) -> list[float]:
        """One random number for each token of a piece and one for the token drawn ahead."""
        return [float(number) for number in self._streams()[: self.engine.piece_tokens + 1, draw]]

    def _streams(self) -> np.ndarray:
        engine, (piece, streams) = self.engine, self._known
        if piece != self.pieces:
            name = f"{self.request.problem_id}\x1f{self.pieces}"
            streams = uniforms(
                engine.seed, name, self.request.sample, engine.piece_tokens + 1, engine.rule.draws
            )
            self._known = self.pieces, streams
        return streams

    def _lone(self, view: TokenizerView, tokens: list[int], probs: list[float]) -> TextPiece | None:
        """A piece that ends in a special token: alone it is a piece; after other tokens it is cut
        off."""
        if len(tokens) > 1:
            return self._cut(view, tokens[:-1], probs[:-1])
        return TextPiece(tuple(tokens), tuple(probs), tokens[0] in view.end_ids, True)

    def _whole(self, view: TokenizerView, tokens: Sequence[int]) -> bool:
        try:
            view.data(tokens).decode("utf-8")
        except UnicodeDecodeError:
            return False
        return True

    def _cut(self, view: TokenizerView, tokens: list[int], probs: list[float]) -> TextPiece | None:
        """The longest prefix that ends with a whole character.

        If there is none, the student returns all tokens, because it must write something.
        """
        limit = min(len(tokens), self.engine.piece_tokens)
        for count in range(limit, 0, -1):
            if self._whole(view, tokens[:count]):
                return TextPiece(tuple(tokens[:count]), tuple(probs[:count]), False, True)
        if view is self.engine.student:
            return TextPiece(tuple(tokens[:limit]), tuple(probs[:limit]), False, True)
        return None

    def _translated(self, piece: TextPiece) -> tuple[int, ...] | None:
        """The teacher's piece in the student's tokens; None if the student cannot write it."""
        if piece.ends:
            return (self.engine.end_of[piece.tokens[0]],)
        return self.engine.student.speller.spell(self.engine.teacher.data(piece.tokens))

    def _judged(
        self, ours: tuple[int, ...]
    ) -> Generator[Query, QueryReply, tuple[float, ...] | None]:
        """The student's probabilities of a piece; None if it refuses the piece."""
        rule = self.engine.rule
        if rule.arm == "teacher":
            return (float("nan"),) * len(ours)
        self.engine.batches[0].roll_back(self.row, self.held[0])
        reply = yield Query(False, (*self.waiting[0], *ours[:-1]), targets=ours)
        product = 1.0
        for prob in reply.probs:
            product *= prob
        return reply.probs if product >= rule.threshold else None

    def _accept(
        self, piece: TextPiece, ours: tuple[int, ...], probs: tuple[float, ...], draw: int
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

    def _fall_back(self, piece: TextPiece) -> FinishReason | None:
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
                    f"the student wrote {data!r}, which the teacher's vocabulary cannot spell; use "
                    "a teacher with byte tokens"
                )
            self.waiting[1] = (*self.waiting[1], *theirs)
        return None

    def _advance(self, of_teacher: int, tokens: tuple[int, ...]) -> None:
        """Commit a piece that was fed to the model, except for its last token."""
        self.held[of_teacher] += len(self.waiting[of_teacher]) + len(tokens) - 1
        self.waiting[of_teacher] = tokens[-1:]

    def _record(
        self,
        tokens: tuple[int, ...],
        probs: tuple[float, ...],
        draw: int,
        teacher_prob: float | None,
    ) -> bool:
        """Record a piece up to its first stop token; return whether there was one."""
        stops = [index for index, token in enumerate(tokens) if token in self.engine.stop_ids]
        count = stops[0] + 1 if stops else len(tokens)
        self.tokens += tokens[:count]
        self.draws += [draw] * count
        self.student_prob += probs[:count]
        self.teacher_prob += [teacher_prob] + [None] * (count - 1)
        return bool(stops)
