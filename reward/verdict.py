"""The result of grading (`Grade`) and the choices behind it (`GradingPolicy`).

A `GradingPolicy` covers every question on which public graders contradict each other. Its defaults
are for a training reward, where a false accept costs more than a false reject. Set `round_to_gold`
to evaluate a benchmark with rounded references. `docs/verifier.md` has the list.
"""

from dataclasses import dataclass
from typing import Literal

from reward.certainty import LEVELS, Evidence

Status = Literal[
    "ok",
    "no_answer",
    "unparsable_pred",
    "unparsable_gold",
    "uncertain",
    "timeout",
    "crash",
    "error",
]

Extraction = Literal["boxed", "marked", "last_math", "last_number", "bracketed"]


@dataclass(frozen=True)
class Grade:
    """The verdict on one answer.

    ``kind`` is the kind of the gold answer (integer, fraction, interval, text, ...), ``path`` the
    rule that decided, ``reason`` a short explanation, ``certainty`` what a correct verdict rests
    on (a key of `reward.certainty.MEANING`; empty otherwise). ``status`` is ``ok`` if the answer
    could be graded, ``uncertain`` if it equals the reference but on less evidence than the policy
    asks for; the pool counts all statuses but ``ok``, which are never correct. ``score`` is the
    share of the credit, from 0 to 1, in domains that give partial credit, else None.
    """

    correct: bool
    extracted: str | None
    kind: str
    path: str
    reason: str
    status: Status = "ok"
    certainty: str = ""
    score: float | None = None

    @property
    def credit(self) -> float:
        """The share of the credit: ``score``, or 1 if the answer is correct and 0 if not."""
        return float(self.correct) if self.score is None else self.score


@dataclass(frozen=True)
class GradingPolicy:
    """The rules that decide when two answers count as equal.

    Attributes:
        extraction: ``boxed`` reads only the last box; ``marked`` also reads an ``<answer>`` tag or
            an ``Answer:`` line if there is no box. Three modes are only for evaluation, because
            they would reward "Step 3": ``last_number`` falls back to the last number, ``last_math``
            to the last formula or number, ``bracketed`` to the last ``[...]``.
        join_boxes: read several boxes on the last boxed line as one list; otherwise the last box.
        percent: ``gold`` reads ``X%`` as X or X/100 if the gold has a percent sign, otherwise only
            as X/100; ``both`` always accepts either reading; ``value`` always reads X/100.
        unreduced_fractions: accept 2/4 for 1/2.
        ordered_lists: compare bare lists ``1, 2`` in order; otherwise as multisets.
        relative_tolerance: largest relative difference between an exact value and a decimal
            approximation of it. Never absolute, never between two integers or exact forms.
        round_to_gold: accept a value that rounds to a decimal gold at the gold's digits.
        units: ``strip`` drops a unit that only one side has; ``strict`` requires the same.
        base_required: refuse an answer without the base subscript that the gold has.
        chain: in a chain ``x = 2+3 = 5`` every numeric member must agree (``every``), or only the
            last one counts (``last``).
        decimal_comma: read ``2,74`` as 2.74.
        tuple_without_brackets: accept ``1, 2`` for ``(1, 2)`` (in order).
        set_for_tuple: accept ``{1, 2}`` for ``(1, 2)``.
        certainty: the least evidence on which an answer is correct, in the order of
            `reward.certainty.LEVELS`: with ``points``, one that is equal within rounding or by
            math-verify only is not. The default, ``library``, asks for none.
        thoughts: pairs of markers (opening, closing) of a thought, besides those of
            `reward.thoughts.KNOWN`.
        sandbox: what separates a program from this machine (`reward.sandbox.limits.Isolation`).
        packages: whether a program may import this environment's installed packages.
    """

    extraction: Extraction = "boxed"
    join_boxes: bool = False
    percent: Literal["gold", "both", "value"] = "gold"
    unreduced_fractions: bool = True
    ordered_lists: bool = False
    relative_tolerance: float = 1e-6
    round_to_gold: bool = False
    units: Literal["strip", "strict"] = "strip"
    base_required: bool = False
    chain: Literal["every", "last"] = "every"
    decimal_comma: bool = False
    tuple_without_brackets: bool = True
    set_for_tuple: bool = False
    certainty: Evidence = "library"
    thoughts: tuple[tuple[str, str], ...] = ()
    sandbox: Literal["auto", "bubblewrap", "namespaces", "none_i_trust_the_code"] = "auto"
    packages: bool = False

    def __post_init__(self) -> None:
        if self.certainty not in LEVELS:
            raise ValueError(f"certainty={self.certainty!r}: choose one of {', '.join(LEVELS)}")
        # A worker receives the policy as JSON, which has lists only.
        pairs = tuple((opening, closing) for opening, closing in self.thoughts)
        object.__setattr__(self, "thoughts", pairs)


DEFAULT = GradingPolicy()
EVALUATION = GradingPolicy(extraction="marked", round_to_gold=True)
