"""Short texts: exact match and F1 as SQuAD counts them (Rajpurkar et al., arXiv 1606.05250).

The reference is a text, or a JSON list of texts any of which is right. Both sides are written in
lower case without punctuation and the articles a, an, the. An answer is right if it is then the
same as a reference; its score is the best F1 of its words: with c common words, of p in the answer
and g in the reference, 2c / (p + g). An empty list says that the question has no answer, which is
said as "unanswerable" or "no answer".
"""

import re
import string
from collections import Counter
from dataclasses import dataclass

from reward.domains.base import Domain, Judgement, read_json
from reward.verdict import GradingPolicy
from reward.word_answers import plain

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_ANSWER = ("unanswerable", "no answer")


@dataclass(frozen=True)
class Texts:
    """The accepted texts."""

    any_of: tuple[str, ...]


class TextDomain(Domain):
    """Exact match, with F1 as the score."""

    name = "text"

    def reference(self, gold: str) -> Texts:
        """A text, or a JSON list of texts."""
        found: object = gold
        if gold.lstrip()[:1] == "[":
            try:
                found = read_json(gold)
            except ValueError:
                found = gold  # a text in brackets
        texts = found if isinstance(found, list) else [found]
        if any(not isinstance(text, str) or not normal(text) for text in texts):
            raise ValueError(f"the reference {gold[:80]!r} has a text without words")
        return Texts(tuple(map(str, texts)) or _NO_ANSWER)

    def judge(self, text: str, reference: Texts, policy: GradingPolicy) -> Judgement:
        """Exact match, and the best F1."""
        said = plain(text)
        matched = any(normal(said) == normal(wanted) for wanted in reference.any_of)
        score = max(f1(said, wanted) for wanted in reference.any_of)
        return Judgement(score, "the same words" if matched else f"F1 {score:.3f}", matched)


def normal(text: str) -> str:
    """A text as SQuAD compares it."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def f1(said: str, wanted: str) -> float:
    """F1 of the words of two texts, each counted as often as it occurs."""
    left, right = normal(said).split(), normal(wanted).split()
    if not left or not right:
        return float(left == right)
    common = sum((Counter(left) & Counter(right)).values())
    return 2 * common / (len(left) + len(right))


DOMAINS = {"text": TextDomain()}
