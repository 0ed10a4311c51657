"""Verifiable rewards: find the answer in a response and decide whether it is right.

Needs the standard library, math-verify and sympy only, so that any project can use it. `grade`
judges one response in this process; `VerifierPool` judges many in killable worker processes and
is what a training run should use; `reward.functions` turns verdicts into rewards.
"""

from reward.grading import equivalent, grade
from reward.pool import VerifierPool
from reward.verdict import DEFAULT, EVALUATION, Grade, Policy

__all__ = ["DEFAULT", "EVALUATION", "Grade", "Policy", "VerifierPool", "equivalent", "grade"]
