"""Pairs of responses from the verifier's labels, for an explicit reward model.

With W the responses that passed and L those that failed:

    pass-fail   (w, l) in W x L     w is to score above l
    tie         (w, w') in W x W    both are to score alike; the labels say nothing of their order

Never L x L: that two answers are wrong does not make them equally wrong, and training on such pairs
hurt. SoliReward (arXiv:2512.22170), whose pairs cross prompts: a label is of one
response, so any pass may stand against any failure.

Across prompts the model is also told which prompts are easy (their responses pass), and that is all
it needs to order such pairs: a signal that group advantages take away again. So the share of pairs
within prompts is a setting, prompts are drawn uniformly whatever the number of their responses, and
measures within prompts stand beside those over all (``rlvr/reward_models/quality.py``).

Across prompts there is no implicit reward: of beta log [pi(y | x) / ref(y | x)] + beta log Z(x) the
last term cancels within a prompt alone. Losses of the DPO family therefore refuse such pairs
(:func:`check_one_prompt`).
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pydantic import Field

from rlvr.settings import Settings

Pair = tuple[int, int]
"""Places of two responses in the data: one that passed, and one that failed or passed too."""

ACROSS_PROMPTS = (
    "in an implicit reward the partition function beta log Z(x) cancels within a prompt alone, so "
    "pairs across prompts serve an explicit reward model (task: reward_model) and no loss of the "
    "DPO family"
)


class PairSettings(Settings):
    """Which pairs are made of labelled responses."""

    within: float = Field(1.0, ge=0, le=1)
    """Share of pairs whose responses answer the same prompt; the others cross prompts."""
    ties: float = Field(0.0, ge=0)
    """Pairs of two right responses for every pair of a right and a wrong one: 0.25 is one to four
    (a place to start), 0 leaves them out."""
    size: int | None = Field(None, ge=1)
    """Pairs of a right and a wrong response; null is as many as there are within prompts."""


def all_pairs(labels: Sequence[bool], groups: Sequence[str]) -> list[Pair]:
    """(right, wrong) for all right x wrong responses of each prompt, by place in the data.

    Prompts whose responses are all right or all wrong give none.

    Args:
        labels: Whether each response is right.
        groups: The prompt that each response belongs to.
    """
    pairs = []
    for rows in members(groups).values():
        right = [row for row in rows if labels[row]]
        wrong = [row for row in rows if not labels[row]]
        pairs += [(good, bad) for good in right for bad in wrong]
    return pairs


def build_pairs(
    labels: Sequence[bool], groups: Sequence[str], settings: PairSettings, seed: int
) -> list[Pair]:
    """Distinct pairs as the settings ask for them, pass-fail ones first.

    Prompts take turns, in random order; where all pairs within prompts are wanted, and nothing
    else, the result is :func:`all_pairs`.

    Args:
        labels: Whether each response is right.
        groups: The prompt that each response belongs to.
        settings: How many, and of what kind.
        seed: Which are drawn.

    Raises:
        ValueError: There are not as many.
    """
    available = all_pairs(labels, groups)
    size = len(available) if settings.size is None else settings.size
    if size == 0:
        raise ValueError(
            f"none of {len(set(groups))} problems has both right and wrong responses, so there are "
            "no pairs within prompts; sample more of each, or set pairs.size and pairs.within = 0 "
            "to pair across prompts"
        )
    right = _of(members(groups), labels, True)
    wrong = _of(members(groups), labels, False)
    generator = random.Random(f"pairs {seed}")
    within = round(settings.within * size)
    found = list(available)
    if within < len(available):
        found = _taking_turns(generator, _by_prompt(available, groups), within)
    _check_enough("right x wrong pairs within prompts", within, len(found), "size or pairs.within")
    found += _crossing(generator, right, wrong, size - within, ordered=True)
    ties = round(settings.ties * size)
    inside = round(settings.within * ties)
    candidates = {
        prompt: [(a, b) for place, a in enumerate(rows) for b in rows[place + 1 :]]
        for prompt, rows in right.items()
    }
    tied = _taking_turns(generator, candidates, inside)
    _check_enough("pairs of right responses within prompts", inside, len(tied), "ties")
    return found + tied + _crossing(generator, right, right, ties - inside, ordered=False)


def check_one_prompt(pairs: Iterable[Pair], groups: Sequence[str]) -> None:
    """See that both responses of every pair answer one prompt, as an implicit reward needs it.

    Raises:
        ValueError: A pair crosses prompts.
    """
    for first, second in pairs:
        if groups[first] != groups[second]:
            raise ValueError(
                f"responses {first} and {second} answer different prompts, {groups[first]!r} and "
                f"{groups[second]!r}; {ACROSS_PROMPTS}"
            )


def members(groups: Sequence[str]) -> dict[str, list[int]]:
    """The places of each prompt's responses, prompts in order of their first."""
    found: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        found.setdefault(group, []).append(row)
    return found


def held_out_prompts(groups: Sequence[str], share: float, seed: int) -> set[str]:
    """A share of the prompts, drawn at random and at least one: all responses of one go together.

    Raises:
        ValueError: Nothing would be left to train on.
    """
    names = list(members(groups))
    count = max(1, round(share * len(names)))
    if count >= len(names):
        raise ValueError(
            f"holding out {share} of {len(names)} problems leaves none to train on; hold out less, "
            "or sample more problems"
        )
    return set(random.Random(f"held out {seed}").sample(names, count))


def _of(
    prompts: Mapping[str, list[int]], labels: Sequence[bool], wanted: bool
) -> dict[str, list[int]]:
    """The rows of each prompt with that label; prompts without one are left out."""
    found = {
        prompt: [row for row in rows if labels[row] == wanted] for prompt, rows in prompts.items()
    }
    return {prompt: rows for prompt, rows in found.items() if rows}


def _by_prompt(pairs: Iterable[Pair], groups: Sequence[str]) -> dict[str, list[Pair]]:
    found: dict[str, list[Pair]] = {}
    for pair in pairs:
        found.setdefault(groups[pair[0]], []).append(pair)
    return found


def _taking_turns(
    generator: random.Random, candidates: Mapping[str, list[Pair]], count: int
) -> list[Pair]:
    """Up to ``count`` pairs, one of each prompt in turn until its own are used up."""
    left = {prompt: generator.sample(own, len(own)) for prompt, own in candidates.items() if own}
    found: list[Pair] = []
    while left and len(found) < count:
        for prompt in generator.sample(list(left), len(left)):
            if len(found) == count:
                break
            found.append(left[prompt].pop())
            if not left[prompt]:
                del left[prompt]
    return found


def _crossing(
    generator: random.Random,
    first: Mapping[str, list[int]],
    second: Mapping[str, list[int]],
    count: int,
    *,
    ordered: bool,
) -> list[Pair]:
    """``count`` distinct pairs of responses to different prompts, prompts drawn uniformly.

    Raises:
        ValueError: There are not as many.
    """
    if count == 0:
        return []
    same = sum(len(rows) * len(second.get(prompt, ())) for prompt, rows in first.items())
    total = sum(map(len, first.values())) * sum(map(len, second.values())) - same
    total = total if ordered else total // 2
    _check_enough("pairs across prompts", count, total, "size, raise pairs.within")
    if 2 * count > total:
        every = {pair if ordered else (min(pair), max(pair)) for pair in _all(first, second)}
        return generator.sample(sorted(every), count)
    one, other = list(first), list(second)
    found: dict[Pair, None] = {}
    while len(found) < count:
        left, right = generator.choice(one), generator.choice(other)
        if left != right:
            pair = (generator.choice(first[left]), generator.choice(second[right]))
            found[pair if ordered else (min(pair), max(pair))] = None
    return list(found)


def _all(first: Mapping[str, list[int]], second: Mapping[str, list[int]]) -> Iterator[Pair]:
    for left, own in first.items():
        for right, theirs in second.items():
            if left != right:
                yield from ((a, b) for a in own for b in theirs)


def _check_enough(what: str, wanted: int, there: int, remedy: str) -> None:
    if wanted > there:
        raise ValueError(
            f"{wanted} {what} are asked for and there are {there}; lower pairs.{remedy}, or sample "
            "more responses"
        )
