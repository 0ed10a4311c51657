"""The one-step kernel, written out from probabilities and not as the rule does it."""

import torch


def top(probabilities, k):
    """The k largest entries, renormalised; written out, not as the rule does it."""
    kept = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])[: k or None]
    total = sum(float(probabilities[i]) for i in kept)
    return {i: float(probabilities[i]) / total for i in kept}


def kernel(rule, q, p, shared=None):
    """r(y) of the specification, from probabilities."""
    q_pool = top((q / rule.teacher.temperature).softmax(-1), rule.teacher.top_k)
    if shared is not None:
        q_pool = {y: mass for y, mass in q_pool.items() if y in shared}
        q_pool = {y: mass / sum(q_pool.values()) for y, mass in q_pool.items()}
    tempered = (p / rule.student.temperature).softmax(-1)
    tested = p.softmax(-1) if rule.threshold_on == "raw" else tempered
    p_pool = top(tempered, rule.student.top_k)
    allowed = {y for y in p_pool if float(tested[y]) >= rule.threshold}
    mass = sum(weight for y, weight in q_pool.items() if y in allowed)
    refused = (1 - mass) ** rule.draws
    fallback = p_pool
    if rule.fallback == "truncated" and allowed:
        total = sum(p_pool[y] for y in allowed)
        fallback = {y: p_pool[y] / total for y in allowed}
    r = torch.zeros(len(p), dtype=torch.float64)
    for y in range(len(p)):
        accepted = (1 - refused) * q_pool.get(y, 0) / mass if y in allowed and mass else 0
        r[y] = accepted + refused * fallback.get(y, 0)
    return r, refused


def check_chi_square(counts, expected):
    """The statistic is within 5 standard deviations of its mean; cells of mass 0 are empty."""
    assert float(counts[expected == 0].sum()) == 0
    cells = expected * counts.sum() > 1
    mean = expected[cells] * counts.sum()
    statistic = float(((counts[cells] - mean) ** 2 / mean).sum())
    freedom = int(cells.sum())
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5, (statistic, freedom)
