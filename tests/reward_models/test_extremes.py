"""Losses of reward models and their gradients stay numbers in float32, whatever the rewards are."""

import itertools

import pytest
import torch

from rlvr.preference.losses.terms import Labelled
from rlvr.reward_models.outcome_losses import BradleyTerry, ListwiseLdr, PointwiseCrossEntropy
from rlvr.reward_models.process_losses import BagOfSteps, LabelCrossEntropy, StepLabels

HELD = [0.0, 1e-6, 90.0, 1e4, -90.0, -1e4]
PAIRS = torch.tensor(list(itertools.product(HELD, HELD)))


def check(loss_of):
    values = PAIRS.clone().requires_grad_()
    loss = loss_of(values)
    assert bool(loss.isfinite().all())
    (slope,) = torch.autograd.grad(loss.mean(), values)
    assert bool(slope.isfinite().all())


@pytest.mark.parametrize(
    "loss",
    [
        BradleyTerry(smoothing=0.1, pointwise_weight=1.0),
        PointwiseCrossEntropy(),
        PointwiseCrossEntropy(tau=0.0),
        PointwiseCrossEntropy(tau=2.0),
        ListwiseLdr(),
        ListwiseLdr(temperature=0.01),
        ListwiseLdr(normalise=True),
    ],
    ids=repr,
)
def test_outcome_losses_are_finite(loss):
    labels = torch.tensor([1.0, 0.0]).expand(len(PAIRS), 2)
    check(lambda rewards: loss(rewards, labels, torch.ones(len(PAIRS), 2, dtype=torch.bool)))


@pytest.mark.parametrize(
    "loss", [StepLabels(), StepLabels(form="paper"), BagOfSteps(), BagOfSteps(form="squared")]
)
def test_losses_of_steps_are_finite(loss):
    labels = torch.tensor([1.0, 1.0]).expand(len(PAIRS), 2)
    check(lambda ratios: loss(ratios, labels))


def test_the_loss_of_labels_is_finite():
    labels = torch.arange(len(PAIRS)) % 2
    check(lambda values: LabelCrossEntropy()(Labelled(values[:, 0], values[:, 1], labels)))
