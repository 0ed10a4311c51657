"""Reward functions: values at their limit cases, names, weights."""

import pytest

from reward.functions import FUNCTIONS, RewardInput, combine, resolve
from reward.verdict import Grade

RIGHT = Grade(True, "3", "integer", "string", "the same text")
WRONG = Grade(False, "4", "integer", "number", "different")


def item(response="\\boxed{3}", grade=RIGHT, **fields):
    return RewardInput(response=response, gold="3", grade=grade, **fields)


def twice_length(item, *, factor=2):
    return factor * len(item.response)


def test_accuracy_counts_a_truncated_completion_as_wrong_unless_told():
    assert resolve("accuracy")(item()) == 1.0
    assert resolve("accuracy")(item(grade=WRONG)) == 0.0
    assert resolve("accuracy")(item(truncated=True)) == 0.0
    assert resolve("accuracy", truncated="grade")(item(truncated=True)) == 1.0
    assert resolve("accuracy", wrong=-1.0)(item(grade=WRONG)) == -1.0


def test_format_boxed_wants_a_closed_box_after_the_thinking():
    boxed = resolve("format_boxed", penalty=-0.5)
    assert boxed(item()) == 1.0
    assert boxed(item("\\boxed{")) == -0.5
    assert boxed(item("<think>\\boxed{3}</think> done")) == -0.5


@pytest.mark.parametrize(
    ("response", "value"),
    [
        ("<think>a</think>b", 1.0),
        ("a</think>b", 1.0),
        ("<think></think>b", 0.0),
        ("<think>a</think>", 0.0),
        ("<think>a<think>b</think>c", 0.0),
        ("<think>a</think>b</think>c", 0.0),
        ("x<think>a</think>b", 0.0),
        ("no tags", 0.0),
    ],
)
def test_format_think_wants_one_block_and_then_text(response, value):
    assert resolve("format_think")(item(response)) == value


@pytest.mark.parametrize(
    ("tokens", "value"), [(0, 0.0), (600, 0.0), (800, -0.5), (1000, -1.0), (1200, -1.0)]
)
def test_overlong_falls_linearly_over_the_buffer(tokens, value):
    overlong = resolve("overlong", buffer=400)
    assert overlong(item(num_tokens=tokens, max_tokens=1000)) == pytest.approx(value)


def test_overlong_refuses_a_buffer_beyond_the_limit():
    with pytest.raises(ValueError, match="buffer=2000"):
        resolve("overlong", buffer=2000)(item(max_tokens=1000))


def test_repetition_is_the_share_of_repeated_ngrams():
    repetition = resolve("repetition", ngram=2)
    assert repetition(item("a b c d e")) == 0.0
    assert repetition(item("a b a b a b")) == pytest.approx(-(1 - 2 / 5))
    assert repetition(item("a")) == 0.0


def test_length_falls_to_zero_at_its_target():
    for shape in ("linear", "cosine"):
        length = resolve("length", target=100, shape=shape)
        assert length(item(num_tokens=0)) == 1.0
        assert length(item(num_tokens=50)) == pytest.approx(0.5)
        assert length(item(num_tokens=100)) == pytest.approx(0.0)
        assert length(item(num_tokens=900)) == pytest.approx(0.0)


def test_a_users_function_is_taken_as_it_is():
    def shout(item, *, factor=2):
        return factor * item.response.count("!")

    assert resolve(shout, factor=3)(item("hey!!")) == 6
    with pytest.raises(ValueError, match=r"'shout': .*factr"):
        resolve(shout, factr=3)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("acuracy", {}, "did you mean 'accuracy'"),
        ("accuracy", {"wromg": 1}, "wromg"),
        ("length", {}, "target"),
    ],
)
def test_names_and_parameters_that_do_not_fit_are_refused(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        resolve(name, **parameters)


def test_every_registered_function_takes_a_reward_input_and_returns_a_number():
    needed = {"length": {"target": 10}, "overlong": {"buffer": 10}}
    for name in FUNCTIONS:
        value = resolve(name, **needed.get(name, {}))(
            item(num_tokens=5, max_tokens=20, episode_reward=0.5)
        )
        assert isinstance(value, float)


def test_combination_weighs_the_total_and_keeps_each_value():
    total, values = combine(
        [("accuracy", resolve("accuracy"), 2.0), ("boxed", resolve("format_boxed"), 0.5)]
    )(item(grade=WRONG))
    assert values == {"accuracy": 0.0, "boxed": 1.0}
    assert total == 0.5


def test_combination_refuses_what_it_cannot_add():
    with pytest.raises(ValueError, match="at least one"):
        combine([])
    with pytest.raises(ValueError, match="once"):
        combine([("a", resolve("accuracy"), 1.0), ("a", resolve("accuracy"), 1.0)])
    with pytest.raises(ValueError, match="not a finite"):
        combine([("a", resolve("accuracy"), float("nan"))])
    with pytest.raises(ValueError, match="returned nan"):
        combine([("a", lambda item: float("nan"), 1.0)])(item())
