"""The grader of programs: references, what is read of a response, comparison, verdicts."""

import json
import math
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from decimal import Decimal
from fractions import Fraction

import pytest

from reward import VerifierPool
from reward.domains.code import CodeDomain, program_in
from reward.sandbox import ways
from reward.sandbox.compare import same_output, same_result
from reward.sandbox.encoding import decode, encode
from reward.sandbox.ways import way_of
from reward.verdict import GradingPolicy
from tests.reward.programs import ADD, SUM, fenced
from tests.reward.test_sandbox import needs_sandbox

CODE = CodeDomain()


def graded(program, policy=None, **gold):
    return CODE(fenced(program), json.dumps(gold), policy or GradingPolicy())


# -- what is read ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("```python\nx = 1\n```", "x = 1\n"),
        ("First:\n```python\nx = 1\n```\nBetter:\n```py\nx = 2\n```\nDone.", "x = 2\n"),
        ("```python\nx = 1\n```\nIt prints\n```text\n1\n```", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("~~~python3\nx = 1\n~~~", "x = 1\n"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n"),
        ("  ```python\n  x = 1\n  ```", "  x = 1\n"),
        ("```python title='a.py'\nx = 1\n````", "x = 1\n"),
        ("```python\nx = 1\n~~~\n```", "x = 1\n~~~\n"),
        ("Use `x` and ```y```.\n```python\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1\n```\n```python\nx = 2", "x = 1\n"),
        ("x = 1\nprint(x)", "x = 1\nprint(x)"),
        ("The answer is in my head.", None),
        ("```python\nx = 1", None),
        ("```text\nx = 1\n```", None),
        ("```javascript\nlet x = 1\n```", None),
        ("(" * 5000, None),
        ("\x00", None),
    ],
)
def test_the_program_is_the_last_fenced_block_of_python(response, program):
    assert program_in(response) == program


@needs_sandbox
def test_no_program_is_read_in_a_thought():
    gold = json.dumps({"runs": [{"input": "", "output": "1"}]})
    right = fenced("print(1)")
    assert CODE(f"<think>Hm.</think>{right}", gold).correct
    for response in (f"<think>{right}</think>I give up.", f"<think>{right}"):
        assert CODE(response, gold).status == "no_answer"
    assert not CODE(f"<think>{right}</think>{fenced('print(2)')}", gold).correct


# -- references ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "says"),
    [
        ("x", "no JSON object"),
        ({}, "no tests"),
        ({"runs": []}, "no tests"),
        ({"runs": [{"input": "1"}]}, "lacks 'output'"),
        ({"runs": [{"input": 1, "output": "1"}]}, "are texts"),
        ({"runs": {"input": "1"}}, "no list of objects"),
        ({"runs": [{"input": "", "output": "", "name": "a"}]}, "has 'name'"),
        ({"calls": [{"function": "f(", "args": [], "result": 1}]}, "no name"),
        ({"calls": [{"function": "f", "args": 1, "result": 1}]}, "are a list"),
        ({"assertions": ["assert f("]}, "no Python"),
        ({"assertions": ["assert sum([1]) == 1"]}, "no function of the program"),
        ({"assertions": [1]}, "are texts"),
        ({"assertions": 1}, "a text or a list"),
        ({"assertions": ["assert f()"], "entry": "1f"}, "no name"),
        ({"assertions": ["assert f()"], "seconds": "long"}, "numbers"),
        ({"assertions": ["assert f()"], "seconds": 0}, "seconds"),
        ({"assertions": ["assert f()"], "memory_mib": 1}, "memory_mib"),
        ({"assert": ["assert f()"]}, "has 'assert'"),
    ],
)
def test_a_faulty_reference_is_named(gold, says):
    text = gold if isinstance(gold, str) else json.dumps(gold)
    assert says in CODE.check(text)
    assert CODE(fenced(ADD), text).status == "unparsable_gold"


def test_names_of_the_tests_own_are_not_the_programs():
    text = (
        "import math\nfrom os import path as p\n"
        "def helper(x):\n    y = x\n    return y\n"
        "for i in range(3):\n    assert math.floor(f(i)) == helper(i)\n"
        "try:\n    g()\nexcept ValueError as e:\n    assert str(e) and string.digits and p\n"
        "assert bisect([1], 2)"
    )
    checks = CODE.reference(json.dumps({"assertions": text})).checks
    assert sorted(checks.names) == ["bisect", "f", "g"]
    assert checks.modules == ("string",)


# -- verdicts --------------------------------------------------------------------------------------


@needs_sandbox
def test_the_credit_is_the_share_of_tests_and_the_reason_names_the_first_that_failed():
    runs = [{"input": f"{n} 1", "output": str(n + 1)} for n in range(4)]
    assert graded(SUM, runs=runs).correct
    partly = graded("n = int(input().split()[0])\nprint(n + 1 if n < 2 else 77)", runs=runs)
    assert (partly.correct, partly.credit) == (False, 0.5)
    assert partly.reason == "2 of 4 tests; run 3: another output"
    calls = [{"function": "add", "args": [1, 2], "result": r} for r in (3, 4)]
    assert graded(ADD, calls=calls).reason == "1 of 2 tests; call 2: another result"
    both = graded(ADD + SUM, calls=calls[:1], runs=runs)
    assert "EOFError" in both.reason  # loaded without an input, it reads one
    guarded = ADD + "if __name__ == '__main__':\n    " + SUM
    assert graded(guarded, calls=calls[:1], runs=runs, assertions="assert add(1, 1) == 2").correct


@needs_sandbox
def test_no_reason_tells_what_was_expected():
    for gold in (
        {"runs": [{"input": "1 2", "output": "73519"}]},
        {"calls": [{"function": "add", "args": [1, 2], "result": 73519}]},
        {"assertions": ["assert add(1, 2) == 73519, 'not 73519'"]},
        {"assertions": "def check(f):\n    assert f(1, 2) == 73519, 73519", "entry": "add"},
    ):
        verdict = graded(ADD + "if __name__ == '__main__':\n    " + SUM, **gold)
        assert not verdict.correct
        assert "73519" not in repr(verdict)


@needs_sandbox
def test_after_a_test_that_was_stopped_no_other_is_tried():
    slow = "while input() == '1':\n    pass\nprint(2)"
    runs = [{"input": word, "output": "2"} for word in ("2", "1\n1\n1", "2", "2")]
    spin = graded("while input() == '1':\n    while True:\n        pass\nprint(2)", runs=runs,
                  seconds=0.5)  # fmt: skip
    assert spin.reason.startswith("1 of 4 tests; run 2: no end within 0.5 s")
    assert "EOFError" in graded(slow, runs=runs[1:]).reason
    spinning = "def f(x):\n    while x:\n        pass\n    return x\n"
    calls = [{"function": "f", "args": [x], "result": x} for x in (0, 1, 0)]
    assert graded(spinning, calls=calls, seconds=0.5).credit == 1 / 3
    tests = ["assert f(0) == 0", "assert f(1)", "assert f(0) == 0"]
    assert graded(spinning, assertions=tests, seconds=0.5).credit == 1 / 3


@needs_sandbox
@pytest.mark.parametrize(
    ("program", "tests"),
    [
        ("def f(a):\n    a.sort()\n", "a = [2, 1]\nf(a)\nassert a == [1, 2]"),
        ("def f(d):\n    d['x'] = (1,)\n", "d = {}\nassert f(d) is None\nassert d == {'x': (1,)}"),
        ("def f(n):\n    yield from range(n)\n", "assert list(f(3)) == [0, 1, 2]"),
        ("def f():\n    while True:\n        yield 1\n", "assert next(f()) == 1"),
        ("def f(x):\n    raise KeyError(x)\n",
         "try:\n    f(1)\nexcept KeyError:\n    pass\nelse:\n    assert False"),
        ("class E(ValueError):\n    pass\ndef f():\n    raise E\n",
         "try:\n    f()\nexcept ValueError:\n    pass\nelse:\n    assert False"),
        ("def f():\n    return {1: {2}, (3,): b'4', None: 5j}\n",
         "assert f() == {1: {2}, (3,): b'4', None: 5j}"),
        ("def f():\n    return (1, [2])\n", "assert f() == (1, [2])\nassert type(f()) is tuple"),
        ("def f(x, *, y):\n    return x - y\n", "assert f(3, y=1) == 2"),
        ("class P:\n    def __init__(self, x):\n        self.x = x\n"
         "    def __eq__(self, o):\n        return self.x == o.x\n"
         "    def __len__(self):\n        return self.x\n"
         "    def __str__(self):\n        return 'P'\n",
         "p = P(3)\nassert p.x == 3 and len(p) == 3 and str(p) == 'P' and p == P(3)\n"
         "p.x = 4\nassert p.x == 4 and p != P(3)"),
        ("class N:\n    def __init__(self, n=None):\n        self.n = n\n"
         "def f(n):\n    return 0 if n is None else 1 + f(n.n)\n",
         "assert f(N(N())) == 2"),
        ("from collections import Counter\ndef f(s):\n    return Counter(s)\n",
         "assert f('aab') == {'a': 2, 'b': 1}"),
        ("from fractions import Fraction\ndef f():\n    return Fraction(1, 3)\n",
         "from fractions import Fraction\nassert f() == Fraction(1, 3)"),
        ("def f():\n    return 2 ** 5000\n", "assert f() == 2 ** 5000"),
        ("def f():\n    return float('inf')\n", "assert math.isinf(f())"),
    ],
)  # fmt: skip
def test_honest_assertions_hold_across_processes(program, tests):
    verdict = graded(program, assertions=tests)
    assert verdict.correct, verdict.reason


@needs_sandbox
def test_tests_may_have_a_setup_and_forget_imports():
    gold = {"setup": "def twice(x):\n    return 2 * x\n", "assertions": ["assert f(3) == twice(3)",
            "assert math.isclose(f(0.5), 1)"]}  # fmt: skip
    assert graded("def f(x):\n    return x + x\n", **gold).correct
    broken = graded("def f(x):\n    return 6\n", setup="1 / 0", assertions=["assert f(3) == 6"])
    assert broken.reason.endswith("the tests came to an end before their last")


@needs_sandbox
def test_a_pool_runs_programs_and_counts_its_timeouts():
    gold = json.dumps({"runs": [{"input": "1 2", "output": "3"}], "seconds": 30})
    with VerifierPool(workers=1, timeout=2, grader="code") as pool:
        right, wrong, endless = pool.grade_many(
            [(fenced(text), gold) for text in (SUM, "print(4)", "while True:\n    pass")]
        )
        again = pool.submit(fenced(SUM), gold).result()
        bad = pool.check_golds([gold, "{}"])
    assert (right.correct, wrong.correct, again.correct) == (True, False, True)
    assert (endless.correct, endless.status) == (False, "timeout")
    assert [index for index, _ in bad] == [1]


def test_without_a_sandbox_nothing_runs_and_the_verdict_says_why(monkeypatch):
    monkeypatch.setattr(ways, "_fault", lambda way: "not here")
    way_of.cache_clear()
    try:
        verdict = graded(SUM, runs=[{"input": "1 2", "output": "3"}])
        assert (verdict.correct, verdict.status) == (False, "error")
        assert "none_i_trust_the_code" in verdict.reason
        trusting = GradingPolicy(sandbox="none_i_trust_the_code")
        assert graded(SUM, trusting, runs=[{"input": "1 2", "output": "3"}]).correct
    finally:
        way_of.cache_clear()


# -- comparison ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        ("1 2\n3\n", "1 2\n3"), ("1  2 \n3\n\n", "1 2\n3"), ("a\r\nb", "a\nb"), ("", "\n"),
        ("0.3333333", "0.33333333"), ("1e3", "1000.0"), ("2", "2.0"), ("1.0000001e-9", "0.0"),
    ],
)  # fmt: skip
def test_outputs_that_are_the_same(got, expected):
    assert same_output(got, expected)


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        ("", "1"), ("1 2 3", "1 2\n3"), ("1\n\n2", "1\n2"), ("2.0", "2"), ("0.34", "0.33"),
        ("Yes", "YES"), ("nan", "0.5"), ("inf", "1e400"), ("1000001", "1000000"), ("1 2", "12"),
        ("3\n4", "3"), ("9" * 5000, "1.0"), ("0x1", "1.0"), ("1_0.0", "10.0"), ("1e99999", "1.5"),
    ],
)  # fmt: skip
def test_outputs_that_are_not(got, expected):
    assert not same_output(got, expected)


@pytest.mark.parametrize(
    ("got", "expected", "same"),
    [
        (3, 3, True), (3.0, 3, True), (True, 1, False), (1, True, False), (None, None, True),
        ((1, 2), [1, 2], True), ({1: "a"}, {"1": "a"}, True), ({1: 2, "1": 2}, {"1": 2}, False),
        ({1, 2}, [1, 2], False), ("a", "a", True), (b"a", "a", False), ("3", 3, False),
        (0.1 + 0.2, 0.3, True), (0.31, 0.3, False), (math.nan, 0.3, False), (10**400, 0.5, False),
        ([1, [2]], [1, [3]], False), ([], {}, False), (0, None, False), (0, "", False),
        (Fraction(1, 2), 0.5, False), ({"a": [1.0]}, {"a": [1]}, True),
    ],
)  # fmt: skip
def test_results_are_compared_as_json_values(got, expected, same):
    assert same_result(got, expected) is same


Point = namedtuple("Point", "x y")
VALUES = [
    None, True, 0, -1, 2**53, -(2**53) - 1, 10**5000, 1.5, -0.0, math.inf, "", "\ud800\x00", [], (),
    {}, set(), frozenset({1}), {1: [2]}, {(1, 2): None}, b"\x00\xff", bytearray(b"a"), 1 - 2j,
    range(3, 2**70, 2), Fraction(-1, 3), Decimal("1.20"), deque([1]), [[[(1, {2})]]], {"ref": 1},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_values_cross_as_they_are(value):
    there = decode(json.loads(json.dumps(encode(value))))
    assert there == value
    assert type(there) is type(value)
    assert value == 10**5000 or repr(there) == repr(value)


def test_subclasses_cross_as_what_they_are_subclasses_of():
    class Always(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    for value, plain in (
        (Point(1, 2), (1, 2)), (Counter("a"), {"a": 1}), (OrderedDict(a=1), {"a": 1}),
        (defaultdict(list, a=1), {"a": 1}), (Always(3), 3),
    ):  # fmt: skip
        there = decode(encode(value))
        assert type(there) is type(plain)
        assert there == plain
    assert decode(encode(Always(3))) != 4
    with pytest.raises(TypeError, match="type object"):
        encode(object())
    assert encode([object()], lambda value: 7) == [{"ref": 7}]


@pytest.mark.parametrize(
    "data",
    [
        {}, {"a": 1, "b": 2}, {"eval": "1"}, {"int": 1}, {"int": "x"}, {"dict": [1]},
        {"dict": [[[], 1]]}, {"set": [[]]}, {"tuple": 1}, {"bytes": "zz"}, {"fraction": ["1", "0"]},
        {"ref": 0}, {"complex": ["1"]}, {"decimal": "x"}, {"range": ["1", "2", "0"]},
        {"list": [{"x": 1}]}, {"float": []},
    ],
)  # fmt: skip
def test_what_nothing_encodes_is_refused(data):
    with pytest.raises(ValueError, match=r"protocol|invalid|could not|non-hex|must not"):
        decode(data)


def test_values_that_are_nested_too_deeply_are_refused():
    deep = []
    for _ in range(500):
        deep = [deep]
    for function in (encode, decode):
        with pytest.raises(ValueError, match="nested"):
            function(deep)
