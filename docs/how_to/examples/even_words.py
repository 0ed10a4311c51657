"""A reward function in a file of one's own: answers of an even number of words.

A recipe in this folder names it by

    reward: {functions: [{function: accuracy}, {function: "even_words.py:even_words", weight: 0.1}]}
"""

from reward.functions import RewardInput


def even_words(item: RewardInput, *, value: float = 1.0) -> float:
    """``value`` where the response has an even number of words, at least two, else 0."""
    words = len(item.response.split())
    return value if words and words % 2 == 0 else 0.0
