"""Forced lengths and the batches made of them."""

import pytest

from rlvr.bench.workloads import completion_lengths, made_up_batch


def test_lengths_are_what_their_names_say():
    assert completion_lengths("uniform", 4, 9) == [9] * 4
    assert completion_lengths("outlier", 4, 64) == [8, 8, 8, 64]
    for count in (8, 10, 32):
        lengths = completion_lengths("lognormal", count, 400)
        assert max(lengths) == 400
        assert sum(lengths) == pytest.approx(count * 200, rel=0.03)
        assert sorted(lengths) != lengths or count % 5 == 0


def test_unknown_work_is_refused():
    with pytest.raises(ValueError, match="uniform, lognormal, outlier"):
        completion_lengths("normal", 4, 8)
    with pytest.raises(ValueError, match="must be at least 1"):
        completion_lengths("uniform", 0, 8)
    with pytest.raises(ValueError, match="groups of 2"):
        made_up_batch([3, 4, 5], prompt_tokens=2, group_size=2, vocab_size=9)


def test_a_made_up_batch_has_the_lengths_and_shares_prompts_in_groups():
    batch = made_up_batch([3, 1, 2, 2], prompt_tokens=5, group_size=2, vocab_size=50)
    assert [len(ids) for ids in batch.completion_ids] == [3, 1, 2, 2]
    assert batch.mask_BT.sum(1).tolist() == [3, 1, 2, 2]
    assert batch.prompt_ids[0] == batch.prompt_ids[1] != batch.prompt_ids[2]
    again = made_up_batch([3, 1, 2, 2], prompt_tokens=5, group_size=2, vocab_size=50)
    assert again.completion_ids == batch.completion_ids
