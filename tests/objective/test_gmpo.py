"""GMPO: TRL's own loss as the oracle, the specified points, and where its gradient is."""

import os

import pytest
import torch

from rlvr.objective.objective import Objective
from rlvr.objective.policy_losses.gmpo import Gmpo
from rlvr.objective.reducers import SequenceMean
from rlvr.rl.recipe import RLRecipe
from rlvr.settings import load_settings
from tests.objective.columns import row, slope, whole
from tests.objective.test_trl_oracle import our_loss, random_columns, trl_loss


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bound", [0.4, 0.1])
def test_value_and_gradient_equal_trls(monkeypatch, seed, bound):
    monkeypatch.setitem(os.environ, "TRL_EXPERIMENTAL_SILENCE", "1")
    trainer_class = pytest.importorskip("trl.experimental.gmpo").GMPOTrainer
    columns = random_columns(seed)
    theirs = trl_loss(trainer_class, columns, loss_type="grpo", epsilon=bound, epsilon_high=bound)
    ours = our_loss(Objective(Gmpo(bound=bound), (), SequenceMean()), columns)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    gradients = [torch.autograd.grad(loss, columns.logprobs)[0] for loss in (ours, theirs)]
    assert torch.allclose(gradients[0] * columns.mask, gradients[1], atol=1e-14)
    assert 3 < int((gradients[1] != 0).sum()) < int(columns.mask.sum()), "some clipped, some not"


@pytest.mark.parametrize(
    ("bound", "sign", "ratio"),
    [(0.4, 1.0, 1.068939), (0.4, -1.0, 1.105171), (0.2, 1.0, 1.0), (0.2, -1.0, 1.142631)],
)
def test_the_specified_points(bound, sign, ratio):
    case = row(torch.tensor([0.5, -0.3, 0.1]).double().exp().tolist(), [sign] * 3)
    objective = Objective(Gmpo(bound=bound), (), SequenceMean())
    loss, metrics = whole(objective, case)
    assert -sign * loss.item() == pytest.approx(ratio, abs=1e-6)
    assert metrics["policy/sequence_ratio_max"] == pytest.approx(ratio, abs=1e-6)
    # log r = 0.5 goes too far up, -0.3 too far down where the bound is 0.2
    cut = 1 if (sign > 0 or bound < 0.3) else 0
    assert metrics["policy/clip_fraction"] == pytest.approx(cut / 3)
    free = [value for value in slope(Gmpo(bound=bound), case) if value]
    assert free == pytest.approx([-sign * ratio] * (3 - cut), abs=1e-6)


def test_another_reducer_is_refused():
    values = {"output": "x", "steps": 1, "model": {"path": "x"}}
    values["data"] = {"source": {"name": "arithmetic", "digits": 1, "size": 4}}
    with pytest.raises(ValueError, match=r"set reducer\.name = 'sequence_mean'"):
        load_settings(RLRecipe, values, ["policy_loss.name=gmpo"])
    load_settings(RLRecipe, values, ["policy_loss.name=gmpo", "reducer.name=sequence_mean"])
