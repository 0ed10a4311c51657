"""Where math-verify is not installed, answers that need it say so, and all others are graded."""

import subprocess
import sys

import pytest

from reward import grade, library
from reward.compatible import math_verify_alone
from reward.graders import warm_up

NEEDS = (r"\boxed{\sum_{n=1}^k n\cdot n}", r"\sum_{n=1}^{k} n^2")


@pytest.fixture
def without(monkeypatch):
    library.math_verify.cache_clear()
    monkeypatch.setitem(sys.modules, "math_verify", None)
    yield
    library.math_verify.cache_clear()


def test_with_it_the_answer_is_right():
    verdict = grade(*NEEDS)
    assert (verdict.correct, verdict.path) == (True, "symbolic")


def test_what_needs_it_names_the_remedy_and_nothing_else_does(without):
    warm_up()
    assert grade(r"\boxed{\frac{1}{2}}", "0.5").correct
    assert not grade(r"\boxed{x+1}", "x+2").correct
    for grader in (grade, math_verify_alone):
        with pytest.raises(ImportError, match="pip install math-verify"):
            grader(*NEEDS)


def test_the_verifier_is_imported_without_it():
    code = "import sys, reward; sys.exit('math_verify' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
