"""Pairs from labels: the kinds asked for, in the numbers asked for, and never two failures."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr.data.preferences import PreferenceFile, load_preferences
from rlvr.reward_models.pairs import (
    PairSettings,
    all_pairs,
    build_pairs,
    check_one_prompt,
    held_out_prompts,
)

# Six prompts of which one is always failed and one always passed.
GROUPS = [name for name in "abcdef" for _ in range(8)]
LABELS = [place % 8 < passes for place in range(48) for passes in [[0, 1, 3, 5, 7, 8][place // 8]]]


def kinds(pairs):
    """Pass-fail pairs and ties, each within and across prompts."""
    found = Counter()
    for first, second in pairs:
        kind = "tie" if LABELS[second] else "win"
        found[kind, GROUPS[first] == GROUPS[second]] += 1
    return found


def test_by_default_they_are_all_pairs_within_prompts():
    pairs = build_pairs(LABELS, GROUPS, PairSettings(), 0)
    assert sorted(pairs) == sorted(all_pairs(LABELS, GROUPS))
    assert kinds(pairs) == {("win", True): 7 + 15 + 15 + 7}


@given(
    st.integers(1, 40),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.sampled_from([0.0, 0.25, 1.0]),
    st.integers(0, 5),
)
def test_numbers_and_kinds_are_as_configured(size, within, ties, seed):
    settings = PairSettings(within=within, ties=ties, size=size)
    pairs = build_pairs(LABELS, GROUPS, settings, seed)
    found = kinds(pairs)
    inside, tied = round(within * size), round(ties * size)
    assert found["win", True] == inside
    assert found["win", False] == size - inside
    assert found["tie", True] == round(within * tied)
    assert found["tie", True] + found["tie", False] == tied
    assert all(LABELS[first] for first, _ in pairs)  # so never two failures
    assert all(first != second for first, second in pairs)
    unordered = {frozenset(pair) for pair in pairs}
    assert len(unordered) == len(pairs)
    assert pairs == build_pairs(LABELS, GROUPS, settings, seed)


def test_another_seed_draws_others():
    settings = PairSettings(within=0.5, ties=0.25, size=30)
    assert build_pairs(LABELS, GROUPS, settings, 0) != build_pairs(LABELS, GROUPS, settings, 1)


def test_prompts_take_turns_however_many_responses_they_have():
    groups = ["small"] * 4 + ["large"] * 40
    labels = [True, True, False, False] + [True, False] * 20
    pairs = build_pairs(labels, groups, PairSettings(size=8), 0)
    assert Counter(groups[first] for first, _ in pairs) == {"small": 4, "large": 4}


def test_all_pairs_across_prompts_can_be_drawn_and_no_more():
    labels, groups = [True, True, False, False], ["a", "b", "a", "c"]
    pairs = build_pairs(labels, groups, PairSettings(within=0, size=3), 0)
    assert sorted(pairs) == [(0, 3), (1, 2), (1, 3)]
    with pytest.raises(ValueError, match="4 pairs across prompts are asked for and there are 3"):
        build_pairs(labels, groups, PairSettings(within=0, size=4), 0)
    ties = build_pairs(labels, groups, PairSettings(within=0, size=1, ties=1), 0)
    assert ties[1:] == [(0, 1)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (PairSettings(size=45), "45 right x wrong pairs within prompts are asked for and there"),
        (PairSettings(size=40, ties=5), "pairs of right responses within prompts"),
    ],
)
def test_what_there_is_not_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build_pairs(LABELS, GROUPS, settings, 0)


def test_without_mixed_prompts_pairs_have_to_cross():
    labels, groups = [True, True, False], ["a", "a", "b"]
    with pytest.raises(ValueError, match=r"pairs\.within = 0"):
        build_pairs(labels, groups, PairSettings(), 0)
    found = build_pairs(labels, groups, PairSettings(within=0, size=2), 0)
    assert sorted(found) == [(0, 2), (1, 2)]


@given(st.floats(0.05, 0.9), st.integers(0, 9))
def test_no_prompt_is_on_both_sides_of_a_split(share, seed):
    names = held_out_prompts(GROUPS, share, seed)
    assert names == held_out_prompts(GROUPS, share, seed)
    trained = {group for group in GROUPS if group not in names}
    assert trained
    assert not trained & names
    rows = [row for row, group in enumerate(GROUPS) if group in trained]
    pairs = all_pairs([LABELS[row] for row in rows], [GROUPS[row] for row in rows])
    assert {GROUPS[rows[row]] for pair in pairs for row in pair} <= trained
    with pytest.raises(ValueError, match="leaves none"):
        held_out_prompts(["a", "a"], 0.5, 0)


def test_an_implicit_reward_is_told_why_it_takes_no_pairs_across_prompts(tmp_path):
    pairs = build_pairs(LABELS, GROUPS, PairSettings(), 0)
    check_one_prompt(pairs, GROUPS)
    crossed = build_pairs(LABELS, GROUPS, PairSettings(within=0, size=3), 0)
    with pytest.raises(ValueError, match=r"partition function .* cancels within a prompt alone"):
        check_one_prompt(crossed, GROUPS)
    path = tmp_path / "crossed.jsonl"
    path.write_text(
        '{"chosen": [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}],'
        ' "rejected": [{"role": "user", "content": "2+2="}, {"role": "assistant", "content": "5"}]}'
    )
    with pytest.raises(ValueError, match=r"partition function .* cancels only within a prompt"):
        load_preferences(PreferenceFile(path=path), "pairs")
