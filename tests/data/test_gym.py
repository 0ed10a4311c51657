"""Problems from reasoning-gym, and what is said where it is not installed."""

import re
import sys

import pytest

from rlvr.data import GymSource, load_problems, overlap


@pytest.fixture
def gym():
    return pytest.importorskip("reasoning_gym", reason="needs the extra rlvr[gym]")


def refused(source, *words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
        load_problems(source)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_task_gives_its_own_problems_and_answers(gym):
    problems = load_problems(GymSource(task="letter_counting", size=20, seed=3))
    expected = gym.create_dataset("letter_counting", size=20, seed=3_000_000)
    assert [p.messages[0]["content"] for p in problems] == [item["question"] for item in expected]
    assert [p.answer for p in problems] == [item["answer"] for item in expected]
    assert problems[4].id == "letter_counting-3-4"
    assert problems[4].source == "reasoning-gym/letter_counting"


@pytest.mark.usefixtures("gym")
def test_the_metadata_say_who_scores():
    (problem,) = load_problems(GymSource(task="gcd", size=1))
    assert "own scorer is not used" in problem.metadata["scorer"]
    assert (problem.metadata["task"], problem.metadata["seed"]) == ("gcd", 0)


@pytest.mark.usefixtures("gym")
def test_the_task_takes_settings_and_the_window_is_generated_alone():
    source = GymSource(task="letter_counting", size=50, config={"min_words": 30, "max_words": 40})
    problems = load_problems(source)
    assert all(len(p.messages[0]["content"].split()) > 35 for p in problems)
    window = load_problems(source.model_copy(update={"skip": 10, "limit": 3}))
    assert window == problems[10:13]


@pytest.mark.usefixtures("gym")
def test_neighbouring_seeds_share_no_problem():
    # In reasoning-gym itself they share all but one.
    one, two = (load_problems(GymSource(task="letter_counting", seed=s, size=30)) for s in (0, 1))
    assert overlap(one, two) == []
    assert overlap(one, one) == [p.id for p in one]


@pytest.mark.usefixtures("gym")
def test_an_unknown_task_is_named_with_the_nearest():
    refused(GymSource(task="leter_counting"), "does not exist", "did you mean 'letter_counting'")


@pytest.mark.usefixtures("gym")
@pytest.mark.parametrize("config", [{"min_word": 3}, {"min_words": -1}])
def test_a_wrong_setting_is_named_with_those_there_are(config):
    source = GymSource(task="letter_counting", config=config)
    refused(source, "'letter_counting'", str(config), "max_words, min_words")


@pytest.mark.usefixtures("gym")
def test_a_task_without_reference_answers_is_refused():
    refused(GymSource(task="graph_color"), "reference answer is None", "choose another task")


@pytest.mark.usefixtures("gym")
def test_a_small_task_repeats_problems_and_says_so():
    with pytest.warns(UserWarning, match="exact duplicates"):
        problems = load_problems(
            GymSource(task="gcd", size=60, config={"min_value": 1, "max_value": 4})
        )
    assert len({p.messages[0]["content"] for p in problems}) == len(problems) < 60


@pytest.mark.usefixtures("gym")
def test_skipping_everything_is_refused():
    refused(GymSource(task="gcd", size=5, skip=5), "no usable problem")


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    refused(GymSource(task="gcd"), "reasoning_gym", "pip install 'rlvr[gym]'")
