"""Pathways through a mixture of experts: which experts a sample goes to, layer by layer.

A sample's pathway is the string of its experts over the layers. Pooled over the sample's P
positions, w_l = mean_p softmax(g_lp) are its routing weights in layer l, and

    pathway       for each layer the K experts of largest w_l, the largest first; a symbol is a pair
                  (layer, expert), so equal numbers in different layers are different symbols
    distance      Levenshtein(s_i, s_j) / |s|, mean over pairs of samples; in [0, 1]
    consistency   mean over neighbouring layers of cos(c_l, c_{l+1}), with c_l = sum of w_le u_le
                  over the K chosen experts; in [-1, 1]

Li et al., "Where to find grokking in LLM pretraining?" (arXiv:2506.21551), report that distance
falls and consistency rises when a model goes from memorising to generalising, without any test
data. How token routings are pooled per sample and what an expert's embedding u is, the text at hand
does not say: here weights are averaged, and u_le is the router's row for the expert.
"""

import random
from collections.abc import Sequence
from statistics import fmean

import torch

Pathway = tuple[tuple[int, int], ...]


def pooled_weights(logits_PME: torch.Tensor) -> torch.Tensor:
    """A sample's routing weights [M, E] from router logits at its P positions."""
    return logits_PME.double().softmax(-1).mean(0)


def pathway(weights_ME: torch.Tensor, chosen: int) -> Pathway:
    """The string of M x ``chosen`` symbols (layer, expert); of equal weights the lower expert."""
    order_ME = weights_ME.argsort(dim=-1, descending=True, stable=True)[:, :chosen]
    return tuple((layer, e) for layer, row in enumerate(order_ME.tolist()) for e in row)


def levenshtein(first: Sequence[object], second: Sequence[object]) -> int:
    """Fewest insertions, deletions and replacements that make ``second`` of ``first``.

    Myers' algorithm on the bits of whole numbers, in the form of Hyyrö (2003): a column of the
    table in one go, so that strings of a hundred symbols cost microseconds a symbol.
    """
    if not first:
        return len(second)
    masks: dict[object, int] = {}
    for index, symbol in enumerate(first):
        masks[symbol] = masks.get(symbol, 0) | 1 << index
    last, every = 1 << len(first) - 1, (1 << len(first)) - 1
    up, down, distance = every, 0, len(first)
    for symbol in second:
        equal = masks.get(symbol, 0)
        across = equal | down
        equal |= (((equal & up) + up) ^ up) & every
        rises, falls = (down | ~(equal | up)) & every, up & equal
        distance += bool(rises & last) - bool(falls & last)
        rises = (rises << 1 | 1) & every
        falls = falls << 1 & every
        up, down = (falls | ~(across | rises)) & every, rises & across
    return distance


def mean_distance(pathways: Sequence[Pathway], pairs: int, seed: int = 0) -> float:
    """Mean distance over length, of all pairs or of ``pairs`` drawn ones; 0 of a single sample."""
    count = len(pathways)
    every = [(i, j) for i in range(count) for j in range(i)]
    if not every:
        return 0.0
    drawn = every if len(every) <= pairs else random.Random(f"pathways {seed}").sample(every, pairs)
    return fmean(levenshtein(pathways[i], pathways[j]) / len(pathways[i]) for i, j in drawn)


def consistency(weights_ME: torch.Tensor, embeddings: Sequence[torch.Tensor], chosen: int) -> float:
    """How much neighbouring layers agree on a sample, in [-1, 1]; 1 where there is one layer.

    Args:
        weights_ME: Its routing weights.
        embeddings: Of each layer the E experts', [E, D].
        chosen: K.
    """
    centres = []
    for weights_E, rows_ED in zip(weights_ME, embeddings, strict=True):
        kept = weights_E.topk(chosen)
        centres.append(kept.values.double() @ rows_ED.double()[kept.indices])
    if len(centres) < 2:
        return 1.0
    cosines = torch.nn.functional.cosine_similarity(
        torch.stack(centres[:-1]), torch.stack(centres[1:]), dim=-1
    )
    return float(cosines.mean().clamp(-1, 1))
