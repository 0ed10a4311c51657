"""Selection bias: figures against full enumeration and draws; silence where nothing is chosen."""

import itertools
import random
from statistics import fmean

import pytest
import torch

from rlvr.objective.advantages.group import GroupAdvantage
from rlvr.rl.batch import build_batch
from rlvr.rl.bias import bias_metrics, difference_error, ks_distance
from rlvr.runs.scoring import ScoredCompletion
from rlvr.types import Completion
from tests.training import run


class Verdict:
    """As much of a grade as the figures look at."""

    def __init__(self, correct):
        self.correct = correct


def item(group, sample, length, right=False, finish="stop"):
    completion = Completion(
        "p", f"g{group}", sample, (1, 2), (7,) * length, (-1.0,) * length, finish, 0
    )
    return ScoredCompletion(completion, "", "", Verdict(right), float(right), {})


def group(number, lengths, right=0):
    return [item(number, i, length, i < right) for i, length in enumerate(lengths)]


def figures(drawn, kept, truncated="keep"):
    return bias_metrics(drawn, kept, build_batch(kept, GroupAdvantage(), truncated))


def length(one):
    return float(len(one.completion.token_ids))


def lengths(groups):
    return [length(one) for group in groups for one in group]


def test_nothing_is_said_where_all_that_was_drawn_is_trained_on():
    drawn = [group(n, [3, 5, 7]) for n in range(4)]
    assert figures(drawn, drawn) == {}
    assert figures(drawn, drawn[::-1]) == {}
    assert figures(drawn, drawn[:3])


def test_the_figures_are_their_formulas():
    short, long = [group(n, [2, 4], 1) for n in range(3)], [group(9, [10, 20], 2)]
    found = figures([*short, *long], long)
    assert found["bias/length"] == pytest.approx(15 / fmean([2, 4] * 3 + [10, 20]))
    assert found["bias/length_distance"] == pytest.approx(6 / 8)
    assert found["bias/difficulty"] == pytest.approx(1 - 5 / 8)


def test_the_distance_is_the_largest_gap_of_the_distribution_functions():
    draw = random.Random(0)
    for _ in range(20):
        one = [draw.randint(1, 9) for _ in range(draw.randint(1, 12))]
        other = [draw.randint(1, 9) for _ in range(draw.randint(1, 12))]
        gaps = [
            abs(sum(v <= x for v in one) / len(one) - sum(v <= x for v in other) / len(other))
            for x in range(11)
        ]
        assert ks_distance(one, other) == pytest.approx(max(gaps))
    assert ks_distance([1, 2], [1, 2]) == 0
    assert ks_distance([1, 2], [3, 4]) == 1


@pytest.mark.parametrize("taken", [1, 2, 3, 5])
def test_the_error_is_that_of_all_ways_to_choose_groups(taken):
    """Groups of equal lengths, whose means alone vary: the variance over every choice."""
    drawn = [group(n, [size] * 3) for n, size in enumerate([2, 3, 3, 7, 11, 12])]
    mean = fmean(lengths(drawn))
    ways = [*itertools.combinations(drawn, taken)]
    variance = fmean((fmean(lengths(way)) - mean) ** 2 for way in ways)
    assert difference_error(drawn, ways[0], length) == pytest.approx(variance**0.5)


def test_the_error_with_groups_of_other_steps_is_that_of_draws():
    """Five groups drawn, of which two are trained on, and three carried over."""
    draws = torch.Generator().manual_seed(0)
    values = torch.randn(200_000, 8, generator=draws)
    spread = float((values[:, [0, 1, 5, 6, 7]].mean(1) - values[:, :5].mean(1)).std())
    population = [group(n, [size]) for n, size in enumerate([4, 8, 15, 16, 23, 42, 50, 61])]
    sizes = torch.tensor(lengths(population))
    found = difference_error(population[:5], [*population[:2], *population[5:]], length)
    assert found / float(sizes.std()) == pytest.approx(spread, rel=0.01)


def test_masked_completions_count_as_not_trained_on():
    cut = [[item(n, 0, 4), item(n, 1, 8, finish="length")] for n in range(6)]
    found = figures(cut, cut, "mask")
    assert found["bias/length"] == pytest.approx(4 / 6)
    assert found["bias/length_z"] < -2
    assert figures(cut, cut) == {}


def test_what_is_taken_at_random_stays_within_the_error():
    draw, beyond = random.Random(1), 0
    for _ in range(300):
        drawn = [group(n, [draw.randint(1, 30) + 10 * (n % 3)] * 4) for n in range(24)]
        found = figures(drawn, draw.sample(drawn, 8))
        beyond += abs(found["bias/length_z"]) > 1.96
    assert 3 <= beyond <= 30  # of 15 expected


def test_a_run_that_filters_says_so_and_one_that_does_not_says_nothing(recipe_values):
    folder, rows = run(recipe_values, "steps=2")
    assert not [name for row in rows for name in row if name.startswith("bias/")]
    recipe_values["output"] = str(folder.parent / "filtered")
    _, rows = run(recipe_values, "steps=2", "rollout.dynamic_sampling_rounds=2")
    named = {name for row in rows for name in row if name.startswith("bias/")}
    assert {"bias/length", "bias/length_distance", "bias/difficulty"} <= named
