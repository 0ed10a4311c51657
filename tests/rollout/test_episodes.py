"""Episodes as sampling sees them: seeds, limits, order, and environments that are slow or fail."""

import threading
import time

import pytest

from rlvr.data import Prompt
from rlvr.rollout.engine import Request, Sample
from rlvr.rollout.episodes import play, turn_seed
from rlvr.rollout.groups import sample_groups
from rlvr.rollout.sampling import Sampling
from rlvr.types import Answer, Limits, Problem, Turn

SAMPLING = Sampling(max_tokens=4)
WIDE = Limits(turns=9, tokens=900)


class Engine:
    """Writes its seed's last digit, three times; keeps what it was asked."""

    policy_version = 3

    def __init__(self, interleaves=False, finish="stop"):
        self.interleaves, self.finish, self.calls = interleaves, finish, []

    def generate(self, requests, sampling, progress=None, finished=None):
        self.calls.append(list(requests))
        for index, request in enumerate(requests):
            samples = [Sample((s % 10,) * 3, (-0.5,) * 3, self.finish) for s in request.seeds]
            progress(index, len(requests))
            finished(index, samples)


class Rounds:
    """Answers (7, 8) until it has been asked so often."""

    def __init__(self, last, pause=0.0, reward=1.0):
        self.last, self.pause, self.reward, self.asked = last, pause, reward, 0
        self.closed = 0

    def close(self):
        self.closed += 1

    def step(self, token_ids):
        time.sleep(self.pause)
        self.asked += 1
        if self.asked == self.last:
            return Answer(ended="stop", reward=self.reward)
        return Answer((7, 8), reward=0.25)


def played(engine, episodes, limits=WIDE, requests=None, **options):
    found = {}
    requests = requests or [Request((1, 2), (11, 12)), Request((3,), (13, 14))]
    flat = iter(episodes)
    made = {(r, s): next(flat) for r, q in enumerate(requests) for s in range(len(q.seeds))}
    play(
        engine,
        requests,
        lambda r, s: made[r, s],
        SAMPLING,
        limits,
        finished=lambda r, samples: found.update({r: samples}),
        **options,
    )
    return [found[r] for r in range(len(requests))]


def test_an_episode_is_one_list_of_ids_that_grows():
    engine = Engine()
    first, second = played(engine, [Rounds(1), Rounds(3), Rounds(2), Rounds(1)])
    single, triple = first
    assert single == Sample((1,) * 3, (-0.5,) * 3, "stop", turns=(Turn(0, 3, "stop", 1.0),),
                            reward=1.0)  # fmt: skip
    a, b = turn_seed(12, 1) % 10, turn_seed(12, 2) % 10
    assert triple.token_ids == (2, 2, 2, 7, 8, a, a, a, 7, 8, b, b, b)
    assert triple.logprobs == (*(-0.5,) * 3, 0.0, 0.0, *(-0.5,) * 3, 0.0, 0.0, *(-0.5,) * 3)
    assert [(t.start, t.stop, t.reward) for t in triple.turns] == [
        (0, 3, 0.25),
        (5, 8, 0.25),
        (10, 13, 1.0),
    ]
    assert triple.reward == 1.5
    assert [len(sample.turns) for sample in second] == [2, 1]
    # What it was asked is what stands there: the prompt, and all ids so far.
    assert engine.calls[1] == [
        Request((1, 2, 2, 2, 2, 7, 8), (turn_seed(12, 1),)),
        Request((3, 3, 3, 3, 7, 8), (turn_seed(13, 1),)),
    ]


def test_the_first_turn_is_the_call_of_a_single_turn():
    requests = [Request((1, 2), (11, 12)), Request((3,), (13, 14))]
    engine = Engine()
    played(engine, [Rounds(1) for _ in range(4)], requests=requests)
    assert engine.calls == [requests]
    assert turn_seed(11, 0) == 11
    assert len({turn_seed(seed, turn) for seed in range(50) for turn in range(4)}) == 200


@pytest.mark.parametrize(
    ("limits", "reason", "turns"),
    [
        (Limits(turns=2, tokens=900), "turns", 2),
        # A turn of at most 4 begins behind 5, 10 and 15 ids, where 19 have room.
        (Limits(turns=9, tokens=19), "tokens", 4),
        (Limits(turns=9, tokens=18), "tokens", 3),
    ],
)
def test_limits_cut_an_episode_and_say_so(limits, reason, turns):
    ((sample,),) = played(Engine(), [Rounds(99)], limits, [Request((1,), (5,))])
    assert (sample.finish_reason, len(sample.turns)) == (reason, turns)
    assert sample.turns[-1].stop == len(sample.token_ids) <= limits.tokens
    assert sample.reward == 0.25 * turns


def test_a_turn_that_is_cut_ends_its_episode_unasked():
    episode = Rounds(99)
    ((sample,),) = played(Engine(finish="length"), [episode], requests=[Request((1,), (5,))])
    assert (sample.finish_reason, sample.reward, episode.asked) == ("length", 0.0, 0)


def test_slow_environments_hold_up_their_own_episodes_alone():
    """Where bits do not depend on it: the quick one is over when the slow one goes on."""
    engine, over = Engine(interleaves=True), []
    requests = [Request((1,), (1,)), Request((2,), (2,))]
    episodes = {0: Rounds(2, pause=0.6), 1: Rounds(5)}
    play(
        engine,
        requests,
        lambda r, s: episodes[r],
        SAMPLING,
        WIDE,
        finished=lambda r, samples: over.append(r),
    )
    assert over == [1, 0]
    assert [len(call) for call in engine.calls] == [2, 1, 1, 1, 1, 1]


def test_waves_do_not_depend_on_timing_where_bits_would():
    engine = Engine()
    played(engine, [Rounds(3, pause=0.2), Rounds(3), Rounds(3, pause=0.1), Rounds(3)])
    assert [len(call) for call in engine.calls] == [2, 4, 4]
    prompts = [[request.prompt_ids[0] for request in call] for call in engine.calls]
    assert prompts == [[1, 3], [1, 1, 3, 3], [1, 1, 3, 3]]


def test_an_environment_that_does_not_answer_in_time_is_left_to_itself():
    block, closed = threading.Event(), []

    class Hangs:
        def close(self):
            closed.append(self)

        def step(self, token_ids):
            block.wait(60)
            return Answer(ended="stop", reward=1.0)

    began = time.monotonic()
    limits = Limits(turns=9, tokens=900, seconds=0.5)
    (slow,), (quick,) = played(
        Engine(), [Hangs(), Rounds(1)], limits, [Request((1,), (1,)), Request((2,), (2,))]
    )
    assert time.monotonic() - began < 30
    block.set()
    assert len(closed) == 1
    assert (slow.finish_reason, slow.reward) == ("seconds", 0.0)
    assert (quick.finish_reason, quick.reward) == ("stop", 1.0)


def test_a_fault_of_an_environment_reaches_the_caller():
    class Fails:
        def close(self):
            others.append(self)

        def step(self, token_ids):
            raise ValueError("no such tool")

    others = []
    episodes = [Rounds(9), Fails(), Rounds(9), Rounds(9)]
    with pytest.raises(ValueError, match="no such tool"):
        played(Engine(), episodes)
    assert len(others) == 1
    assert [one.closed for one in episodes if isinstance(one, Rounds)] == [1, 1, 1]


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_every_episode_is_closed_once_however_it_ends(finish):
    episodes = [Rounds(1), Rounds(2), Rounds(9), Rounds(9)]
    played(Engine(finish=finish), episodes, Limits(turns=3, tokens=900))
    assert [one.closed for one in episodes] == [1, 1, 1, 1]


def test_progress_counts_episodes_and_may_end_them():
    seen = []

    def show(done, total):
        seen.append((done, total))
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        played(Engine(), [Rounds(1), Rounds(2), Rounds(1), Rounds(5)], progress=show)
    assert seen[0] == (0, 4)
    assert seen[-1] == (3, 4)


def test_groups_hold_what_an_episode_is():
    class Source:
        limits = WIDE

        def begin(self, problem, seed):
            return Rounds(1 if problem.id == "a" else 2)

    problems = [Problem(name, (), "", "test") for name in "ab"]
    prompts = [Prompt(problem, (1, 2)) for problem in problems]
    groups = sample_groups(
        Engine(), prompts, 2, SAMPLING, run_seed=0, step=4, environment=Source(), first_draw=6
    )
    assert [len(one.turns) for group in groups for one in group.completions] == [1, 1, 2, 2]
    second = groups[1].completions[0]
    assert (second.group_id, second.draw, second.policy_version) == ("4/1", 7, 3)
    assert (second.reward, second.length, second.spans) == (1.25, 6, ((0, 3), (5, 8)))
