"""What a grading says (`Grade`) and the choices it is made under (`Policy`).

A `Policy` names every question on which public graders contradict each other; its defaults are
those for a training reward, where a false accept costs more than a false reject. Evaluation of a
benchmark with rounded golds would switch `round_to_gold` on. `docs/verifier.md` has the list.
"""

from dataclasses import dataclass
from typing import Literal

Status = Literal[
    "ok", "no_answer", "unparsable_pred", "unparsable_gold", "timeout", "crash", "error"
]

Extraction = Literal["boxed", "marked", "last_math", "last_number", "bracketed"]


@dataclass(frozen=True)
class Grade:
    """The verdict on one answer.

    ``kind`` is the kind of the gold answer (integer, fraction, interval, text, ...), ``path`` the
    rule that decided, ``reason`` a short sentence for people. ``status`` is ``ok`` whenever the
    answer could be judged; everything else is counted by the pool, and is never correct.
    """

    correct: bool
    extracted: str | None
    kind: str
    path: str
    reason: str
    status: Status = "ok"


@dataclass(frozen=True)
class Policy:
    """The choices under which two answers count as equal.

    Attributes:
        extraction: ``boxed`` reads the last box only; ``marked`` also an ``<answer>`` tag or an
            ``Answer:`` line where there is no box. For evaluation only, because they reward
            "Step 3": ``last_number`` falls back to the last number, ``last_math`` to the last
            formula or number; ``bracketed`` to the last ``[...]``.
        join_boxes: read several boxes on the last boxed line as one list; otherwise the last box.
        percent: ``gold`` reads ``X%`` as X or X/100 when the gold has a percent sign, else only as
            X/100; ``both`` accepts either reading always; ``value`` reads X/100 always.
        unreduced_fractions: accept 2/4 for 1/2.
        ordered_lists: compare bare lists ``1, 2`` in order; otherwise as multisets.
        relative_tolerance: largest relative difference between an exact value and a decimal
            approximation of it. Never absolute, never between two integers or exact forms.
        round_to_gold: accept a value that rounds to a decimal gold at the gold's own digits.
        units: ``strip`` drops a unit that only one side has; ``strict`` requires the same.
        base_required: refuse an answer without the base subscript that the gold has.
        chain: of a chain ``x = 2+3 = 5`` every numeric member must agree (``every``), or only the
            last counts (``last``).
        decimal_comma: read ``2,74`` as 2.74.
        tuple_without_brackets: accept ``1, 2`` for ``(1, 2)`` (in order).
        set_for_tuple: accept ``{1, 2}`` for ``(1, 2)``.
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


DEFAULT = Policy()
EVALUATION = Policy(extraction="marked", round_to_gold=True)
