"""Environments by name, their parameters, and what the built-in ones do."""

import asyncio
from random import Random

import pytest

from rlvr.data.templates import Template, TemplateSettings
from rlvr.environments import (
    Action,
    Done,
    Environment,
    EnvironmentSettings,
    Observation,
)
from rlvr.environments.episode import Environments, environment_class, opened_all
from rlvr.environments.games import Grid, GuessNumber
from rlvr.environments.self_correction import SelfCorrection
from rlvr.policy.tiny import character_tokenizer
from rlvr.types import Answer, Message, Problem

TEXT = Template("plain", TemplateSettings(mode="text"))
PROBLEM = Problem("p-7", (Message(role="user", content="2+3?"),), "5", "test")


def environments(name, judge=lambda text, problem: text == problem.answer, **parameters):
    tokenizer = character_tokenizer()
    settings = EnvironmentSettings(name=name, parameters=parameters)
    decode = lambda ids, finished: tokenizer.decode(ids[:-1])  # noqa: E731
    return Environments(settings, TEXT, tokenizer, decode, judge), tokenizer


def said(tokenizer, text):
    return (*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id)


def test_a_wrong_name_is_told_the_right_one():
    with pytest.raises(ValueError, match="did you mean 'guess_number'"):
        environment_class("gues_number")
    with pytest.raises(ValueError, match="no environment"):
        environment_class("rlvr.types:Problem")


def test_wrong_parameters_are_told_the_right_ones():
    with pytest.raises(ValueError, match=r"'hgih'.*it takes low, high, lower, higher"):
        environments("guess_number", hgih=3)
    with pytest.raises(ValueError, match="high = 0 must be above low = 1"):
        environments("guess_number", high=0)


def test_halving_finds_every_number():
    for number in range(1, 17):
        game = GuessNumber()
        game.random = Random(0)
        game.reset(PROBLEM)
        game.number = number
        low, high = 1, 16
        for turn in range(1, 6):
            middle = (low + high) // 2
            found = game.step(Action(f"is it {middle}", (), turn))
            if isinstance(found, Done):
                assert found.reward == 1.0
                break
            low, high = (middle + 1, high) if found.content == "higher" else (low, middle - 1)
        else:
            pytest.fail(f"{number} was not found")
    assert game.step(Action("no idea", (), 1)) == Done(0.0)


def test_a_task_depends_on_the_problem_alone():
    def numbers(problem_id):
        made, _ = environments("guess_number", high=10**6)
        problem = Problem(problem_id, PROBLEM.messages, "", "test")
        return {made.begin(problem, seed).environment.number for seed in range(5)}

    assert len(numbers("p-1")) == len(numbers("p-2")) == 1
    assert numbers("p-1") == numbers("p-1") != numbers("p-2")


def test_a_walk_ends_at_the_goal_and_at_a_wall():
    walk = Grid(3)
    walk.random = Random(1)
    assert (
        walk.reset(PROBLEM) == f"{walk.place[0]},{walk.place[1]} to {walk.goal[0]},{walk.goal[1]}?"
    )
    walk.place, walk.goal = (0, 0), (2, 1)
    assert walk.step(Action("right", (), 1)) == Observation("1,0")
    assert walk.step(Action(" Right ", (), 2)) == Observation("2,0")
    assert walk.step(Action("down", (), 3)) == Done(1.0)
    walk.place = (0, 0)
    assert walk.step(Action("up", (), 1)) == Done(0.0)
    assert walk.step(Action("jump", (), 1)) == Done(0.0)


def test_a_wrong_answer_may_be_tried_again():
    made, tokenizer = environments("self_correction")
    assert made.opened(PROBLEM) == PROBLEM
    episode = made.begin(PROBLEM, 0)
    again = episode.step(said(tokenizer, "4"))
    assert tokenizer.decode(list(again.observed)) == "That is wrong. Try again."
    assert (again.ended, again.reward) == (None, 0.0)
    assert episode.step(said(tokenizer, "5")) == Answer(ended="stop", reward=0.5)
    assert made.begin(PROBLEM, 0).step(said(tokenizer, "5")).reward == 1.0
    wrong = made.begin(PROBLEM, 0)
    wrong.step(said(tokenizer, "4"))
    assert wrong.step(said(tokenizer, "6")) == Answer(ended="stop", reward=0.0)
    with pytest.raises(ValueError, match="'p-8' has none"):
        made.opened(Problem("p-8", PROBLEM.messages, "", "test"))
    with pytest.raises(ValueError, match="tries = 1"):
        SelfCorrection(tries=1)


class Slow(Environment):
    async def step(self, action):
        await asyncio.sleep(0.01)
        return Done(len(action.text))


class Wrong(Environment):
    def reset(self, problem):
        return [Message(role="system", content="Be brief."), *problem.messages]

    def step(self, action):
        return {"reward": 1} if action.turn == 1 else 1 / 0


class Endless(Environment):
    def step(self, action):
        return Done(float("nan"))


def test_a_step_may_be_asynchronous():
    made, tokenizer = environments(f"{__name__}:Slow")
    assert made.begin(PROBLEM, 0).step(said(tokenizer, "abc")) == Answer(ended="stop", reward=3.0)
    made.close()


def test_what_is_no_answer_is_named():
    made, tokenizer = environments(f"{__name__}:Wrong")
    (opened,) = opened_all([PROBLEM], made)
    assert [turn["role"] for turn in opened.messages] == ["system", "user"]
    episode = made.begin(PROBLEM, 0)
    with pytest.raises(ValueError, match=r"Wrong answered turn 1 with .*Observation or Done"):
        episode.step(said(tokenizer, "a"))
    with pytest.raises(ValueError, match="Wrong failed in turn 2: ZeroDivisionError"):
        episode.step(said(tokenizer, "a"))
    endless, _ = environments(f"{__name__}:Endless")
    with pytest.raises(ValueError, match="reward nan"):
        endless.begin(PROBLEM, 0).step(said(tokenizer, "a"))
