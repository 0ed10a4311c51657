"""A policy gets better at its task from pairs of its own right and wrong answers."""

import pytest
from rich.console import Console

from tests.benchmarks.preference_tiny import ACCURACY, prepare, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """The quickstart's model after its warm-up, and pairs of its graded samples."""
    folder = tmp_path_factory.mktemp("preference") / "seed0"
    assert prepare(folder, 0, QUIET)["pairs"] > 300
    return folder


@pytest.mark.parametrize("loss", ["DPO", "cCPO", "by hand"])
def test_accuracy_rises_on_pairs_of_the_policys_own_samples(work, loss):
    curves = train(work, 0, loss, QUIET)
    accuracy = [value for _, value in curves[ACCURACY]]
    # Five standard errors of a difference of shares of 128 problems, at most 0.062 each.
    assert accuracy[-1] > accuracy[0] + 0.3
    assert curves["learner/skipped_updates"][-1][1] == 0
