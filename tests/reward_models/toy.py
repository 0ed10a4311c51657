"""Two autoregressive models small enough to enumerate: vocabulary 3, length 4, float64."""

import itertools

import torch

VOCABULARY, LENGTH = 3, 4
COMPLETE = list(itertools.product(range(VOCABULARY), repeat=LENGTH))


class Toy:
    """A distribution over the next token for every prefix, drawn at random."""

    def __init__(self, seed, scale=1.5):
        generator = torch.Generator().manual_seed(seed)
        self.table = {
            prefix: (
                scale * torch.randn(VOCABULARY, generator=generator, dtype=torch.float64)
            ).log_softmax(-1)
            for length in range(LENGTH)
            for prefix in itertools.product(range(VOCABULARY), repeat=length)
        }

    def logprobs(self, tokens):
        """Log-probabilities [T] of a sequence's tokens."""
        return torch.stack([self.table[tokens[:i]][token] for i, token in enumerate(tokens)])

    def all_logprobs(self):
        """[81, 4], in the order of COMPLETE."""
        return torch.stack([self.logprobs(tokens) for tokens in COMPLETE])


def continuations(prefix):
    """Rows of COMPLETE that begin with a prefix."""
    return [row for row, tokens in enumerate(COMPLETE) if tokens[: len(prefix)] == prefix]


def prefixes():
    for length in range(LENGTH + 1):
        yield from itertools.product(range(VOCABULARY), repeat=length)
