"""Domains beside mathematics: what each accepts and refuses, and which references are faulty."""

import ast
import json
from importlib import util
from pathlib import Path

import pytest

from reward import VerifierPool
from reward.domains import DOMAINS, FILES
from reward.domains.gym import EXECUTES_ANSWERS
from reward.domains.instructions import INSTRUCTIONS, count_sentences
from reward.graders import checker_by_name, grader_by_name, pair_grader_by_name
from reward.verdict import Grade, GradingPolicy

COLOURS = {"answer": "B", "choices": ["red", "green", "the colour blue", "1/2", "0.25"]}


def graded(domain: str, answer: str, gold: object) -> Grade:
    text = gold if isinstance(gold, str) else json.dumps(gold)
    return DOMAINS[domain](f"So.\n<answer>{answer}</answer>", text)


def whole(domain: str, response: str, gold: object) -> Grade:
    return DOMAINS[domain](response, gold if isinstance(gold, str) else json.dumps(gold))


# -- choice ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    ["B", "(B)", "b)", "B.", "**B**", r"\text{B}", "B) green", "green", "The answer is B",
     "option B", "B: green", "Green.", "[B]", "B - green"],
)  # fmt: skip
def test_a_choice_is_its_letter_or_its_text(said):
    assert graded("choice", said, COLOURS).correct


@pytest.mark.parametrize(
    "said",
    ["A", "B) red", "A) green", "A or B", "A, B", "red", "not B", "B is wrong", "", "BC", "B and C",
     "the first", "I would say any", "F", "B) green or red"],
)  # fmt: skip
def test_another_or_no_single_choice_is_wrong(said):
    assert not graded("choice", said, COLOURS).correct


def test_choices_may_be_values_and_are_named_by_position_letter_or_text():
    assert graded("choice", "0.5", COLOURS | {"answer": "D"}).correct
    assert graded("choice", r"$\frac{1}{2}$", COLOURS | {"answer": 3}).correct
    assert graded("choice", "blue colour", COLOURS | {"answer": "the colour blue"}).correct is False
    assert graded("choice", "C", COLOURS | {"answer": "the colour blue"}).correct
    assert graded("choice", "0.25", COLOURS | {"answer": "D"}).correct is False


def test_several_choices_are_a_set():
    gold = {"answer": ["A", "C"]}
    assert all(graded("choice", said, gold).correct for said in ("AC", "A, C", "C and A", "A; C"))
    assert not any(graded("choice", said, gold).correct for said in ("A", "ABC", "AA", "A or C"))


def test_without_the_texts_what_stands_behind_a_letter_is_read_for_contradictions():
    assert graded("choice", "B) 12 metres", "B").correct
    assert graded("choice", "K", "K").correct
    for said in ("B or C", "B) not", "B, C", "B is incorrect", "B) and (C)"):
        assert not graded("choice", said, "B").correct, said


# -- text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "gold", "score", "correct"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1, True),
        ("Tower Eiffel", "eiffel tower", 1, False),
        ("the tall Eiffel Tower", "Eiffel Tower", 0.8, False),
        ("London", ["Paris", "London, England"], 2 / 3, False),
        ("London", ["Paris", "London"], 1, True),
        ("no idea", "Paris", 0, False),
        ("a a a a Paris", "Paris", 1, True),
        ("unanswerable", [], 1, True),
        ("Paris Paris Paris", "Paris", 0.5, False),
    ],
)
def test_texts_as_squad_scores_them(said, gold, score, correct):
    verdict = graded("text", said, gold)
    assert (verdict.score, verdict.correct) == (pytest.approx(score), correct)


AVOGADRO = {"value": 6.022e23, "unit": "1/mol", "relative": 1e-3}

# -- quantity --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "gold", "correct"),
    [
        ("9.81 m/s^2", "9.81 m/s^2", True),
        (r"9.81\,\text{m/s}^2", "9.81 m/s^2", True),
        ("981 cm/s²", "9.81 m/s^2", True),
        ("9.81", "9.81 m/s^2", False),
        ("9.81 m/s", "9.81 m/s^2", False),
        ("9.81 gobbles", "9.81 m/s^2", False),
        ("9.81 m/s^2", "9.81", False),
        ("9.9 m/s^2", {"value": 9.81, "unit": "m/s^2", "relative": 0.01}, True),
        ("10 m/s^2", {"value": 9.81, "unit": "m/s^2", "relative": 0.01}, False),
        ("10.3", {"value": 10, "absolute": 0.3}, True),
        ("10.31", {"value": 10, "absolute": 0.3}, False),
        ("25 °C", "298.15 K", True),
        ("25 °C", {"value": 77, "unit": "degF"}, True),
        ("50%", "0.5", True),
        (r"50\%", "0.5", True),
        ("50", "0.5", False),
        (r"6.02 \times 10^{23} 1/mol", AVOGADRO, True),
        ("6.02e23 mol^-1", AVOGADRO, True),
        (r"\frac{1}{2} km", "500 m", True),
        ("1,500 g", "1.5 kg", True),
        ("12 or 13", {"value": 12}, False),
        ("12 m 13 m", {"value": 12, "unit": "m"}, False),
        ("nan", {"value": 12}, False),
        ("inf", {"value": 12, "relative": 1e9}, False),
        ("5", {"value": 5, "unit": "m", "unit_required": False}, True),
        ("5 m**99999", {"value": 5, "unit": "m"}, False),
        ("60 miles per hour", "88 ft/s", True),
    ],
)  # fmt: skip
def test_quantities_have_tolerances_and_units(said, gold, correct):
    assert graded("quantity", said, gold).correct is correct


# -- JSON and patterns -----------------------------------------------------------------------------

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("response", "correct"),
    [
        ('{"name": "Ada", "age": 36}', True),
        ('Here:\n```json\n{"name": "Ada"}\n```\n', True),
        ('<think>{"a": 1}</think>{"name": "Ada"}', True),
        ('<answer>{"name": "Ada"}</answer>', True),
        ('{"name": "Ada", "age": -1}', False),
        ('{"name": 1}', False),
        ('{"name": "Ada", "age": NaN}', False),
        ('{"name": "Ada", "name": "Eve"}', False),
        ('{"name": "Ada"} and more', False),
        ('{"name": "Ada"', False),
        ("[" * 100_000, False),
        ('```json\n{"name": "Ada"}\n```\n```json\n{"nom": "Ada"}\n```', False),
    ],
)
def test_json_has_to_fit_its_schema(response, correct):
    assert whole("json_schema", response, PERSON).correct is correct


def test_the_value_may_be_known_and_true_is_not_one():
    gold = {"schema": {"type": "array"}, "equals": [1, {"a": True}]}
    assert whole("json_schema", '[1.0, {"a": true}]', gold).correct
    assert not whole("json_schema", '[1, {"a": 1}]', gold).correct
    assert not whole("json_schema", '[true, {"a": true}]', gold).correct


@pytest.mark.parametrize(
    ("response", "gold", "correct"),
    [
        ("<answer>2024-02-29</answer>", r"\d{4}-\d\d-\d\d", True),
        ("<answer>on 2024-02-29</answer>", r"\d{4}-\d\d-\d\d", False),
        ("2024-02-29", r"\d{4}-\d\d-\d\d", False),
        ("we met", {"pattern": "MET", "match": "search", "on": "response", "flags": "i"}, True),
        ("we met", {"pattern": "met", "match": "search", "on": "response", "absent": True}, False),
        ("<think>met</think>no", {"pattern": "met", "match": "search", "on": "response",
                                  "absent": True}, True),
        ("[7]", {"pattern": "[7]", "on": "response"}, False),
    ],
)  # fmt: skip
def test_patterns(response, gold, correct):
    assert whole("pattern", response, gold).correct is correct


# -- puzzles ---------------------------------------------------------------------------------------

SOLVED = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"


@pytest.mark.parametrize(
    ("domain", "said", "gold", "correct"),
    [
        ("sorting", "1, 2, 2, 10", {"items": [10, 2, 1, 2]}, True),
        ("sorting", "[10, 2, 2, 1]", {"items": [10, 2, 1, 2], "order": "descending"}, True),
        ("sorting", "1, 2, 10", {"items": [10, 2, 1, 2]}, False),
        ("sorting", "1 10 2 2", {"items": [10, 2, 1, 2]}, False),
        ("sorting", "apple, Pear, zoo", {"items": ["zoo", "apple", "Pear"]}, False),
        ("sorting", "Pear, apple, zoo", {"items": ["zoo", "apple", "Pear"]}, True),
        ("sorting", '["Pear", "apple", "zoo"]', {"items": ["zoo", "apple", "Pear"]}, True),
        ("sudoku", SOLVED, PUZZLE, True),
        ("sudoku", "\n".join(SOLVED[i : i + 9] for i in range(0, 81, 9)), PUZZLE, True),
        ("sudoku", SOLVED[::-1], PUZZLE, False),
        ("sudoku", SOLVED[:-1] + "8", {"puzzle": "." * 81}, False),
        ("sudoku", "123456789" * 9, {"puzzle": "." * 81}, False),
        ("sudoku", SOLVED[:80], PUZZLE, False),
        ("countdown", "25 + 3*7", {"numbers": [3, 7, 25], "target": 46}, True),
        ("countdown", r"25 + 3 \times 7 = 46", {"numbers": [3, 7, 25], "target": 46}, True),
        ("countdown", "3 * 7 + 25 = 47", {"numbers": [3, 7, 25], "target": 46}, False),
        ("countdown", "46", {"numbers": [3, 7, 25], "target": 46}, False),
        ("countdown", "23 * 2", {"numbers": [3, 7, 25], "target": 46}, False),
        ("countdown", "25 + 7 * 3 * 3 / 3", {"numbers": [3, 7, 25], "target": 46}, False),
        ("countdown", "25 + 7", {"numbers": [3, 7, 25], "target": 32}, False),
        ("countdown", "25 + 7", {"numbers": [3, 7, 25], "target": 32, "all": False}, True),
        ("countdown", "3!", {"numbers": [3], "target": 6}, False),
        ("countdown", "25/(3-3)", {"numbers": [3, 3, 25], "target": 6}, False),
        ("countdown", "__import__('os')", {"numbers": [3], "target": 3}, False),
        ("countdown", "257 + 3", {"numbers": [25, 7, 3], "target": 260}, False),
        ("n_queens", "1, 3, 0, 2", {"n": 4}, True),
        ("n_queens", ".Q..\n...Q\nQ...\n..Q.", {"n": 4, "queens": [[0, 1]]}, True),
        ("n_queens", "2, 0, 3, 1", {"n": 4, "queens": [[0, 1]]}, False),
        ("n_queens", "0, 1, 2, 3", {"n": 4}, False),
        ("n_queens", "1, 3, 0", {"n": 4}, False),
        ("n_queens", "Q...\n..Q.\n...Q\n.Q..", {"n": 4}, False),
    ],
)
def test_puzzles_are_checked_and_not_compared(domain, said, gold, correct):
    assert graded(domain, said, gold).correct is correct


# -- instructions ----------------------------------------------------------------------------------

ENGLISH = "This is a plain text in the English language about nothing much"
FOLLOWED = [
    ("keywords:existence", {"keywords": ["plain", "TEXT"]}, ENGLISH, "nothing"),
    ("keywords:frequency", {"keyword": "a", "frequency": 2, "relation": "less than"}, "a b", "a a"),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "concatenate", "A Cat."),
    ("keywords:letter_frequency", {"letter": "z", "let_frequency": 2, "let_relation": "at least"},
     "Zz", "z"),
    ("language:response_language", {"language": "de"},
     "Das ist ein ganz gewöhnlicher Satz auf Deutsch.", ENGLISH),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"},
     "One. Two!", "Dr. A. Smith came"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "one two",
     "one two three"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo", "one\n\ntwo"),
    ("length_constraints:nth_paragraph_first_word",
     {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"}, "one\n\n\"then, two",
     "then\n\nfour"),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] of [town]", "[a]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "x\nP.S. y", "x"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n* b\n* c"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "maybe"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**",
     "**a** **"),
    ("detectable_format:multiple_sections", {"section_spliter": "Part", "num_sections": 2},
     "Part 1\nx\nPart 2\ny", "Part one"),
    ("detectable_format:json_format", {}, "```json\n{\"a\": 1}\n```", "{a: 1}"),
    ("detectable_format:title", {}, "<<a title>>\nx", "<< >>"),
    ("combination:two_responses", {}, "one******two", "one******one"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "say it. it", "it"),
    ("startend:end_checker", {"end_phrase": "The End."}, "x. the end.", "The end. No"),
    ("startend:quotation", {}, "\"all\"", "\"all"),
    ("change_case:capital_word_frequency",
     {"capital_frequency": 2, "capital_relation": "at least"}, "NO I say", "no, NO"),
    ("change_case:english_capital", {}, ENGLISH.upper(), ENGLISH),
    ("change_case:english_lowercase", {}, ENGLISH.lower(), ENGLISH),
    ("punctuation:no_comma", {}, "no", "no, no"),
]  # fmt: skip


def asked(name, kwargs, **further):
    return {"instruction_id_list": [name], "kwargs": [kwargs], **further}


@pytest.mark.parametrize(("name", "kwargs", "good", "bad"), FOLLOWED, ids=lambda x: str(x)[:40])
def test_each_instruction_is_followed_or_not(name, kwargs, good, bad):
    assert whole("instructions", good, asked(name, kwargs)).correct
    assert not whole("instructions", bad, asked(name, kwargs)).correct
    assert not whole("instructions", "<think>" + good, asked(name, kwargs)).correct


def test_all_25_instructions_are_there_and_tested():
    assert {name for name, *_ in FOLLOWED} == set(INSTRUCTIONS)
    assert len(INSTRUCTIONS) == 25


def test_the_score_is_the_share_that_is_followed():
    gold = {
        "instruction_id_list": ["punctuation:no_comma", "startend:quotation"],
        "kwargs": [{}, {}],
    }
    verdict = whole("instructions", '"a, b"', gold)
    assert (verdict.score, verdict.correct) == (0.5, False)
    assert "punctuation:no_comma" in verdict.reason


def test_loose_leaves_out_the_first_or_last_line_and_asterisks():
    gold = asked("startend:quotation", {}, loose=True)
    assert whole("instructions", 'Sure!\n"so it is"', gold).correct
    assert whole("instructions", '*"so it is"*', gold).correct
    assert not whole("instructions", 'Sure!\n"so it is"', gold | {"loose": False}).correct


def test_sentences():
    assert count_sentences("One. Two? Three!") == 3
    assert count_sentences("Mr. A. Smith paid 3.50 e.g. for bread. He left") == 2
    assert count_sentences("...") == 0


# -- reasoning-gym ---------------------------------------------------------------------------------


def test_a_task_is_scored_by_its_own_scorer():
    import reasoning_gym

    entry = reasoning_gym.create_dataset("basic_arithmetic", size=1, seed=3)[0]
    gold = {"task": "basic_arithmetic", "entry": entry}
    assert graded("reasoning_gym", entry["answer"], gold).correct
    assert not graded("reasoning_gym", entry["answer"] + "1", gold).correct


def test_tasks_whose_scorer_executes_the_answer_are_refused():
    """The list is complete: no other scorer that is not on it calls what executes text."""
    spec = util.find_spec("reasoning_gym")
    assert spec is not None
    root = Path(spec.submodule_search_locations[0])
    executing = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name == "score_answer":
                for call in ast.walk(node):
                    called = isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[-1]
                    if called in ("eval", "exec", "parse_expr", "sympify"):
                        executing.add(path.stem)
    # Its eval reads the reference, which the generator wrote.
    assert executing - {"number_sorting"} == EXECUTES_ANSWERS
    entry = {"question": "", "answer": "", "metadata": {}}
    for task in EXECUTES_ANSWERS:
        assert "executes" in DOMAINS["reasoning_gym"].check(
            json.dumps({"task": task, "entry": entry})
        )


# -- what all have in common -----------------------------------------------------------------------

GOLDS = {
    "choice": COLOURS,
    "text": "Paris",
    "quantity": "5 m",
    "json_schema": PERSON,
    "pattern": "a+",
    "instructions": asked("punctuation:no_comma", {}),
    "sorting": {"items": [2, 1]},
    "sudoku": PUZZLE,
    "countdown": {"numbers": [1, 2], "target": 3},
    "n_queens": {"n": 4},
    "reasoning_gym": {
        "task": "letter_counting",
        "entry": {"question": "", "answer": "3", "metadata": {}},
    },
    "code": {"runs": [{"input": "", "output": "1"}]},
}  # fmt: skip


def test_every_domain_has_a_case_here():
    assert set(GOLDS) == set(FILES) == set(DOMAINS)


HOSTILE = ["", " ", "\x00", "\ud800", "{" * 5000, "a" * 300_000, "9" * 900, "[[[[", '"', "\\",
           "<answer></answer>", "<think>", "None", "null", "[]", "{}", "-0", "1e999"]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_hostile_answers_are_wrong_and_nothing_raises(name):
    gold = GOLDS[name] if isinstance(GOLDS[name], str) else json.dumps(GOLDS[name])
    domain = DOMAINS[name]
    assert domain.check(gold) is None
    answers = domain.part(domain.reference(gold)) == "answer"
    for text in HOSTILE:
        verdict = domain(f"<answer>{text}</answer>" if answers else f"{text},", gold)
        assert not verdict.correct, text
        assert not domain.pair(text + ",", gold).correct


@pytest.mark.parametrize(
    ("name", "gold"),
    [
        ("choice", ""), ("choice", "five"), ("choice", {"answer": "Z", "choices": ["a"]}),
        ("choice", {"answer": True, "choices": ["a", "b"]}), ("choice", {"choices": ["a"]}),
        ("choice", {"answer": "A", "choice": ["a"]}),
        ("text", ""), ("text", ["the"]), ("text", [1]),
        ("quantity", "many"), ("quantity", {"value": "5 gobbles"}), ("quantity", {"value": None}),
        ("quantity", {"value": 5, "relative": -1}), ("quantity", {"value": 5, "unit": "foo"}),
        ("quantity", {"value": 5, "absolute": True}),
        ("json_schema", "{"), ("json_schema", "[]"), ("json_schema", {"type": "nonsense"}),
        ("json_schema", {"$ref": "https://example.com/x.json"}),
        ("pattern", "("), ("pattern", ""), ("pattern", {"pattern": "a", "flags": "q"}),
        ("instructions", "x"), ("instructions", asked("no:such", {})),
        ("instructions", asked("keywords:existence", {})),
        ("instructions", asked("length_constraints:number_words",
                               {"num_words": 3, "relation": "exactly"})),
        ("sorting", {"items": []}), ("sorting", {"items": [1, "a"]}),
        ("sudoku", "123"), ("countdown", {"numbers": ["a"], "target": 1}),
        ("countdown", {"numbers": 5, "target": 1}), ("countdown", {"numbers": [5], "target": "1"}),
        ("n_queens", {"n": 0}), ("n_queens", {"n": 4, "queens": [[4, 0]]}),
        ("reasoning_gym", {"task": "nonsense", "entry": {"metadata": {}}}),
        ("reasoning_gym", {"task": "letter_counting", "entry": {}}),
    ],
)  # fmt: skip
def test_a_faulty_reference_is_named_and_never_scored(name, gold):
    text = gold if isinstance(gold, str) else json.dumps(gold)
    reason = checker_by_name(name)(text)
    assert reason
    assert "\n" not in reason
    verdict = grader_by_name(name)("<answer>5</answer>", text)
    assert (verdict.correct, verdict.status) == (False, "unparsable_gold")
    assert pair_grader_by_name(name)("5", text, GradingPolicy()).status == "unparsable_gold"


def test_a_pool_grades_each_request_by_the_grader_it_names():
    slow = {"pattern": "(a+)+b", "on": "response"}
    with VerifierPool(workers=1, timeout=1.0) as pool:
        grades = pool.grade_many(
            [
                (r"\boxed{1/2}", "0.5"),
                ("<answer>green</answer>", json.dumps(COLOURS), "choice"),
                (r"\boxed{green}", json.dumps(COLOURS), "choice"),
                ("a" * 60, json.dumps(slow), "pattern"),
                ("a" * 9 + "b", json.dumps(slow), "pattern"),
                (r"\boxed{1/2}", "0.5", None),
            ]
        )
        faults = pool.check_golds(["5", "5", "(", "("], ["rlvr", "choice", "pattern", None])
        counters = pool.counters
        with pytest.raises(ValueError, match="did you mean 'choice'"):
            pool.submit("x", "y", "choise")
    assert [grade.correct for grade in grades] == [True, True, True, False, True, True]
    assert grades[3].status == "timeout"
    assert counters["timeouts"] == 1
    assert [index for index, _ in faults] == [1, 2, 3]
