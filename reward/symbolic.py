"""math-verify, used for symbolic comparison only."""

from math_verify import LatexExtractionConfig, parse, verify
from sympy import Basic, MatrixBase

_LATEX = [LatexExtractionConfig(boxed_match_priority=0)]


def symbolic_equal(pred: str, gold: str) -> bool:
    """Compare two LaTeX expressions; both must parse."""
    gold_parsed = parse(f"${gold}$", _LATEX, parsing_timeout=None)
    pred_parsed = parse(f"\\boxed{{{pred}}}", _LATEX, parsing_timeout=None)
    both = [
        next((item for item in parsed if isinstance(item, Basic | MatrixBase)), None)
        for parsed in (gold_parsed, pred_parsed)
    ]
    if both[0] is None or both[1] is None:
        return False
    return bool(verify(both[0], both[1], allow_set_relation_comp=True, timeout_seconds=None))
