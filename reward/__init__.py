"""Verifiable rewards: find the answer in a response and decide whether it is right.

It needs only the standard library, math-verify and sympy, so any project can use it. `grade` judges
one response in this process. `VerifierPool` judges many in killable worker processes; training runs
should use it. `reward.functions` turns verdicts into rewards.
"""

from reward.grading import equivalent, grade
from reward.pool import VerifierPool
from reward.verdict import DEFAULT, EVALUATION, Grade, GradingPolicy

__all__ = ["DEFAULT", "EVALUATION", "Grade", "GradingPolicy", "VerifierPool", "equivalent", "grade"]
