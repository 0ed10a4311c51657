"""Whether the learner's numbers are the model's own, tried once on a few tokens.

The learner reads log-probabilities off hidden states, with position ids of its own and several rows
in one pass. All of that must give what the model gives for a sequence alone:

- logits are the output head applied to the last hidden state, or a multiple of it;
- the first position is counted as the model counts it, else the model counts for itself;
- a token's numbers depend neither on later tokens nor on the other rows of a pass.
"""

from typing import Any

import torch

from rlvr.policy.batching import padded_inputs
from rlvr.policy.model import MODEL_ERRORS, Policy, evaluating, first_line, in_float32
from rlvr.policy.vocabulary import vocab_size

_LENGTHS = (10, 6)


def check_model(policy: Policy, path: str) -> None:
    """See that the learner can train the model, and set how it has to be run.

    Args:
        policy: Loaded, whole on its device.
        path: What a message calls it.

    Raises:
        ValueError: It cannot be trained.
    """
    name = f"model {path!r} ({policy.causal_lm.config.model_type})"
    if policy.head is None:
        raise ValueError(f"{name} has no output head; give a causal language model")
    with torch.no_grad(), evaluating(policy), in_float32(policy) as tolerance:
        ids = probe_ids(policy, max(_LENGTHS))
        try:
            logits_LV = policy.causal_lm(input_ids=ids[None], use_cache=False).logits[0]
            plain_LV = policy.plain_logits(ids)
        except MODEL_ERRORS as error:
            raise ValueError(
                f"{name} cannot be run on token ids alone ({first_line(error)}); give a causal "
                "language model"
            ) from error
        policy.logit_scale = _scale(policy.causal_lm.config, logits_LV, plain_LV, tolerance, name)
        expected_L = logits_LV.log_softmax(-1)[:-1].gather(-1, ids[1:, None])[:, 0]
        _check_rows(policy, ids.tolist(), expected_L, tolerance, name)


def probe_ids(policy: Policy, count: int) -> torch.Tensor:
    """Token ids spread over the vocabulary, the same every time."""
    size = min(vocab_size(policy), policy.causal_lm.config.get_text_config().vocab_size)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(size, (count,), generator=generator).to(policy.device)


def _scale(
    config: Any,  # noqa: ANN401
    logits: torch.Tensor,
    plain: torch.Tensor,
    tolerance: float,
    name: str,
) -> float:
    """By what the head's output is multiplied."""
    if torch.allclose(logits, plain, rtol=tolerance, atol=tolerance):
        return 1.0
    fitted = float((logits * plain).sum() / (plain * plain).sum())
    stated = [own for own in config.to_dict().values() if isinstance(own, (int, float)) and own]
    exact = [value for own in stated for value in (own, 1 / own) if _close(value, fitted)]
    scale = float(next(iter(exact), fitted))
    if scale > 0 and torch.allclose(logits, scale * plain, rtol=tolerance, atol=tolerance):
        return scale
    raise ValueError(
        f"{name} transforms its logits after the output head (soft cap) or hidden states before "
        "it, which the chunked statistics do not; use another model family"
    )


def not_causal(name: str) -> str:
    """The message for a model that is not configured to predict the next token."""
    return (
        f"{name} looks at later tokens: it is no causal language model as it is configured; set "
        '"is_decoder": true in its config.json, or use another model'
    )


def _close(value: float, fitted: float) -> bool:
    return abs(value - fitted) < 1e-5 * abs(fitted)


def _check_rows(
    policy: Policy, ids: list[int], expected: torch.Tensor, tolerance: float, name: str
) -> None:
    def apart(lengths: tuple[int, ...]) -> float:
        prompts, completions = [ids[:2]] * len(lengths), [ids[2:length] for length in lengths]
        inputs = padded_inputs(prompts, completions, range(len(lengths))).to(policy.device)
        found = policy(inputs).logprobs_N
        due = torch.cat([expected[1 : length - 1] for length in lengths])
        return float((found - due).abs().max())

    try:
        if not apart(_LENGTHS[:1]) < tolerance:
            policy.unused = policy.unused | {"position_ids"}
            if not apart(_LENGTHS[:1]) < tolerance:
                raise ValueError(
                    f"{name} gives other log-probabilities for a sequence with a mask and position "
                    "ids than for the sequence alone; use another model family"
                )
        if not apart(_LENGTHS[1:]) < tolerance:
            raise ValueError(not_causal(name))
        if not apart(_LENGTHS) < tolerance:
            raise ValueError(
                f"{name} gives other log-probabilities when rows of several lengths are run "
                "together; use another model family"
            )
    except MODEL_ERRORS as error:
        if isinstance(error, ValueError) and str(error).startswith(name):
            raise
        raise ValueError(f"{name} cannot be run row by row ({first_line(error)})") from error
