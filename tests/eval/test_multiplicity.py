"""Disagreement of near-equal models: its inequalities, its null, and its place in comparisons."""

import numpy as np
import pytest
from typer.testing import CliRunner

from eval.compare import compare, disagreement_table, disputed_problems
from eval.multiplicity import disagreement, multiplicity, near
from rlvr.cli import app
from tests.eval.test_compare import write_scored


def drawn(models=5, problems=60, n=8, seed=0, spread=0.0):
    """Pass rates of models whose true rates differ by ``spread``, and their counts."""
    random = np.random.default_rng(seed)
    true = random.uniform(size=problems)
    rates = np.clip(true + spread * random.standard_normal((models, problems)), 0, 1)
    counts = np.full((models, problems), n)
    return random.binomial(counts, rates) / counts, counts


@pytest.mark.parametrize("seed", range(5))
def test_discrepancy_is_at_most_ambiguity_and_both_fall_with_delta(seed):
    rates, _ = drawn(seed=seed, spread=0.2)
    last = (1.0, 1.0)
    for delta in (0.05, 0.1, 0.3, 0.5, 0.9, 1.0):
        ambiguity, discrepancy = disagreement(rates, delta)
        assert discrepancy <= ambiguity
        assert ambiguity <= last[0]
        assert discrepancy <= last[1]
        last = ambiguity, discrepancy


@pytest.mark.parametrize("seed", range(3))
def test_they_grow_with_epsilon_and_with_the_set(seed):
    rates, _ = drawn(models=8, seed=seed, spread=0.2)
    last = multiplicity(rates, None, epsilon=0)
    for epsilon in (0.005, 0.01, 0.03, 0.1, 1.0):
        found = multiplicity(rates, None, epsilon=epsilon)
        assert set(last.members) <= set(found.members)
        assert 0 in found.members
        for name in ("ambiguity", "discrepancy", "width"):
            assert getattr(found, name) >= getattr(last, name)
        last = found
    assert len(last.members) == 8
    for size in range(1, 8):
        smaller, larger = disagreement(rates[:size], 0.3), disagreement(rates[: size + 1], 0.3)
        assert smaller[0] <= larger[0]
        assert smaller[1] <= larger[1]


def test_equal_models_never_disagree():
    rates, _ = drawn(models=1)
    found = multiplicity(np.repeat(rates, 4, 0), None)
    assert (found.ambiguity, found.discrepancy, found.width) == (0, 0, 0)
    assert found.disputed == ()


def test_a_case_by_hand():
    rates = np.array([[0.0, 0.5, 1.0, 0.5], [0.5, 0.5, 0.5, 0.5], [0.0, 0.75, 1.0, 0.25]])
    found = multiplicity(rates, None, delta=0.3)
    assert found.members == (0, 1, 2)
    assert (found.ambiguity, found.discrepancy) == (0.5, 0.5)
    assert found.width == pytest.approx((0.5 + 0.25 + 0.5 + 0.25) / 4)
    assert found.disputed == (0, 2)
    assert multiplicity(rates, None, delta=0.25).disputed == (0, 2, 1, 3)


def test_who_is_near_is_symmetric_and_knows_rounding():
    assert near([0.5, 0.51, 0.49, 0.511, 0.1], 0.01) == (0, 1, 2)
    assert near([0.3, 0.1 + 0.2], 0) == (0, 1)


def test_the_null_covers_models_that_are_one_and_not_those_that_are_not():
    """Of forty sets of equal models few are called different; of unequal ones nearly all."""
    p_equal, p_other, gaps = [], [], []
    for seed in range(40):
        for spread, found in ((0.0, p_equal), (0.25, p_other)):
            rates, counts = drawn(seed=seed, spread=spread)
            result = multiplicity(rates, counts, epsilon=1, draws=200)
            found.append(result.ambiguity_null.p)
            if not spread:
                gaps.append(result.ambiguity - result.ambiguity_null.mean)
    assert sum(p <= 0.05 for p in p_equal) <= 6
    assert sum(p <= 0.05 for p in p_other) >= 36
    assert abs(np.mean(gaps)) < 0.03
    assert min(p_equal + p_other) > 0


def test_the_null_repeats_itself_and_shrinks_with_samples():
    rates, counts = drawn(spread=0.1)
    one, two = (multiplicity(rates, counts, epsilon=1, draws=50, seed=3) for _ in range(2))
    assert one == two
    more = multiplicity(rates, 100 * counts, epsilon=1, draws=50, seed=3)
    assert more.ambiguity_null.mean < one.ambiguity_null.mean


@pytest.mark.parametrize(("epsilon", "delta"), [(-0.1, 0.3), (0.1, 0.0), (0.1, 1.5)])
def test_what_makes_no_sense_is_refused(epsilon, delta):
    with pytest.raises(ValueError, match="difference of"):
        multiplicity(np.zeros((3, 2)), None, epsilon=epsilon, delta=delta)


def three(tmp_path, **options):
    return [
        write_scored(tmp_path / name, {"x": counts}, **options)
        for name, counts in (
            ("a", [4, 0, 2, 2] * 4), ("b", [0, 4, 2, 2] * 4), ("c", [4, 0, 2, 2] * 4)
        )
    ]  # fmt: skip


def test_comparisons_name_what_near_equal_evaluations_dispute(tmp_path):
    folders = three(tmp_path)
    found = compare(folders, tournaments=50, resamples=3)
    (item,) = found.disagreements
    assert (item.metric, item.models) == ("pass rate", ("a", "b", "c"))
    assert item.found.ambiguity == 0.5
    assert item.found.ambiguity_null.p < 0.05
    assert item.disputed[0] in ("p0", "p1")
    assert disagreement_table(found).row_count == 2
    assert "x disputed among a, b, c: p0" in disputed_problems(found)[0]
    result = CliRunner().invoke(app, ["compare", *map(str, folders), "--tournaments", "50"])
    assert result.exit_code == 0, result.output
    assert "ambiguity" in result.output
    assert "x disputed among a, b, c: p0, p1" in result.output


def test_too_few_near_equal_ones_are_pointed_out(tmp_path):
    folders = three(tmp_path)[:2]
    far = write_scored(tmp_path / "far", {"x": [4] * 16})
    found = compare([*folders, far], tournaments=50, resamples=3)
    assert found.disagreements == ()
    assert any("2 of 3 evaluations are within 0.01" in note for note in found.notes)
    wide = compare([*folders, far], tournaments=50, resamples=3, epsilon=1)
    assert len(wide.disagreements) == 1
    assert compare(folders).disagreements == ()
