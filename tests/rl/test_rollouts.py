"""Rollouts ahead of the learner: which weights they come from, and that nothing depends on luck.

The engine here is the transformers engine over a copy of the policy that gets its weights from the
learner as an engine in another process would: what is published is kept aside until it is loaded.
Random pauses in generation and in the update stand for the rest of the world.
"""

import copy
import json
import random
import time
from collections import Counter

import pytest
import torch
from rich.console import Console

from rlvr.learner.learner import Learner
from rlvr.rl.collect import rollout_from_state, rollout_state
from rlvr.rl.recipe import RLRecipe
from rlvr.rl.rollouts import AsynchronousRollouts
from rlvr.rl.train import train
from rlvr.rollout.engine import Engine, Request
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.transformers_engine import TransformersEngine
from rlvr.runs.log import read_metrics
from rlvr.settings import load_settings


class CopyEngine(Engine):
    """Weights of its own, loaded from what was published."""

    overlaps = True

    def __init__(self, policy, stop_ids, pause):
        self.inner = TransformersEngine(copy.deepcopy(policy), stop_ids)
        self.published, self.loaded, self.pause = None, None, pause
        self.rollouts = 0
        self.fault = None

    @property
    def policy_version(self):
        return self.loaded

    def publish(self, policy, version):
        self.published = version, copy.deepcopy(policy.state_dict())
        return {}

    def load(self):
        version, weights = self.published
        self.inner.policy.load_state_dict(weights)
        self.loaded = version
        return {"sync/difference": 0.0}

    def generate(self, requests, sampling, progress=None, finished=None):
        if self.fault is not None and sampling.temperature:
            raise self.fault
        self.rollouts += sampling.temperature > 0
        self.pause()
        return self.inner.generate(requests, sampling, progress, finished)

    def close(self):
        pass


def jitter(seed, longest):
    draw = random.Random(seed)
    return lambda: time.sleep(draw.uniform(0, longest))


def nothing():
    pass


@pytest.fixture
def start(recipe_values, tmp_path, monkeypatch):
    """Train with a copying engine: (name, max_staleness, engine's and learner's pause, ...)."""

    def run(name, staleness, engine=nothing, learner=nothing, *, resume=False, **changes):
        values = {**recipe_values, "output": str(tmp_path / name), **changes}
        values["rollout"] = {**values["rollout"], "max_staleness": staleness}
        values["rollout"]["engine"] = {"name": "vllm"}
        engines = []

        def build(_settings, policy, stop_ids, *_, **_more):
            engines.append(CopyEngine(policy, stop_ids, engine))
            return engines[-1]

        monkeypatch.setattr("rlvr.rl.run.build_engine", build)
        update = Learner.update

        def slow_update(self, batch):
            learner()
            return update(self, batch)

        with monkeypatch.context() as patch:
            patch.setattr(Learner, "update", slow_update)
            train(load_settings(RLRecipe, values), resume=resume, console=Console(quiet=True))
        return tmp_path / name, engines[-1]

    return run


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model" / "model.safetensors")


def same(one, two):
    one, two = weights(one), weights(two)
    return all(torch.equal(one[name], two[name]) for name in one)


def steps(folder):
    return [row for row in read_metrics(folder / "metrics.jsonl") if "reward/mean" in row]


def versions(folder):
    return [
        {json.loads(line)["policy_version"] for line in path.read_text().splitlines()}
        for path in sorted((folder / "completions").iterdir())
    ]


def test_no_staleness_in_a_thread_is_the_synchronous_loop(start, recipe_values, tmp_path):
    values = {**recipe_values, "output": str(tmp_path / "plain")}
    train(load_settings(RLRecipe, values), console=Console(quiet=True))
    folder, _ = start("inline", 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "rlvr.rl.rollouts.SynchronousRollouts", lambda run: AsynchronousRollouts(run, 0, [])
        )
        threaded, _ = start("threaded", 0, jitter(1, 0.1), jitter(2, 0.1))
    for other in (folder, threaded):
        assert same(tmp_path / "plain", other)
        assert versions(other) == [{0}, {1}, {2}, {3}, {4}, {5}]
        # The copy's weights may lie otherwise in memory, and a product round otherwise.
        assert [row["completion/logprob_mean"] for row in steps(other)] == pytest.approx(
            [row["completion/logprob_mean"] for row in steps(tmp_path / "plain")], abs=1e-6
        )


def test_one_version_of_staleness_repeats_whichever_thread_is_quicker(start):
    first, _ = start("first", 1, jitter(1, 0.3))
    second, _ = start("second", 1, nothing, jitter(2, 0.3))
    assert same(first, second)
    assert versions(first) == versions(second) == [{0}, {0}, {1}, {2}, {3}, {4}]
    assert [row["rollout/staleness_mean"] for row in steps(first)] == [0, 1, 1, 1, 1, 1]
    assert all(row["rollout/staleness_1"] == 1 for row in steps(first)[1:])


@pytest.mark.parametrize("fails_at", [3, 4, 6])
def test_a_run_cut_off_anywhere_ends_where_it_would_have_ended(start, fails_at):
    whole, _ = start("whole", 1, jitter(3, 0.1), jitter(4, 0.1))
    calls = []

    def fail():
        calls.append(1)
        if len(calls) == fails_at:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        start("cut", 1, jitter(5, 0.1), fail)
    resumed, engine = start("cut", 1, jitter(6, 0.1), jitter(7, 0.1), resume=True)
    assert same(whole, resumed)
    assert versions(whole) == versions(resumed)
    saved = (fails_at - 1) // 2 * 2
    assert engine.rollouts <= 6 - saved - (0 < saved < 6), "what was saved is not sampled again"


def test_nothing_is_older_than_allowed_or_thrown_away(start):
    folder, engine = start("two", 2, nothing, lambda: time.sleep(0.2))
    assert engine.rollouts == 6
    ages = [
        max(step - 1 - version for version in found)
        for step, found in enumerate(versions(folder), 1)
    ]
    assert max(ages) == 2, "a slow learner lets the engine run ahead"
    assert [row["rollout/staleness_max"] for row in steps(folder)] == ages
    groups = Counter()
    for row in steps(folder):
        groups.update({age: row.get(f"rollout/staleness_{age}", 0) for age in range(3)})
    assert sum(groups.values()) == pytest.approx(6)


def overlaps(folder):
    spans = [json.loads(line) for line in (folder / "timeline.jsonl").read_text().splitlines()]
    made = [s for s in spans if s["lane"] == "engine" and s["phase"] == "generate"]
    used = [s for s in spans if s["lane"] == "learner" and s["phase"] == "update"]
    return sum(m["begin"] < u["end"] and u["begin"] < m["end"] for m in made for u in used)


def test_sampling_and_updating_overlap(start):
    def pause():
        time.sleep(0.2)

    ahead, _ = start("ahead", 1, pause, pause, evaluation={})
    assert overlaps(ahead) >= 4
    inline, _ = start("inline", 0, pause, pause, evaluation={})
    assert overlaps(inline) == 0


def test_a_fault_of_the_engine_ends_the_run_with_its_words(start):
    calls = []

    def fail():
        calls.append(1)
        if len(calls) == 4:
            raise ValueError("no room")

    with pytest.raises(ValueError, match="no room"):
        start("faulty", 1, fail)


def test_a_rollout_survives_the_way_through_a_checkpoint(start, tmp_path):
    folder, _ = start("saved", 1, checkpoint={"every": 3, "keep": 2})
    path = folder / "checkpoints" / "step_000003" / "state.json"
    (saved,) = json.loads(path.read_text())["rollouts"]["queue"]
    assert saved["step"] == 4
    rollout = rollout_from_state(saved)
    assert rollout.version == 2
    assert len(rollout.groups) == 6
    assert json.loads(json.dumps(rollout_state(rollout))) == saved


def test_work_called_off_starts_no_engine_and_ends_soon(start, exact_policy):
    """What the cancelling callback raises comes out of the engine at the next sign of life."""

    class CalledOff(Exception):
        pass

    def cancel(_done, _total):
        raise CalledOff

    engine = TransformersEngine(exact_policy, [2])
    with pytest.raises(CalledOff):
        engine.generate([Request((1, 5), (1, 2))], Sampling(max_tokens=4), cancel)


def test_an_engine_on_the_learners_own_weights_is_refused(recipe_values):
    recipe_values["rollout"]["max_staleness"] = 1
    with pytest.raises(ValueError, match=r"max_staleness = 1.*choose the engine vllm"):
        load_settings(RLRecipe, recipe_values)


def test_ratios_against_the_engine_exclude_a_second_correction(recipe_values):
    recipe_values["learner"]["old_logprobs_from"] = "rollout"
    load_settings(RLRecipe, recipe_values)
    recipe_values["correction"] = {"name": "truncated"}
    with pytest.raises(ValueError, match=r"old_logprobs_from = 'rollout'.*drop one"):
        load_settings(RLRecipe, recipe_values)
