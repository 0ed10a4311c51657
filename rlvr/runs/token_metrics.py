"""Metrics of watched tokens and words.

For each set of words (such as those that start another line of thought): how often the policy
samples one of them as a token, with what probability, and the distribution of these probabilities.
Huang et al., arXiv:2510.03222, section 6, compare {but, wait, perhaps, alternatively, however} with
words that have no such meaning. For each single word: the number of responses that contain it. Wang
et al., arXiv:2504.20571, count "rethink", "recheck" and "recalculate". The paper does not say how
it matches; here case is ignored and inflections count, once per response.
"""

from collections.abc import Mapping, Sequence
from math import exp
from statistics import fmean, pstdev
from typing import Any

from rlvr.runs.scoring import ScoredCompletion

_BINS = 10


def token_ids(words: Sequence[str], tokenizer: Any) -> frozenset[int]:  # noqa: ANN401
    """Tokens that are one of the words, with or without a leading space or a capital letter."""
    found = set()
    for word in words:
        for form in {word, word.capitalize()}:
            for text in (form, f" {form}"):
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
                    found.add(int(ids[0]))
    return frozenset(found)


def watched_tokens(
    groups: Sequence[Sequence[ScoredCompletion]], sets: Mapping[str, frozenset[int]]
) -> dict[str, float]:
    """Count, mean probability and histogram in tenths of each set, over all sampled tokens."""
    probabilities: dict[str, list[float]] = {name: [] for name in sets}
    for item in (item for group in groups for item in group):
        completion = item.completion
        for token, logprob in zip(completion.token_ids, completion.logprobs, strict=True):
            for name, ids in sets.items():
                if token in ids:
                    probabilities[name].append(exp(logprob))
    metrics: dict[str, float] = {}
    for name, values in probabilities.items():
        metrics[f"watch/{name}/count"] = float(len(values))
        if not values:
            continue
        metrics[f"watch/{name}/probability"] = fmean(values)
        metrics[f"watch/{name}/probability_std"] = pstdev(values)
        tenths = [min(int(value * _BINS), _BINS - 1) for value in values]
        for tenth in range(_BINS):
            metrics[f"watch/{name}/tenth_{tenth}"] = tenths.count(tenth) / len(values)
    return metrics


def watched_words(
    groups: Sequence[Sequence[ScoredCompletion]], words: Sequence[str], prefix: str = "words/"
) -> dict[str, float]:
    """Share of responses that contain each word, and share that contain any of them."""
    if not words:
        return {}
    texts = [item.response.lower() for group in groups for item in group]
    shares = {f"{prefix}{word}": fmean(word.lower() in text for text in texts) for word in words}
    any_of_them = fmean(any(word.lower() in text for word in words) for text in texts)
    return {**shares, f"{prefix}any": any_of_them}
