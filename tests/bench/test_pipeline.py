"""The model of the pipeline against what can be said by hand."""

import pytest

from rlvr.bench.pipeline import (
    Lengths,
    Measured,
    best_split,
    predict,
    rollout_seconds,
    update_seconds,
)

MEASURED = Measured(
    prompts_per_step=4,
    samples_per_prompt=8,
    prompt_tokens=10,
    lengths=Lengths(mean=50, p95=120, max_tokens=200),
    decode_s=0.01,
    decode_row_s=0.001,
    prefill_tokens_per_s=1000,
    max_num_seqs=8,
    trained_tokens_per_s=400,
    sync_s=0.5,
)


def test_equal_lengths_take_waves_of_full_engines():
    # Two engines of 8 places: 32 completions are two waves; every place reads two prompts.
    measured = MEASURED
    (first, second) = rollout_seconds([50] * 32, measured, 2)
    waves = 2 * 50 * (0.01 + 8 * 0.001)
    assert first == second == pytest.approx(waves + 16 * 10 / 1000)


def test_a_long_completion_decodes_alone_at_the_end():
    (taken,) = rollout_seconds([10, 100], MEASURED, 1)
    assert taken == pytest.approx(2 * 0.01 + 10 * 0.012 + 90 * 0.011)


def test_no_work_is_lost_or_done_twice():
    lengths = MEASURED.lengths.draw(32, 0)
    free = MEASURED.model_copy(update={"decode_s": 0.0, "prompt_tokens": 0})
    # Without a cost of a step, an engine's time is the tokens it decoded.
    total = sum(rollout_seconds(lengths.tolist(), free, 3))
    assert total == pytest.approx(0.001 * lengths.sum())


def test_lengths_have_the_mean_and_the_quantile_that_were_asked_for():
    wide = Lengths(mean=1000, p95=2500, max_tokens=10**6)
    drawn = wide.draw(200_000, 0)
    assert drawn.mean() == pytest.approx(1000, rel=0.01)
    assert (drawn < 2500).mean() == pytest.approx(0.95, abs=0.002)
    assert Lengths(mean=50, p95=120, max_tokens=60).draw(1000, 0).max() == 60


def test_in_turn_a_step_is_the_sum_and_ahead_it_is_the_longest():
    equal = MEASURED.model_copy(update={"lengths": Lengths(mean=50, p95=50, max_tokens=50)})
    own = rollout_seconds([50] * 32, equal, 1)[0]
    train = update_seconds(32 * 60, equal, 1)
    inline = predict(equal, 1, 1, staleness=0)
    assert inline.step_s == pytest.approx(own + train + 0.5)
    assert predict(equal, 0, 1, staleness=0).step_s == pytest.approx(own + train + 0.5)
    # One ahead: a rollout needs the last update but one, whose sync it waits for.
    ahead = predict(equal, 1, 1, staleness=1)
    assert ahead.step_s == pytest.approx(max(train, own, (own + train + 0.5) / 2), rel=0.02)


def test_learners_scale_as_told():
    one, four = update_seconds(1000, MEASURED, 1), update_seconds(1000, MEASURED, 4)
    assert one / four == pytest.approx(4 * 0.95**2)


def test_more_gpus_are_never_slower_and_the_split_is_the_best_of_all():
    seconds = [best_split(MEASURED, gpus, 1).step_s for gpus in (1, 2, 4, 8, 16)]
    assert seconds == sorted(seconds, reverse=True)
    every = [predict(MEASURED, rollout, 8 - rollout, 1).step_s for rollout in range(8)]
    assert best_split(MEASURED, 8, 1).step_s == pytest.approx(min(every))


def test_bad_splits_and_lengths_are_refused():
    with pytest.raises(ValueError, match="no log-normal"):
        Lengths(mean=10, p95=90, max_tokens=100)
    with pytest.raises(ValueError, match="too few"):
        best_split(MEASURED.model_copy(update={"gpus_per_learner": 4}), 2, 1)
    with pytest.raises(ValueError, match="needs 4"):
        predict(MEASURED.model_copy(update={"gpus_per_learner": 4}), 1, 2, 1)
