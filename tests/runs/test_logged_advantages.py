"""The completions log holds the advantages that the update used, whatever gave them."""

import json

import pytest
import torch

from rlvr.learner.learner import Learner
from rlvr.rl.record import trained_advantages
from tests.training import run

CRITIC = {"advantage": {"name": "gae", "lam": 0.5}, "critic": {"lr": 1e-3}}
PRIME = {"prime": {"lr": 1e-3, "update": "before"}}


@pytest.fixture
def trained(monkeypatch):
    """The batches that optimizer steps were taken from."""
    batches, steps = [], Learner._steps

    def recorded(self, batch):
        batches.append(batch)
        return steps(self, batch)

    monkeypatch.setattr(Learner, "_steps", recorded)
    return batches


@pytest.mark.parametrize(
    "method",
    [{"advantage": {"name": "reinforce_pp"}}, {}, CRITIC, PRIME],
    ids=["batch", "group", "critic", "prime"],
)
def test_logged_advantages_are_those_trained_on(recipe_values, trained, method):
    log = {"completions_per_step": 12, "completions_every": 1}
    values = {**recipe_values, **method, "steps": 1, "evaluation": {}, "log": log}
    # Lengths differ where every answer is wrong.
    term = {"function": "length", "parameters": {"target": 9}}
    values["reward"] = {"functions": [{"function": "accuracy"}, term]}
    folder, _ = run(values, "learner.updates_per_rollout=1")
    rows = [json.loads(x) for x in (folder / "completions" / "step_000001.jsonl").open()]
    assert len(rows) == 12
    batch = trained[-1]
    for row, advantages_T, mask_T in zip(rows, batch.advantages_BT, batch.mask_BT, strict=False):
        tokens = advantages_T[mask_T > 0].tolist()
        assert row["advantage"] == pytest.approx(sum(tokens) / len(tokens), abs=1e-6)
        if "token_advantages" in row:
            assert row["token_advantages"] == pytest.approx(tokens, abs=1e-4)
        else:
            assert len(set(tokens)) == 1
    assert any("token_advantages" in row for row in rows) == (method in (CRITIC, PRIME))
    assert any(row["advantage"] for row in rows)


def test_what_was_masked_out_has_no_advantage():
    assert trained_advantages(torch.ones(3), torch.zeros(3)) == {"advantage": None}
    one = trained_advantages(torch.tensor([0.5, 0.5, 0.0]), torch.tensor([1.0, 1.0, 0.0]))
    assert one == {"advantage": 0.5}
