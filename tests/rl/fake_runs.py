"""Runs without a model: the true sampler, rollouts, ledger and checkpoints, and nothing to compute.

Completions and rewards follow from seeds. A run is cut off where it is told to, as a kill would
(:class:`Killed`), and goes on from its newest checkpoint.
"""

import hashlib
import random
from collections import Counter
from types import SimpleNamespace
from unittest import mock

from rich.console import Console

from reward import Grade
from rlvr.data import ProblemSampler, Prompt
from rlvr.files import append_line
from rlvr.learner.checkpoint import latest_checkpoint, load_state, save_checkpoint
from rlvr.objective.advantages.group import GroupAdvantage
from rlvr.ranks import Ranks
from rlvr.rl.batch import build_batch, rollout_metrics
from rlvr.rl.ledger import open_ledger, record_ledger
from rlvr.rl.recipe import RLRecipe
from rlvr.rl.rollouts import sampling_rollouts
from rlvr.rollout.engine import Assembly, Sample
from rlvr.runs.clock import Clock
from rlvr.runs.ledger import LEDGER
from rlvr.runs.log import _drop_after, _rounded
from rlvr.runs.scoring import ScoredCompletion
from rlvr.settings import load_settings, to_yaml
from rlvr.types import Message, Problem


class Killed(Exception):
    """The run ends here, whatever it was doing."""


PLACES = ("updated", "torn", "booked", "logged", "saved")
"""Where a step can be cut off: before its ledger rows, in them, before and after its metrics, and
after what is done between steps."""


def recipe_of(folder, **settings):
    """A recipe of which only the bookkeeping is carried out; keys ``rollout_...`` go there."""
    rollout = {k.removeprefix("rollout_"): v for k, v in settings.items() if "rollout_" in k}
    if rollout.get("max_staleness"):
        rollout["engine"] = {"name": "vllm"}
    values = {
        "output": str(folder),
        "steps": settings.get("steps", 5),
        "model": {"path": "none"},
        "data": {
            "source": {"name": "arithmetic", "digits": 1, "size": settings.get("size", 12)},
            "template": "plain",
        },
        "rollout": {"prompts_per_step": 3, "samples_per_prompt": 2, **rollout},
        "learner": {"updates_per_rollout": settings.get("updates", 1)},
        "reward": {"truncated": settings.get("truncated", "keep")},
        "checkpoint": {"every": settings.get("every", 2), "keep": 2},
        "log": {"ledger": settings.get("ledger", "hashes")},
        "seed": settings.get("seed", 0),
    }
    return load_settings(RLRecipe, values)


def go(recipe, kill=None):
    """Take the run's steps, from its newest checkpoint if there is one.

    Args:
        recipe: Of :func:`recipe_of`.
        kill: The step and the one of :data:`PLACES` where it is cut off; None does not.
    """
    with mock.patch("rlvr.rl.ledger.fingerprint", _fingerprint):
        _go(recipe, kill)


def _fingerprint(policy, trained=True):
    text = f"{policy.run.step} {policy.run.learner.updates}" if trained else "base"
    return hashlib.sha256(text.encode()).hexdigest()


def _go(recipe, kill):
    run, folder = FakeRun(recipe), recipe.output
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(to_yaml(recipe))
    checkpoint = latest_checkpoint(folder / "checkpoints")
    if checkpoint is not None:
        run.restore(load_state(checkpoint)[0])
    _drop_after(folder, run.step, Console(quiet=True))
    open_ledger(run)
    run.engine.publish(run.policy, run.step), run.engine.load()

    def reached(place):
        if kill == (run.step, place):
            raise Killed

    with sampling_rollouts(run) as rollouts:
        while run.step < recipe.steps:
            rollout = rollouts.next(Clock())
            batch = build_batch(rollout.groups, GroupAdvantage(), recipe.reward.truncated)
            run.learner.update(batch)
            run.step += 1
            rollouts.finished()
            rollouts.publish()
            reached("updated")
            metrics = rollout_metrics(rollout.sampled) | rollout.metrics | run.learner.metrics
            before = _size(folder / LEDGER)
            record_ledger(run, rollout, batch, metrics)
            if kill == (run.step, "torn"):
                _tear(folder / LEDGER, before)
            reached("torn")
            reached("booked")
            row = {name: _rounded(value) for name, value in metrics.items()}
            append_line(folder / "metrics.jsonl", {"step": run.step, **row})
            reached("logged")
            if run.step % recipe.checkpoint.every == 0 or run.step == recipe.steps:
                rollouts.settle()
                run.save(rollouts.state())
            reached("saved")


def _size(path):
    return path.stat().st_size if path.is_file() else 0


def _tear(path, before):
    """Leave a part of what was written last, as a kill in the middle of it may."""
    data = path.read_bytes()
    path.write_bytes(data[: before + (len(data) - before) * 2 // 3])


class FakeRun:
    """What rollouts and the ledger look at of a run."""

    def __init__(self, recipe):
        self.recipe, self.folder, self.step = recipe, recipe.output, 0
        size = recipe.data.source.size
        messages = (Message(role="user", content="x"),)
        problems = [Problem(f"p{n}", messages, "1", "test") for n in range(size)]
        self.prompts = [Prompt(problem, (1, n)) for n, problem in enumerate(problems)]
        self.places = {problem.id: n for n, problem in enumerate(problems)}
        self.sampler = ProblemSampler(size, recipe.seed)
        self.engine, self.scorer = SeededEngine(), SeededScorer()
        self.ranks = self.rollout_ranks = Ranks()
        self.share, self.data_digest = range, "0" * 16
        self.environments = None
        self.carry_over, self.rollouts_state = [], {}
        self.refused, self.dropped, self.ledger = Counter({"too_long": 1}), [], None
        self.log = SimpleNamespace(phase=lambda *_, **__: None, span=lambda *_: None)
        self.signals = SimpleNamespace(check=lambda: None)
        self.policy = SimpleNamespace(run=self, device=SimpleNamespace(type="cpu"))
        self.learner = FakeLearner(recipe.learner.updates_per_rollout)

    def next_prompts(self, count):
        return [self.prompts[index] for index in self.sampler.next(count)]

    def sync(self):
        return self.engine.publish(self.policy, self.step) | self.engine.load()

    def save(self, rollouts):
        state = {
            "step": self.step,
            "updates": self.learner.updates,
            "rollouts": rollouts,
            "ledger": self.ledger.head,
        }
        folder, keep = self.folder / "checkpoints", self.recipe.checkpoint.keep
        save_checkpoint(
            folder, self.step, write_model=lambda _: None, tensors={}, state=state, keep=keep
        )

    def restore(self, state):
        self.step, self.learner.updates = state["step"], state["updates"]
        self.rollouts_state = state["rollouts"]
        self.sampler.load_state_dict(self.rollouts_state["sampler"])


class FakeLearner:
    """Counts updates; completions of advantage zero are skipped."""

    def __init__(self, updates_per_rollout):
        self.per_rollout, self.updates, self.held_updates = updates_per_rollout, 0, 0
        self.advantages_BT = None

    def update(self, batch):
        self.advantages_BT = batch.advantages_BT
        self.updates += min(self.per_rollout, len(batch.group_index_B.unique()))

    def rows_to_run(self, batch):
        return [row for row in batch.rows_with_tokens if batch.advantages_BT[row].any()]

    @property
    def metrics(self):
        return {"learner/updates": self.updates, "learner/skipped_updates": 0}


class SeededEngine:
    """Lengths, ends and log-probabilities from the seed and the version of the weights."""

    overlaps = True

    def __init__(self):
        self.policy_version, self._published = 0, 0

    def publish(self, policy, version):
        self._published = version
        return {}

    def load(self):
        self.policy_version = self._published
        return {}

    def sync(self, policy, version):
        return self.publish(policy, version) | self.load()

    def generate(self, requests, sampling, progress=None, finished=None):
        assembly = Assembly(requests, progress, finished)
        for _, request, sample in assembly.missing():
            draw = random.Random(requests[request].seeds[sample] + self.policy_version)
            length = draw.randint(1, 4)
            logprobs = tuple(-draw.random() for _ in range(length))
            end = draw.choice(("stop", "length"))
            ids = tuple(draw.randint(3, 9) for _ in range(length))
            assembly.add(request, sample, Sample(ids, logprobs, end))
        return assembly.outputs


class SeededScorer:
    """A reward of 0 or 1 from the tokens."""

    def begin(self, groups, *, step, finished, check):
        return [[self._scored(c) for c in group.completions] for group in groups]

    def finish(self, begun, *, finished, tick):
        return [group for part in begun for group in part]

    def _scored(self, completion):
        right = sum(completion.token_ids) % 3 == 0
        grade = Grade(right, None, "integer", "integer", "", "ok")
        rewards = {"accuracy": float(right)}
        return ScoredCompletion(completion, "1", "x", grade, float(right), rewards)
