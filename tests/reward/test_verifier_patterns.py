"""No pattern of the verifier takes more than linear time on the strings made to slow it down."""

import re
import signal
import time

import pytest

from reward import grade
from tests.reward.patterns import attacks, patterns

LENGTHS = (30, 400, 30_000)
# Seconds of the processor. At 30,000 linear patterns take a few thousandths, quadratic ones half of
# a second and more, whatever the machine.
LINEAR = 0.08
GENERIC = [
    "a",
    "a ",
    "1",
    "1,",
    "1 ",
    " ",
    "\t",
    "\n",
    "{",
    "}",
    "\\",
    "(",
    "[",
    "|",
    "a1",
    "$",
    "$a",
    "\\text{a}",
    "\\text{ab} ",
    "{a}",
    "ab ab ",
    "_a",
    "^1",
    "a=",
    "\\a",
    "\\frac{a}",
    "a,",
    "A, ",
    "**",
    "'",
    "a'",
    "-",
    "is ",
    "is}",
    "<",
    "the ",
    "\\{",
]


class _Expired(BaseException):
    pass


def seconds(run, text: str) -> float:
    """Measure a call in processor time; a call that takes a second is cut off."""

    def expire(*_):
        raise _Expired

    previous = signal.signal(signal.SIGVTALRM, expire)
    began = time.process_time()
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, 1.0)
        run(text)
    except _Expired:
        pass
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)
    return time.process_time() - began


def slow(pattern: re.Pattern[str], scans: bool) -> tuple[str, str, int] | None:
    """Find an attack and a length at which a pattern is slow, three times in a row."""
    runs = [lambda text: pattern.sub("", text)] if scans else [pattern.match, pattern.fullmatch]
    for before, piece in sorted(attacks(pattern) | {("", piece) for piece in GENERIC}):
        for length in LENGTHS:
            text = before + piece * (length // len(piece)) + "\x00"
            if any(all(seconds(run, text) > LINEAR for _ in range(3)) for run in runs):
                return before, piece, length
    return None


@pytest.mark.timed
def test_every_pattern_is_linear():
    found = patterns()
    assert len(found) > 150
    assert {where: hit for where, pattern, scans in found if (hit := slow(pattern, scans))} == {}


@pytest.mark.parametrize("pattern", [r"(?:\s*'+)*\(", r"\s*\Z", r"\A0+(?=\d+\Z)"])
def test_a_slow_pattern_is_found(pattern):
    assert slow(re.compile(pattern), True) is not None


HOSTILE = [
    "5 " + "word " * 40,
    "5 " + "ab " * 300,
    "\\text{ab}" * 100,
    "5\\text{ m}" * 90,
    "5" + " cm" * 300,
    "5" + "\\text{k}^2 " * 80,
    "m\\angle x" + "'" * 900,
    "x_{a}" * 190,
    "5 where " * 120,
    "," * 950,
    "final answer " * 70,
    "a, " * 300,
    "1 or " * 190,
    "\\frac{" * 160,
    "five hundred " * 70,
    "=" * 900,
]


@pytest.mark.timed
@pytest.mark.parametrize("answer", HOSTILE)
@pytest.mark.parametrize("gold", ["5", "5 cm", "(1,2)", "\\text{east}"])
def test_hostile_answers_cost_little(answer, gold):
    grade("\\boxed{5}", "5")  # imports are not counted
    assert seconds(lambda text: grade(f"\\boxed{{{text}}}", gold), answer) < 0.5
