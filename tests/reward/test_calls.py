"""A reward function's signature says how it is called, and wrong ones are refused by name."""

import functools

import pytest

from reward.calls import Notes, plan_call
from reward.functions import RewardError, RewardInput, UngradedInput
from reward.verdict import Grade

RIGHT = Grade(True, "2", "int", "exact", "")


def item(response="2", **more):
    known = {"problem_id": "p", "token_ids": (5, 6, 7), "prompt": "1+1=", "gold": "2"}
    known |= {"messages": ({"role": "user", "content": "1+1="},), "grade": RIGHT, "step": 3}
    return RewardInput(**{"response": response, **known, **more})


def group(*texts, **more):
    items = [item(text, sample=index, **more) for index, text in enumerate(texts)]
    for one in items:
        object.__setattr__(one, "group", items)
    return items


def called(function, groups, parameters=None, **more):
    """The values of all completions of groups."""
    call = plan_call(function, parameters or {}, **more)
    found = []
    for unit in call.units(groups):
        found += call.values(call.prepared(unit, Notes(), "state")(), unit)
    return found


def by_item(item):
    return len(item.response)


def by_annotation(one: RewardInput):
    return len(one.response)


def by_text_annotation(one: "RewardInput"):
    return len(one.response)


def by_names(response, answer, prompt, step, token_ids, level, unused=7, **columns):
    assert (answer, prompt, step, token_ids, level, unused) == (
        "2",
        "1+1=",
        3,
        (5, 6, 7),
        "easy",
        7,
    )
    assert columns == {"hint": "h", "more": [1]}
    return len(response)


def by_group(group, scale=1):
    return [scale * len(group) for _ in group]


def by_items(items):
    return [len(items) for _ in items]


def by_others(response, others):
    return sum(other.response != response for other in others)


def trl(prompts, completions, completion_ids, level, **kwargs):
    assert prompts == ["1+1="] * 3
    assert level == ["easy"] * 3
    assert kwargs["hint"] == ["h"] * 3
    assert kwargs["trainer_state"] == "state"
    return [
        float(len(text) + len(ids)) for text, ids in zip(completions, completion_ids, strict=True)
    ]


@pytest.mark.parametrize(
    ("function", "values"),
    [
        (by_item, [1, 2, 3]),
        (by_annotation, [1, 2, 3]),
        (by_text_annotation, [1, 2, 3]),
        (by_names, [1, 2, 3]),
        (by_group, [2, 2, 1]),
        (by_items, [3, 3, 3]),
        (by_others, [1, 1, 0]),
        (trl, [4, 5, 6]),
        (lambda response: None, [None] * 3),
        (functools.partial(by_group, scale=2), [4, 4, 2]),
    ],
)
def test_the_signature_decides_the_call(function, values):
    columns = {"level": "easy", "hint": "h", "more": [1]}
    groups = [group("2", "22", columns=columns), group("222", columns=columns)]
    assert called(function, groups) == values


def test_known_names_come_before_columns_and_settings_before_both():
    columns = {"step": "of the data", "level": "easy"}
    assert called(lambda step: step, [[item(columns=columns)]]) == [3]
    assert called(lambda step, level=0: level, [[item(columns={"level": 2})]]) == [2]
    assert called(lambda step, level=0: level, [[item(columns={"level": 2})]], {"level": 5}) == [5]
    assert called(lambda item, level=0: level, [[item(columns={"level": 2})]]) == [0]


def test_conversational_data_are_lists_of_messages_as_annotations_and_settings_are():
    seen = []

    def score(prompts, completions):
        seen.append((prompts, completions))
        return [0.0 for _ in completions]

    def annotated(completions: list[list[dict[str, str]]], **kwargs):
        return score(kwargs["prompts"], completions)

    text = (["1+1="], ["2"])
    chat = (
        [[{"role": "user", "content": "1+1="}]],
        [[{"role": "assistant", "content": "2"}]],
    )
    for function, conversational, setting, expected in (
        (score, False, None, text),
        (score, True, None, chat),
        (score, True, False, text),
        (score, False, True, chat),
        (annotated, False, None, chat),
    ):
        called(function, [[item(conversational=conversational)]], as_messages=setting)
        assert seen.pop() == expected


def test_a_factory_is_called_once_with_its_parameters():
    made = []

    def factory(target, scale=1.0):
        made.append(target)
        return lambda completions: [scale * (len(text) == target) for text in completions]

    class Judge:
        def __init__(self, word="2"):
            self.word = word

        def __call__(self, response):
            return response == self.word

    assert called(factory, [group("2", "22")], {"target": 2}) == [0, 1]
    assert made == [2]
    assert called(Judge, [group("2", "22")]) == [1, 0]
    assert called(Judge, [group("2", "22")], {"word": "22"}) == [0, 1]
    assert called(Judge("22"), [group("2", "22")]) == [0, 1]


def test_async_functions_are_known_whatever_they_are_wrapped_in():
    async def judge(response, scale=1):
        return scale

    class Judge:
        async def __call__(self, item):
            return 1

    for function in (judge, functools.partial(judge, scale=2), Judge()):
        assert plan_call(function, {}).is_async
    assert not plan_call(by_item, {}).is_async


def nothing(**columns):
    return 1


def two_kinds(item, completions):
    return 1


def no_value(item, level):
    return 1


@pytest.mark.parametrize(
    ("function", "parameters", "said"),
    [
        (nothing, {}, "'nothing' takes nothing that says how it is called.*group.*completions"),
        (lambda: 1.0, {}, "takes nothing that says"),
        (two_kinds, {}, "'two_kinds' takes 'item' and 'completions'"),
        (no_value, {}, r"'no_value'.*'level'.*item\.columns\['level'\]"),
        (by_group, {"scal": 2}, "'by_group' has no parameter 'scal'; did you mean 'scale'"),
        (trl, {"levle": 2}, "'trl' has no parameter 'levle'; did you mean 'level'"),
        ("acuracy", {}, "did you mean 'accuracy'"),
        (3.0, {}, "'float' is 3.0, of type float, and no function"),
    ],
)
def test_what_cannot_be_called_is_refused_with_what_can(function, parameters, said):
    with pytest.raises(ValueError, match=said):
        plan_call(function, parameters)


@pytest.mark.parametrize("function", [by_names, trl, lambda response, level: 1])
def test_a_column_that_is_not_there_is_named_with_those_that_are(function):
    call = plan_call(function, {})
    call.check_columns(["level", "hint"], "the data")
    with pytest.raises(ValueError, match=r"'level'.*columns are hint, lever"):
        call.check_columns(["lever", "hint"], "the data")
    with pytest.raises(ValueError, match="did you mean 'response'"):
        plan_call(lambda respnse: 1, {}).check_columns([], "the data")


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([1.0], "returned 1 values for 2 completions"),
        ("good", "returned 'good', of type str.*list"),
        (1.0, "returned 1.0, of type float.*list"),
        ({"a": 1, "b": 2}, "of type dict"),
        ([1.0, "x"], "on problem 'p' returned 'x', of type str"),
        ([1.0, float("nan")], "returned nan; it must return a finite number"),
        ([float("inf"), 1.0], "returned inf"),
    ],
)
def test_a_list_of_something_else_is_named(returned, said):
    with pytest.raises(RewardError, match=said):
        called(lambda completions: returned, [group("1", "2")], name="mine")


def test_a_problem_without_an_answer_has_none_to_read():
    bare = UngradedInput(**vars(item(gold="")))
    assert called(by_item, [[bare]]) == [1]
    for function in (lambda item: item.grade.correct, lambda item: item.gold == ""):
        with pytest.raises(LookupError, match="no reference answer"):
            called(function, [[bare]])
    needs = {
        "accuracy": True,
        "format_boxed": False,
    }
    assert {name: plan_call(name, {}).needs_answer for name in needs} == needs
    assert plan_call(lambda response, gold: 1, {}).needs_answer
    assert not plan_call(lambda response, gold="": 1, {}).needs_answer
    assert not plan_call(by_item, {}).needs_answer


def test_a_lazy_column_is_read_only_where_it_is_asked_for():
    class Columns(dict):
        def __getitem__(self, name):
            assert name != "image", "decoding it costs seconds"
            return super().__getitem__(name)

    columns = Columns(level="easy", image=None)
    assert called(lambda response, level: len(level), [[item(columns=columns)]]) == [4]
    assert called(by_item, [[item(columns=columns)]]) == [1]
    with pytest.raises(AssertionError):
        called(lambda response, **columns: 1, [[item(columns=columns)]])
