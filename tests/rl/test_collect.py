"""Dynamic sampling and what becomes of truncated completions."""

import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from reward import Grade
from rlvr.data import ProblemSampler, Prompt
from rlvr.objective.advantages.group import GroupAdvantage
from rlvr.ranks import Ranks
from rlvr.rl.batch import build_batch
from rlvr.rl.collect import collect, rollout_from_state, rollout_state
from rlvr.rollout.engine import Assembly, Sample
from rlvr.rollout.sampling import Sampling
from rlvr.runs.clock import Clock
from rlvr.runs.log import read_metrics
from rlvr.runs.scoring import ScoredCompletion
from rlvr.types import Completion, Message, Problem

FLAT_EVERY = 3


class CountingEngine:
    """Gives each sample the number of its seed's order, and remembers every seed."""

    policy_version = 0

    def __init__(self):
        self.seeds = []

    def generate(self, requests, sampling, progress=None, finished=None):
        self.seeds += [seed for request in requests for seed in request.seeds]
        assembly = Assembly(requests, progress, finished)
        for _, request, sample in assembly.missing():
            assembly.add(request, sample, Sample((5, 2), (-1.0, -1.0), "stop"))
        return assembly.outputs


def scored(completion, reward):
    grade = Grade(bool(reward), None, "integer", "integer", "", "ok")
    return ScoredCompletion(completion, "1", "x", grade, reward, {"accuracy": reward})


class FakeScorer:
    """Scores a group when it comes; there is no function of the batch."""

    def begin(self, groups, *, step, finished, check):
        assert finished == step - 1
        assert check
        return self.score(groups)

    def finish(self, begun, *, finished, tick):
        return [group for part in begun for group in part]


class EveryThirdIsFlat(FakeScorer):
    """Problems whose number is divisible by three are solved by all samples."""

    def score(self, groups):
        return [
            [
                scored(c, 1.0 if int(group.problem.id) % FLAT_EVERY == 0 else float(index % 2))
                for index, c in enumerate(group.completions)
            ]
            for group in groups
        ]


def fake_run(
    dynamic_sampling_rounds,
    size=100,
    prompts_per_step=6,
    oversample=1.0,
    accuracy_range=None,
    carry_over_steps=0,
):
    problems = [
        Problem(str(n), (Message(role="user", content="x"),), "1", "test") for n in range(size)
    ]
    sampler = ProblemSampler(size, 0, shuffle=False)
    rollout = SimpleNamespace(
        prompts_per_step=prompts_per_step,
        samples_per_prompt=4,
        sampling=Sampling(),
        dynamic_sampling_rounds=dynamic_sampling_rounds,
        oversample=oversample,
        accuracy_range=accuracy_range,
        carry_over_steps=carry_over_steps,
        max_staleness=0,
    )
    return SimpleNamespace(
        recipe=SimpleNamespace(rollout=rollout, seed=0),
        engine=CountingEngine(),
        rollout_ranks=Ranks(),
        carry_over=[],
        environments=None,
        share=range,
        scorer=EveryThirdIsFlat(),
        log=SimpleNamespace(phase=lambda *_: None),
        sampler=sampler,
        next_prompts=lambda count: [Prompt(problems[n], (1,)) for n in sampler.next(count)],
    )


def numbers(groups):
    return [int(group[0].completion.problem_id) for group in groups]


def test_a_plain_rollout_trains_on_what_it_draws():
    rollout = collect(fake_run(0), 1, Clock(), lambda *_: None)
    assert numbers(rollout.groups) == [0, 1, 2, 3, 4, 5]
    assert rollout.metrics == {
        "rollout/rounds": 1.0,
        "rollout/discarded_groups": 0.0,
        "rollout/staleness_mean": 0.0,
        "rollout/staleness_max": 0.0,
        "rollout/staleness_0": 1.0,
    }


def test_flat_groups_are_replaced_until_the_step_is_full():
    rollout = collect(fake_run(5), 1, Clock(), lambda *_: None)
    assert numbers(rollout.groups) == [1, 2, 4, 5, 7, 8]
    assert numbers(rollout.sampled) == list(range(9))
    assert rollout.rounds == 3, "0 and 3 are replaced by 6 and 7, then 6 by 8"
    assert rollout.metrics["rollout/discarded_groups"] == pytest.approx(3 / 9)
    ids = [group[0].completion.group_id for group in rollout.sampled]
    assert ids == [f"1/{position}" for position in range(9)]


def test_the_cap_ends_it_and_flat_groups_fill_up():
    rollout = collect(fake_run(1), 1, Clock(), lambda *_: None)
    assert rollout.rounds == 2
    assert numbers(rollout.groups) == [1, 2, 4, 5, 7, 0]


def test_a_problem_drawn_again_in_a_step_is_sampled_with_other_random_numbers():
    run = fake_run(6, size=3)
    rollout = collect(run, 1, Clock(), lambda *_: None)
    assert max(Counter(numbers(rollout.sampled)).values()) > 1
    assert len(set(run.engine.seeds)) == len(run.engine.seeds)


class AsManyRightAsTheRemainder(FakeScorer):
    """Of four samples of problem n, n modulo 5 are right; rewards differ within every group."""

    def score(self, groups):
        return [
            [
                replace(
                    scored(c, float(index < int(group.problem.id) % 5)),
                    reward=index + float(index < int(group.problem.id) % 5),
                )
                for index, c in enumerate(group.completions)
            ]
            for group in groups
        ]


@pytest.mark.parametrize(("rounds", "oversample"), [(5, 1.0), (0, 2.0)])
def test_the_accuracy_filter_keeps_whole_groups_within_its_bounds_in_order(rounds, oversample):
    run = fake_run(rounds, oversample=oversample, accuracy_range=(0.2, 0.8))
    run.scorer = AsManyRightAsTheRemainder()
    rollout = collect(run, 1, Clock(), lambda *_: None)
    assert numbers(rollout.groups) == [1, 2, 3, 6, 7, 8]
    for group in rollout.groups:
        assert [item.completion.sample_index for item in group] == [0, 1, 2, 3]
        assert sum(item.grade.correct for item in group) in (1, 2, 3)


def test_where_too_few_groups_pass_others_fill_the_step():
    run = fake_run(0, oversample=1.5, accuracy_range=(0.4, 0.6))
    run.scorer = AsManyRightAsTheRemainder()
    rollout = collect(run, 1, Clock(), lambda *_: None)
    assert len(rollout.sampled) == 9
    assert numbers(rollout.groups) == [2, 7, 0, 1, 3, 4]


def test_groups_without_room_come_first_in_the_next_step_and_fewer_are_drawn():
    run = fake_run(0, oversample=2.0, carry_over_steps=2)
    first = collect(run, 1, Clock(), lambda *_: None)
    assert numbers(first.groups) == [1, 2, 4, 5, 7, 8]
    assert numbers(run.carry_over) == [10, 11]
    assert first.metrics["rollout/discarded_groups"] == pytest.approx(4 / 12), "the flat ones"
    assert first.metrics["rollout/carried_groups"] == 0
    run.engine.policy_version = 1
    second = collect(run, 2, Clock(), lambda *_: None)
    assert numbers(second.sampled) == list(range(12, 20)), "twice the four that are missing"
    assert numbers(second.groups) == [10, 11, 13, 14, 16, 17]
    assert second.metrics["rollout/carried_groups"] == pytest.approx(2 / 6)
    assert second.metrics["rollout/waiting_groups"] == len(run.carry_over) == 1
    assert second.metrics["rollout/staleness_1"] == pytest.approx(2 / 6)
    again = rollout_from_state(json.loads(json.dumps(rollout_state(second))))
    assert numbers(again.groups) == numbers(second.groups)
    assert again.metrics == second.metrics


def test_groups_that_waited_too_long_are_dropped_and_every_step_samples():
    run = fake_run(0, oversample=8.0, carry_over_steps=1)
    collect(run, 1, Clock(), lambda *_: None)
    assert len(run.carry_over) == 5, "one fewer than a step needs"
    run.engine.policy_version = 1
    second = collect(run, 2, Clock(), lambda *_: None)
    assert len(second.carried) == 5
    assert len(second.sampled) == 8
    run.carry_over = second.groups  # of versions 0 (five) and 1
    assert {group[0].completion.policy_version for group in run.carry_over} == {0, 1}
    third = collect(run, 3, Clock(), lambda *_: None)
    assert len(third.carried) == 1


def test_reused_groups_run_and_resume_exactly(recipe_values):
    from tests.rl.test_train import run_in_process, same_weights, weights

    values = {**recipe_values, "regularisers": []}
    overrides = (
        "rollout.oversample=3",
        "rollout.carry_over_steps=2",
        "rollout.accuracy_range=[0, 1]",
    )
    whole = run_in_process({**values, "output": values["output"] + "-a"}, *overrides)
    rows = read_metrics(whole / "metrics.jsonl")
    assert any(row.get("rollout/carried_groups", 0) > 0 for row in rows), "else nothing is shown"
    run_in_process(values, *overrides, "steps=2")
    resumed = run_in_process(values, *overrides, resume=True)
    assert same_weights(weights(resumed), weights(whole))


def completion(length, reason):
    return Completion("p", "1/0", 0, (1,), (5,) * length, (-1.0,) * length, reason, 0)


def test_truncated_completions_can_be_masked_out_of_the_loss():
    group = [
        scored(completion(3, "stop"), 1.0),
        scored(completion(5, "length"), 0.0),
        scored(completion(2, "stop"), 0.0),
    ]
    kept = build_batch([group], GroupAdvantage())
    masked = build_batch([group], GroupAdvantage(), "mask")
    assert kept.mask_BT.sum(-1).tolist() == [3, 5, 2]
    assert masked.mask_BT.sum(-1).tolist() == [3, 0, 2]
    assert masked.advantages_BT[1].abs().sum() == 0
    assert torch.equal(masked.advantages_BT[[0, 2]], kept.advantages_BT[[0, 2]])


def test_dynamic_sampling_runs_and_resumes_exactly(recipe_values):
    from tests.rl.test_train import run_in_process, same_weights, weights

    values = {**recipe_values, "regularisers": []}
    overrides = ("rollout.dynamic_sampling_rounds=2", "reward.truncated=mask")
    whole = run_in_process({**values, "output": values["output"] + "-a"}, *overrides)
    run_in_process(values, *overrides, "steps=2")
    resumed = run_in_process(values, *overrides, resume=True)
    assert same_weights(weights(resumed), weights(whole))
