"""The data of an explicit reward model's run: what is made of responses, and what is held out."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Console

from rlvr.data.responses import load_responses
from rlvr.rm import Items, Responses, held_out_prompts, make_items
from rlvr.settings import to_yaml
from rlvr.train.labelled import labelled_responses
from rlvr.train.log import say
from rlvr.train.reward_model_recipe import HELD_OUT, RewardModelRecipe

_UNITS = {"pairs": "pairs", "responses": "responses", "lists": "problems with all their responses"}


def load_items(
    recipe: RewardModelRecipe,
    tokenizer: Any,  # noqa: ANN401
    console: Console,
) -> tuple[Items, dict[str, Responses]]:
    """Training items, and held-out responses by name.

    Raises:
        ValueError: They cannot be read, nothing can be learned from them, or a held-out prompt is
            trained on.
    """
    whole = labelled_responses("data", recipe.data.sources, recipe.data, tokenizer, console)
    training, held_out = split(whole, [repr(ids) for ids in whole.prompt_ids], recipe)
    held_out |= {
        name: labelled_responses(name, sources, recipe.data, tokenizer, console)
        for name, sources in recipe.evaluation.responses.items()
    }
    _check_no_leak(training, held_out)
    if recipe.data.part == "prompt":
        training = _prompts_alone(training)
        held_out = {name: _prompts_alone(own) for name, own in held_out.items()}
    items = make_items(training, recipe.loss, recipe.pairs, recipe.seed)
    unit = _UNITS[recipe.loss.unit]
    say(console, f"data: {len(items)} {unit} from {len(training)} responses")
    return items, held_out


def split(
    whole: Responses, prompts: Sequence[str], recipe: RewardModelRecipe
) -> tuple[Responses, dict[str, Responses]]:
    """What is trained on, and the set that ``data.hold_out`` makes, by its name.

    By ``prompts``, what the model reads: one may stand in the data under several ids.
    """
    if not recipe.data.hold_out:
        return whole, {}
    out = held_out_prompts(prompts, recipe.data.hold_out, recipe.seed)
    training = whole.select([row for row, prompt in enumerate(prompts) if prompt not in out])
    held_out = whole.select([row for row, prompt in enumerate(prompts) if prompt in out])
    return training, {HELD_OUT: held_out}


def _prompts_alone(responses: Responses) -> Responses:
    return Responses(
        responses.prompt_ids,
        tuple(() for _ in responses.completion_ids),
        responses.outcomes_M,
        responses.groups,
    )


def _check_no_leak(training: Responses, held_out: Mapping[str, Responses]) -> None:
    """By tokens: ids of problems may be the same in files that have nothing to do with each other.

    Raises:
        ValueError: A prompt is on both sides.
    """
    seen = set(training.prompt_ids)
    for name, own in held_out.items():
        shared = {
            group for group, ids in zip(own.groups, own.prompt_ids, strict=True) if ids in seen
        }
        if shared:
            raise ValueError(
                f"{len(shared)} prompts of the evaluation set {name!r} are trained on, such as "
                f"problem {min(shared)!r}: its figures would say nothing; give other problems, or "
                "hold some out by data.hold_out"
            )


def render_plan(recipe: RewardModelRecipe) -> str:
    """``--dry-run``: the recipe as YAML, then the derived numbers as comment lines.

    Raises:
        ValueError: The responses cannot be read.
    """
    responses = load_responses(recipe.data.sources)
    whole = Responses(
        tuple(() for _ in responses),
        tuple(() for _ in responses),
        torch.tensor([float(bool(item.correct)) for item in responses]),
        tuple(item.problem for item in responses),
    )
    prompts = [repr(item.messages) for item in responses]
    training, held_out = split(whole, prompts, recipe)
    items = make_items(training, recipe.loss, recipe.pairs, recipe.seed)
    epochs = recipe.steps * recipe.data.per_step / len(items)
    lines = [
        f"responses: {len(whole)} to {len(set(whole.groups))} problems, {sum(whole.labels)} of "
        "them right",
        *(f"{name}: {len(own)} responses held out" for name, own in held_out.items()),
        f"{_UNITS[recipe.loss.unit]}: {len(items)}",
        f"the run: {recipe.steps} steps of {recipe.data.per_step}, {epochs:.2f} epochs",
    ]
    return to_yaml(recipe) + "\n" + "\n".join(f"# {line}" for line in lines)
