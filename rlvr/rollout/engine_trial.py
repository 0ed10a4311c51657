"""Which way of generating gives the learner's numbers, tried on a few tokens before a run begins.

A model of transformers samples one token after the other from a cache; the learner runs sequences
whole. A cache of the wrong kind does not always fail: a recurrent layer that finds no state begins
anew, and its log-probabilities are nats away from the learner's. So a few rows are generated each
way, of several lengths and with rows that leave the batch early, until the log-probabilities of
what was drawn are the learner's. Running sequences anew for every token comes last: slow, and the
learner's own pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from rlvr.policy.batching import padded_inputs
from rlvr.policy.model import MODEL_ERRORS, Policy, evaluating, first_line, in_float32, names_taken
from rlvr.policy.model_check import probe_ids
from rlvr.policy.vocabulary import vocab_size
from rlvr.rollout.engine import Engine, Request
from rlvr.rollout.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Caching:
    """How rows are generated.

    Attributes:
        kind: ``growing`` keeps keys and values in buffers, ``model`` takes the layers that
            transformers has for the model's configuration, ``none`` runs the sequence anew for
            every token.
        mixed: Whether prompts of several lengths run together.
    """

    kind: Literal["growing", "model", "none"] = "growing"
    mixed: bool = True


BuildEngine = Callable[[Sequence[int], Caching], Engine]
"""Makes an engine of the policy from the ids that end a row and the way of caching."""

_WAYS = (
    Caching("growing"),
    Caching("model"),
    Caching("growing", mixed=False),
    Caching("model", mixed=False),
    Caching("none"),
)
_LENGTHS = (7, 3, 3)
_SAMPLING = Sampling(max_tokens=6, temperature=1.0)


def exact_caching(policy: Policy, build: BuildEngine) -> Caching:
    """The fastest way to generate with which samples have the learner's log-probabilities.

    Raises:
        ValueError: There is none.
    """
    found = {}
    with torch.no_grad(), evaluating(policy), in_float32(policy) as tolerance:
        for way in _possible(policy):
            try:
                apart = _apart(policy, build, way)
            except MODEL_ERRORS as error:
                found[way] = first_line(error)
                continue
            if apart < tolerance:
                return way
            found[way] = f"{apart:.3g} nats apart"
    family = policy.causal_lm.config.model_type
    raise ValueError(
        f"rollout.engine 'transformers' does not give the learner's log-probabilities for "
        f"{family!r} ({'; '.join(found.values())}); set rollout.engine.name=vllm"
    )


def _possible(policy: Policy) -> list[Caching]:
    if not {"past_key_values", "cache_params"} & names_taken(policy.causal_lm):
        return [way for way in _WAYS if way.kind == "none"]
    if _only_keys_and_values(policy):
        return list(_WAYS)
    return [way for way in _WAYS if way.kind != "growing"]


def _only_keys_and_values(policy: Policy) -> bool:
    """Whether transformers caches nothing else for this model."""
    try:
        layers = DynamicCache(config=policy.causal_lm.config).layers
    except MODEL_ERRORS:  # it has no cache of its own for this configuration
        return True
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def _apart(policy: Policy, build: BuildEngine, way: Caching) -> float:
    """Largest difference in nats between samples' log-probabilities and the learner's."""
    ids = probe_ids(policy, sum(_LENGTHS)).tolist()
    starts = [sum(_LENGTHS[:index]) for index in range(len(_LENGTHS))]
    requests = [
        Request(tuple(ids[start : start + length]), (2 * start, 2 * start + 1))
        for start, length in zip(starts, _LENGTHS, strict=True)
    ]
    # A third of the vocabulary ends a row, so that rows leave the batch at several times.
    stop_ids = range(0, vocab_size(policy), 3)
    engine = build(stop_ids, way)
    pairs = [
        (request.prompt_ids, sample)
        for request, samples in zip(requests, engine.generate(requests, _SAMPLING), strict=True)
        for sample in samples
    ]
    prompts, completions = [list(prompt) for prompt, _ in pairs], [x.token_ids for _, x in pairs]
    inputs = padded_inputs(prompts, completions, range(len(pairs))).to(policy.device)
    found = torch.tensor([value for _, sample in pairs for value in sample.logprobs])
    return float((policy(inputs).logprobs_N.cpu().double() - found.double()).abs().max())
