"""Micro-batches are dealt whole, equally many to each rank, and with nearly equal work."""

import random

import pytest

from rlvr.learner.partition import partition
from rlvr.policy.batching import plan_padded

LENGTHS = [random.Random(0).randrange(10, 200) for _ in range(61)]


def cost(micro):
    return len(micro) * max((LENGTHS[row] for row in micro), default=0)


def plan(budget):
    def planned(rows):
        found = plan_padded([LENGTHS[row] for row in rows], budget)
        return [tuple(rows[index] for index in micro) for micro in found]

    return planned


def deal_rows(count, budget, ranks):
    return partition([(row,) for row in range(count)], cost, plan(budget), ranks)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("budget", [1, 300, 2000, 100_000])
@pytest.mark.parametrize("rows", [1, 5, 61])
def test_every_row_is_dealt_once_and_every_rank_has_as_many_micro_batches(ranks, budget, rows):
    shares = deal_rows(rows, budget, ranks)
    assert len(shares) == ranks
    assert len({len(share) for share in shares}) == 1
    dealt = sorted(row for share in shares for micro in share for row in micro)
    assert dealt == list(range(rows))
    assert all(cost(micro) <= max(budget, max(LENGTHS)) for share in shares for micro in share)


def test_nobody_idles_while_there_are_rows_to_split():
    shares = partition([tuple(range(8))], cost, plan(100_000), 4)
    assert sorted(len(micro) for share in shares for micro in share) == [2, 2, 2, 2]


def test_a_rank_without_rows_gets_the_empty_micro_batch():
    shares = deal_rows(3, 1, 2)
    assert sorted(share.count(()) for share in shares) == [0, 1]


def test_work_is_balanced():
    """61 rows over 4 ranks, padding included."""
    load = [sum(cost(micro) for micro in share) for share in deal_rows(61, 800, 4)]
    assert min(load) > 0.9 * max(load)


def test_one_process_runs_the_plan_as_it_is():
    assert deal_rows(61, 500, 1) == [plan_padded(LENGTHS, 500)]
