"""Equations of losses as TeX; tests/test_site.py has KaTeX set all of them."""

import pytest

from rlvr.preference.losses.base import PreferenceLoss
from rlvr.preference.tex import tex


@pytest.mark.parametrize(
    ("equation", "expected"),
    [
        ("-log s(beta d)", r"-\log \sigma(\beta d)"),
        ("a/|w| - b0", r"a/\lvert w\rvert -b_0"),
        ("(1 - e^(a/|w|))^2", r"(1-e^{a/\lvert w\rvert })^2"),
        ("max(0, margin - score_w)", r"\max(0,\ \mathrm{margin}-\mathrm{score}_w)"),
        ("nll_weight NLL(y_w)", r"\mathrm{nll\_weight}\,\mathrm{NLL}(y_w)"),
        (
            "s(o), o = f(a, b)",
            "\\begin{aligned}\n& \\sigma(o),\\\\\n& o=f(a,\\ b)\n\\end{aligned}",
        ),
        ("-a, mean over the step's tokens", r"-a,\qquad \text{mean over the step's tokens}"),
        ("d if desirable", r"d\text{ if}\text{ desirable}"),
    ],
)
def test_an_equation_becomes_tex(equation, expected):
    assert tex(equation) == expected


@pytest.mark.parametrize("name", PreferenceLoss.registry())
def test_groups_are_closed(name):
    text = tex(PreferenceLoss.registry()[name].equation)
    for opening, closing in ("()", "{}", "[]"):
        assert text.count(opening) == text.count(closing)
