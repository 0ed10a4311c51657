"""The data of a preference run: pairs as columns of token ids, and problems to be answered."""

from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console

from rlvr.data import load_template
from rlvr.data.preferences import EncodedPreference, encode_preferences, load_preferences
from rlvr.learner import PreferenceBatch
from rlvr.policy import Policy
from rlvr.train.log import say
from rlvr.train.preference_recipe import PreferenceRecipe


def load_pairs(
    recipe: PreferenceRecipe,
    tokenizer: Any,  # noqa: ANN401
    console: Console,
) -> tuple[PreferenceBatch, dict[str, PreferenceBatch]]:
    """Training preferences, and held-out ones by name.

    Raises:
        ValueError: They cannot be read, or cannot serve the recipe's losses.
    """
    template, settings = load_template(recipe.data.template), recipe.data

    def load(name: str, source: Any) -> PreferenceBatch:  # noqa: ANN401
        encoded = encode_preferences(
            load_preferences(source, recipe.kind),
            template,
            tokenizer,
            max_prompt_tokens=settings.max_prompt_tokens,
            max_completion_tokens=settings.max_completion_tokens,
            say=lambda text: say(console, f"{name}: {text}"),
        )
        return _columns(encoded, recipe, name)

    training = load("data", settings.source)
    return training, {name: load(name, s) for name, s in recipe.evaluation.pairs.items()}


def _columns(
    encoded: Sequence[EncodedPreference], recipe: PreferenceRecipe, name: str
) -> PreferenceBatch:
    """Columns of all preferences.

    Raises:
        ValueError: A loss needs scores, and a pair has none or equal ones.
    """
    scored = [item.scores for item in encoded]
    if any(loss.needs_scores for loss in recipe.losses):
        bad = [i for i, s in enumerate(scored) if s is None or s[0] <= s[1]]
        if bad:
            raise ValueError(
                f"{name}: the loss 'odpo' needs a higher score of the chosen completion "
                f"(columns {recipe.data.source.columns.chosen_score!r} and "
                f"{recipe.data.source.columns.rejected_score!r}), but pair {bad[0] + 1} has "
                f"{scored[bad[0]]}"
            )
    known = [s for s in scored if s is not None]
    labels = [bool(item.desirable) for item in encoded]
    return PreferenceBatch(
        tuple(item.prompt_ids for item in encoded),
        tuple(item.completion_ids for item in encoded),
        torch.tensor(labels) if recipe.kind == "labelled" else None,
        torch.tensor(known) if len(known) == len(encoded) else None,
    )


def check_fit(policy: Policy, batches: Sequence[PreferenceBatch]) -> None:
    """See that the model knows every token and has room for every sequence.

    Raises:
        ValueError: It does not.
    """
    words = policy.causal_lm.get_input_embeddings().num_embeddings
    limit = policy.context_length
    for batch in batches:
        for prompt, item in zip(batch.prompt_ids, batch.completion_ids, strict=True):
            top = max(max(ids, default=0) for ids in (prompt, *item))
            if top >= words:
                raise ValueError(
                    f"a preference holds token {top}, but the model has {words} embeddings; set "
                    "model.tokenizer to the model's own tokenizer"
                )
            longest = len(prompt) + max(map(len, item))
            if limit is not None and longest > limit:
                raise ValueError(
                    f"a preference has {longest} tokens, more than the model's context of {limit}; "
                    "lower data.max_prompt_tokens or data.max_completion_tokens"
                )
