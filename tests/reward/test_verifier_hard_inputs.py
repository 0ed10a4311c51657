"""Inputs that hang, bloat or confuse graders: every one is over quickly and harms no other."""

import asyncio
import json
import os
import random
import signal
import threading
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reward import VerifierPool, grade
from reward.command import grade_file
from tests.reward import hostile

LIMIT = 2.0  # seconds for the alarm of a worker
SLACK = 1.5  # seconds for the kill behind it, on a busy machine

GEOMETRIC = "+".join(f"x^{{{power}}}" for power in range(800))
HARD = {
    "tower": "10^{10^{10}}",
    "tower9": "9^{9^{9^{9}}}",
    "power": "9^{387420489}",
    "power2": "2^{10^{9}}",
    "factorial": "1000000!",
    "factorials": "((10!)!)!",
    "factorials2": "3!!!!!!!!",
    "binomial": r"\binom{10^{9}}{5\cdot10^{8}}",
    "sum": r"\sum_{k=1}^{10^9}k^k",
    "product": r"\prod_{k=1}^{10^7}k",
    "integral": r"\int_0^\infty \frac{\sin(x^x)}{x^x+1} dx",
    "polynomial": "(x+1)^{1000}",
    "polynomial5": "(a+b+c+d+e)^{60}",
    "geometric": rf"\frac{{x^{{800}}-1}}{{x-1}}-({GEOMETRIC})",
    "parentheses": "(" * 2000 + "3" + ")" * 2000,
    "braces": "{" * 5000 + "3" + "}" * 5000,
    "few-parentheses": "(" * 400 + "3" + ")" * 400,
    "sines": r"\sin(" * 100 + "x" + ")" * 100,
    "logarithms": r"\log(" * 60 + "x" + ")" * 60,
    "gcd": r"\gcd(10^{10^7},3)",
    "set": r"\{" + ",".join(f"x_{{{i}}}" for i in range(2000)) + r"\}",
    "set-short": r"\{" + ",".join(f"x_{{{i}}}" for i in range(140)) + r"\}",
    "fractions": r"\frac{1}{1+" * 70 + "3" + "}" * 70,
    "roots": r"\sqrt{" * 140 + "3" + "}" * 140,
    "long-decimal": "3." + "0" * 20_000 + "1",
    "digits": "1" * 50_000,
    "numbers": "3 " * 50_000,
    "sum-long": "1+" * 450 + "1",
    "matrix": r"\begin{pmatrix}" + r"\\".join(["&".join("1" * 20)] * 20) + r"\end{pmatrix}",
    "modulus": r"7^{7^{7^7}} \bmod 10",
    "backslashes": "\\" * 20_000,
    "dollars": "$" * 20_000,
    "spaces": " " * 100_000 + "3",
    "boxes": r"\boxed{" * 3000,
    "minus": "-" * 900 + "x",
    "plus-minus": r"\pm" * 300,
    "double-signs": ",".join([r"\pm1"] * 150),
    "bars": "|" * 900,
    "inequality": "x^{7}+x^{5}-x^{3}>x",
    "relations": "x=" * 300 + "y",
    "unions": r"\cup".join(f"({i},{i + 1})" for i in range(90)),
    "root-order": r"\sqrt[1000000]{2}",
    "exponent": "1e99999",
    "repeating": "0." + "3" * 200 + "(1)",
    "unclosed-text": r"\text{" * 200,
    "right-to-left": "\u202e3\u202c\u200b" * 200,
    "binary": "".join(map(chr, range(256))),
    "surrogates": "\ud800\udfff" * 200,
}
GOLDS = ("3", r"\sqrt{2}", "x^2+1", "(1,2)", r"\text{east}", r"[0,1)\cup(2,3)", "1,2,3", "x=3")


@pytest.fixture(scope="module")
def pool():
    with VerifierPool(workers=2, timeout=LIMIT) as running:
        yield running


@pytest.mark.timed
@pytest.mark.parametrize("name", HARD)
def test_no_hard_input_outlasts_its_limit_or_is_right(pool, name):
    answer = HARD[name]
    for gold in GOLDS:
        began = time.monotonic()
        verdict = pool.submit(f"so \\boxed{{{answer}}}", gold).result(timeout=60)
        assert time.monotonic() - began < LIMIT + SLACK
        assert not verdict.correct or gold in ("3", "x=3")
        assert verdict.status in ("ok", "no_answer", "unparsable_pred", "timeout")
    assert pool.submit("\\boxed{3}", "3").result(timeout=30).correct


@pytest.mark.timed
@pytest.mark.parametrize("name", HARD)
def test_hard_references_do_not_hang_either(pool, name):
    began = time.monotonic()
    pool.submit("so \\boxed{3}", HARD[name]).result(timeout=60)
    pool.submit("so \\boxed{\\int_0^1 x dx}", HARD[name]).result(timeout=60)
    assert time.monotonic() - began < 2 * (LIMIT + SLACK)


def test_hard_inputs_cost_their_neighbours_nothing(pool):
    pairs = []
    for answer in HARD.values():
        pairs += [(f"\\boxed{{{answer}}}", "77"), ("\\boxed{\\frac{1}{2}}", "0.5")]
    grades = pool.grade_many(pairs)
    assert len(grades) == len(pairs)
    assert all(verdict.correct for verdict in grades[1::2])
    assert not any(verdict.correct for verdict in grades[::2])


@pytest.mark.timed
def test_ten_megabytes_of_anything(pool):
    for response in ("{" * 10_000_000, "\\boxed{3}" * 1_000_000, "x" * 10_000_000 + "\\boxed{3}"):
        began = time.monotonic()
        verdict = pool.submit(response, "3").result(timeout=60)
        assert time.monotonic() - began < LIMIT + SLACK
        assert verdict.correct == response.endswith("}")


# -- random LaTeX ------------------------------------------------------------------------------

PIECES = [
    "1", "2", "3", "10", "0.5", "x", "y", "n", "\\pi", "\\frac", "{", "}", "(", ")", "[", "]",
    "\\{", "\\}", "^", "_", "+", "-", "*", "/", "=", "<", ">", "\\le", ",", ";", " and ", " or ",
    "\\sqrt", "\\sin", "\\log", "\\text{cm}", "\\text{", "%", "\\%", "°", "^\\circ", "!", "|",
    "\\pm", "\\cup", "\\infty", "\\in", "\\begin{pmatrix}", "\\end{pmatrix}", "&", "\\\\",
    "\\boxed{", "$", "\\int", "\\sum", "\\ldots", "\\binom", "\\overline", "'", "e", "i", "E",
    "10^{9}", "\\mathbb{R}", "\\setminus", "\\left", "\\right", ".", ":", " ", "\\approx",
    "\\mathrm{d}", "x^2", "9^{9^9}", "\\foo", "a_1", "th", "east", "\\mid", "½", "∞", "\u202e",
    "\x00", "\ud800", "\\gcd(", "\\min", "f(", "\\begin{cases}", "\\end{cases}", "\\neq", "\n",
    "</think>", "<think>", "Answer:", "\\vec{", "\\lim_{x\\to0}", "\\begin{array}{c}", "１", "²",
]  # fmt: skip
LATEX = st.lists(st.sampled_from(PIECES), max_size=25).map("".join) | st.text(max_size=60)


@pytest.mark.timed
@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(LATEX, st.sampled_from(GOLDS) | LATEX)
def test_random_latex_gets_a_verdict_within_the_limit(pool, answer, gold):
    began = time.monotonic()
    verdict = pool.submit_pair(answer, gold).result(timeout=60)
    assert time.monotonic() - began < LIMIT + SLACK
    assert verdict.status not in ("crash", "error"), verdict


@pytest.mark.timed
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_thousand_random_answers_lose_no_slot():
    generator = random.Random(20_000)

    def piece() -> str:
        count = generator.randint(1, 25)
        return "".join(generator.choice(PIECES) for _ in range(count))

    pairs = [(piece(), generator.choice([*GOLDS, piece()])) for _ in range(20_000)]
    seconds, statuses = [], Counter()
    with VerifierPool(workers=2, timeout=LIMIT) as pool:
        window = deque()
        for pair in pairs:
            window.append((time.monotonic(), pool.submit_pair(*pair)))
            if len(window) == pool.workers:  # each begins at once, so its time is its own
                began, future = window.popleft()
                statuses[future.result(timeout=60).status] += 1
                seconds.append(time.monotonic() - began)
        statuses[window.popleft()[1].result(timeout=60).status] += 1
        counters = pool.counters
        after = pool.grade_many([(f"\\boxed{{{n}}}", str(n)) for n in range(100)])
    assert sum(statuses.values()) == counters["graded"] == 20_000
    assert counters["errors"] == counters["crashes"] == 0
    assert counters["timeouts"] <= 5
    assert max(seconds) < 2 * (LIMIT + SLACK)  # its own limit, and its neighbour's before it
    assert all(verdict.correct for verdict in after)


# -- the same verdict from anywhere ------------------------------------------------------------

SAMPLE = [
    ("\\boxed{\\frac{1}{2}}", "0.5"),
    ("\\boxed{x+1}", "1+x"),
    ("\\boxed{(1,2)}", "(2,1)"),
    ("\\boxed{|z|<1}", "|z|<1"),
    ("\\boxed{\\vec{a}\\times\\vec{b}}", "\\vec{a}\\times\\vec{b}"),
    ("\\boxed{\\int_0^1 x dx}", "\\frac12"),
    ("\\boxed{\\begin{pmatrix}1\\\\2\\end{pmatrix}}", "(1,2)"),
    ("\\boxed{\\|v\\|}", "\\|w\\|"),
    ("no box", "3"),
]


def outcomes(grades):
    return [(verdict.correct, verdict.extracted, verdict.path) for verdict in grades]


@pytest.fixture(scope="module")
def expected():
    return outcomes(grade(*pair) for pair in SAMPLE)


def test_from_a_pool(pool, expected):
    assert outcomes(pool.grade_many(SAMPLE)) == expected


def test_from_a_thread(pool, expected):
    with ThreadPoolExecutor(2) as threads:
        direct = [threads.submit(grade, *pair) for pair in SAMPLE]
        assert outcomes(future.result(timeout=60) for future in direct) == expected
        pooled = threads.submit(pool.grade_many, SAMPLE)
        assert outcomes(pooled.result(timeout=60)) == expected


def test_from_coroutines(pool, expected):
    async def work():
        direct = await asyncio.gather(*(asyncio.to_thread(grade, *pair) for pair in SAMPLE))
        pooled = await asyncio.gather(*(pool.grade_async(*pair) for pair in SAMPLE))
        return direct, pooled

    direct, pooled = asyncio.run(work())
    assert outcomes(direct) == outcomes(pooled) == expected


def test_from_a_process_forked_late(pool, expected):
    lock = threading.Lock()
    with lock:  # a fork while other threads of this process run
        read, write = os.pipe()
        child = os.fork()
    if child == 0:
        with VerifierPool(timeout=LIMIT) as own:
            same = outcomes(own.grade_many(SAMPLE)) == expected
        same = same and outcomes(pool.grade_many(SAMPLE)) == expected
        same = same and outcomes(grade(*pair) for pair in SAMPLE) == expected
        pool.close()
        os.write(write, b"y" if same else b"n")
        os._exit(0)
    os.close(write)
    assert os.read(read, 1) == b"y"
    os.close(read)
    os.waitpid(child, 0)


def test_an_alarm_of_the_caller_is_left_alone():
    rang = []
    previous = signal.signal(signal.SIGALRM, lambda *_: rang.append(True))
    signal.setitimer(signal.ITIMER_REAL, 100)
    try:
        for pair in SAMPLE:
            grade(*pair)
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 50
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert not rang


def test_a_cancelled_request_leaves_the_pool_working(pool):
    async def work():
        tasks = [asyncio.create_task(pool.grade_async("\\boxed{3}", "3")) for _ in range(50)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(work())
    assert all(result.correct for result in results[1::2])
    assert pool.submit("\\boxed{3}", "3").result(timeout=30).correct


def test_the_same_file_gives_the_same_verdicts_with_any_number_of_workers(tmp_path):
    rows = tmp_path / "rows.jsonl"
    lines = [{"response": f"\\boxed{{{n}}}", "gold": str(n % 7)} for n in range(14)]
    rows.write_text("\n".join(map(json.dumps, lines)))
    outputs = []
    for workers in (1, 2):
        out = tmp_path / f"out{workers}.jsonl"
        grade_file(rows, out, workers=workers, echo=lambda text: None)
        outputs.append(out.read_text())
    assert outputs[0] == outputs[1]


def test_strings_made_to_hang_it_end_without_an_error():
    """A sample of `python -m tests.reward.hostile`."""
    times = hostile.measure(hostile.cases(280, seed=7))
    assert not [row for row in times if row[3] not in ("", "Expired")]
    assert sum(row[3] == "Expired" for row in times) <= 3  # two long formulas, symbolic


def test_percent_signs_do_not_nest():
    assert not grade(f"\\boxed{{{'%' * 900}}}", "5").correct
    assert not grade("\\boxed{5%%}", "5").correct


def test_a_command_glued_to_a_name_is_not_given_to_the_library():
    answer, gold = (r"\lfloor\frac{t}{59}\rfloorv^{9}" * 3, r"\lfloor\frac{t}{58}\rfloorv^{9}")
    verdict = grade(f"\\boxed{{{answer}}}", gold)
    assert (verdict.correct, verdict.status) == (False, "unparsable_pred")
