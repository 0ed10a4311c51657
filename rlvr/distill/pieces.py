r"""Models of different vocabularies: they exchange pieces of text instead of tokens.

This extends the paper, which assumes one shared vocabulary. The teacher writes a piece (by default
a word) in its own tokens y_1 .. y_m; the student reads the same bytes in its own tokens s_1 .. s_n
and accepts the piece if all of them are in its pool and

    p(s_1) p(s_2 | s_1) ... p(s_n | s_<n)  >=  tau.

After R refused pieces the student writes one itself. Text can be cut safely between pieces in both
vocabularies: text is never encoded again across a boundary; ids are appended and never changed.

A piece ends before a token that begins the next one: a token that starts with white space
(``word``) or with the first byte of a character (``character``). To find that boundary, one token
is drawn ahead and discarded; the next piece then begins with a token drawn among those that begin
pieces, which has the same distribution. So with R = 1 and every piece accepted, the text has the
teacher's distribution. A word of more than ``piece_tokens`` tokens is split where a character ends.
An end token or another special token is always a whole piece; the teacher's end token stands for
the student's.

Each row is a small coroutine that yields its next query; all queries to the same model are answered
in one forward pass.
"""

import time
from collections.abc import Iterable, Iterator, Sequence

import torch

from rlvr.distill.acceptance_rule import (
    AcceptanceRule,
    Pool,
    fallback_pool,
    probabilities,
    propose,
    restricted,
    student_pool,
    teacher_pool,
)
from rlvr.distill.decode_batch import TransformersDecodeBatch
from rlvr.distill.piece_writer import PieceWriter, Query, QueryReply
from rlvr.distill.settings import TransformersTraceSettings
from rlvr.distill.tokenizer_view import make_tokenizer_view
from rlvr.distill.trace_model import LoadedModel
from rlvr.distill.trace_request import TraceRequest, Written
from rlvr.distill.vocabulary_match import VocabularySettings


class PieceEngine:
    """Traces by pieces of text; see the module's docstring.

    Args:
        teacher: The model that proposes.
        student: The model that may refuse.
        vocabulary: Settings that say what a piece is.
        rule: The acceptance rule.
        stop_ids: Token ids of the student that end a trace.
        max_tokens: Maximum number of student tokens in a trace.
        seed: Seed of all traces.
        settings: Number of rows.
    """

    def __init__(
        self,
        teacher: LoadedModel,
        student: LoadedModel,
        vocabulary: VocabularySettings,
        rule: AcceptanceRule,
        stop_ids: Sequence[int],
        max_tokens: int,
        seed: int,
        settings: TransformersTraceSettings,
    ) -> None:
        self.loaded = (student, teacher)
        self.rule, self.piece_tokens, self.rows = rule, vocabulary.piece_tokens, settings.rows
        self.max_tokens, self.seed = max_tokens, seed
        self.student = make_tokenizer_view(student, vocabulary, specials=True)
        self.teacher = make_tokenizer_view(teacher, vocabulary, specials=False)
        self.stop_ids = frozenset(stop_ids)
        self.end_of = _ends(teacher, student)
        self._may = [
            view.may.to(next(loaded.model.parameters()).device)
            for view, loaded in zip((self.student, self.teacher), self.loaded, strict=True)
        ]
        self._counts = dict.fromkeys(("tokens", "fallbacks", "redrawn", "rounds", "asked"), 0)
        self._spent = [0.0, 0.0]
        self._round_s = 0.0

    def close(self) -> None:
        """Free nothing: the caller owns the models."""

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
    def generate(self, requests: Iterable[TraceRequest]) -> Iterator[Written]:
        """See :class:`~rlvr.distill.trace_request.TraceEngine`."""
        queue = iter(requests)
        self.batches = [TransformersDecodeBatch(loaded.model, self.rows) for loaded in self.loaded]
        writers: list[PieceWriter | None] = [None] * self.rows
        queries: list[Query | None] = [None] * self.rows
        while True:
            for row, writer in enumerate(writers):
                if writer is None and (request := next(queue, None)) is not None:
                    writers[row], queries[row] = self._start(row, request)
            if not any(writers):
                return
            began = time.perf_counter()
            replies = self._query(queries)
            self._round_s += time.perf_counter() - began
            for row, writer in enumerate(writers):
                reply = replies[row]
                if writer is None or reply is None:
                    continue
                queries[row] = writer.next(reply)
                if writer.written is not None:
                    self._count(writer.written)
                    yield writer.written
                    writers[row] = None
                    for batch in self.batches:
                        batch.rest(row)

    def _start(self, row: int, request: TraceRequest) -> tuple[PieceWriter, Query | None]:
        for batch, prompt in zip(
            self.batches, (request.student_prompt, request.teacher_prompt), strict=True
        ):
            batch.admit([row], [prompt[:-1]])
        writer = PieceWriter(self, row, request)
        return writer, writer.next(None)

    def _count(self, written: Written) -> None:
        self._counts["tokens"] += len(written.token_ids)
        self._counts["fallbacks"] += sum(draw == 0 for draw in written.draws)
        self._counts["redrawn"] += sum(draw > 1 for draw in written.draws)

    def _query(self, queries: Sequence[Query | None]) -> list[QueryReply | None]:
        """Answer all queries: one pass of each model for the rows that query it."""
        replies: list[QueryReply | None] = [None] * len(queries)
        self._counts["rounds"] += 1
        self._counts["asked"] += sum(query is not None for query in queries)
        for of_teacher in (False, True):
            rows = [
                r for r, a in enumerate(queries) if a is not None and a.of_teacher == of_teacher
            ]
            if rows:
                mine = {row: query for row in rows if (query := queries[row]) is not None}
                for row, reply in self._query_one(of_teacher, mine, len(queries)).items():
                    replies[row] = reply
        return replies

    def _query_one(
        self, of_teacher: bool, queries: dict[int, Query], rows: int
    ) -> dict[int, QueryReply]:
        began = time.perf_counter()
        feed: list[tuple[int, ...]] = [
            queries[r].tokens if r in queries else () for r in range(rows)
        ]
        logits_BQV = self.batches[of_teacher].feed(feed)
        self._spent[of_teacher] += time.perf_counter() - began
        found: dict[int, QueryReply] = {}
        draws = [row for row, query in queries.items() if not query.targets]
        if draws:
            last = [len(queries[row].tokens) - 1 for row in draws]
            found |= self._drawn(of_teacher, logits_BQV[draws, last], draws, queries)
        for row, query in queries.items():
            if query.targets:
                stop = len(query.tokens)
                logits_NV = logits_BQV[row, stop - len(query.targets) : stop]
                pool = student_pool(logits_NV, self.rule)
                targets_N1 = torch.tensor(query.targets, device=logits_NV.device)[:, None]
                found[row] = QueryReply(None, tuple(probabilities(pool, targets_N1)[:, 0].tolist()))
        return found

    def _drawn(
        self, of_teacher: bool, logits_bV: torch.Tensor, rows: list[int], queries: dict[int, Query]
    ) -> dict[int, QueryReply]:
        pool: Pool
        if of_teacher:
            pool = teacher_pool(logits_bV, self.rule.teacher)
        else:
            pool = student_pool(logits_bV, self.rule)
        begins_b1 = torch.tensor(
            [[int(queries[row].begins)] for row in rows], device=logits_bV.device
        )
        pool = restricted(pool, self._may[of_teacher][begins_b1, pool.ids_BK])
        if not of_teacher:  # fallback_pool's "all if none passes" concerns the tokens allowed here
            pool = self._never_empty(fallback_pool(pool, self.rule), logits_bV, begins_b1)
        numbers_b1 = torch.tensor(
            [[queries[row].number] for row in rows], dtype=torch.float64, device=logits_bV.device
        )
        tokens_b1 = propose(pool, numbers_b1)
        probs_b1 = probabilities(pool, tokens_b1)
        vocabulary = logits_bV.shape[-1]
        return {
            row: QueryReply(token if token < vocabulary else None, (prob,))
            for row, token, prob in zip(
                rows, tokens_b1[:, 0].tolist(), probs_b1[:, 0].tolist(), strict=True
            )
        }

    def _never_empty(self, pool: Pool, logits_bV: torch.Tensor, begins_b1: torch.Tensor) -> Pool:
        """Give an empty student pool the likeliest token that may be drawn."""
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


def _ends(teacher: LoadedModel, student: LoadedModel) -> dict[int, int]:
    """The student's end token for each of the teacher's: the same name, or else its default."""
    own = {student.tokenizer.convert_ids_to_tokens(end): end for end in student.stop_ids}
    default = int(student.tokenizer.eos_token_id)
    names = {end: teacher.tokenizer.convert_ids_to_tokens(end) for end in teacher.stop_ids}
    return {end: own.get(name, default) for end, name in names.items()}
