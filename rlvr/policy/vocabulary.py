"""Whether a model knows the token ids that it is given, and whether models share them."""

from collections.abc import Iterable, Sequence

from rlvr.policy.model import Policy
from rlvr.policy.settings import ModelSettings


def vocab_size(policy: Policy) -> int:
    """How many token ids the model knows: the rows of its embedding."""
    embedding = policy.causal_lm.get_input_embeddings()
    size: int = getattr(embedding, "base_layer", embedding).num_embeddings  # inside an adapter
    return size


def check_token_ids(
    policy: Policy,
    sequences: Iterable[tuple[str, Sequence[int]]],
    *,
    wrong_token: str = "set model.tokenizer to the model's own tokenizer",
    too_long: str | None = None,
) -> None:
    """See that the model knows every token and has room for every sequence.

    Args:
        policy: The model.
        sequences: Token ids, each with the name that a message calls it by.
        wrong_token: The remedy for a token that the model does not know.
        too_long: The remedy for a sequence above the model's context; None leaves lengths alone.

    Raises:
        ValueError: One does not fit; it is named.
    """
    known, limit = vocab_size(policy), policy.context_length
    for name, ids in sequences:
        top = max(ids, default=0)
        if top >= known:
            raise ValueError(
                f"{name} holds token {top}, but the model has {known} embeddings; {wrong_token}"
            )
        if too_long is not None and limit is not None and len(ids) > limit:
            raise ValueError(
                f"{name} has {len(ids)} tokens, more than the model's context of {limit}; "
                f"{too_long}"
            )


def check_same_vocabulary(policy: Policy, model: Policy, settings: ModelSettings) -> None:
    """See that a model takes the policy's tokens.

    Raises:
        ValueError: It has another vocabulary.
    """
    sizes = [vocab_size(one) for one in (policy, model)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the reward model or reference {settings.path!r} has {sizes[1]} embeddings and the "
            f"policy {sizes[0]}: they do not share a tokenizer; choose models of one family"
        )
