"""The data of a reward model's run: labelled responses, right x wrong pairs, or judged steps."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rlvr.data import load_template
from rlvr.data.responses import encode_responses, load_responses
from rlvr.data.solutions import Solution, load_solutions, step_labels
from rlvr.learner import PreferenceBatch
from rlvr.prm import balanced, given_step_ends, step_starts, steps_of_ids
from rlvr.prm.objectives import CeSettings
from rlvr.rm import all_pairs
from rlvr.settings import to_yaml
from rlvr.train.labelled import labelled_responses, within_limits
from rlvr.train.log import say
from rlvr.train.prm_recipe import PrmRecipe


def load_scored(
    recipe: PrmRecipe,
    tokenizer: Any,  # noqa: ANN401
    console: Console,
) -> tuple[PreferenceBatch, dict[str, PreferenceBatch]]:
    """Training data as the objective takes it, and held-out responses by name, with labels.

    Raises:
        ValueError: They cannot be read, or nothing can be learned from them.
    """
    if recipe.in_steps:
        training = _in_steps(recipe, tokenizer, console)
    else:
        batch, groups = _responses("data", recipe.data.sources, recipe, tokenizer, console)
        training = _training(batch, groups, recipe)
        if recipe.in_bags:
            training = _in_bags(training, recipe, tokenizer)
        say(console, f"data: {len(training)} {_noun(recipe)} from {len(batch)} responses")
    held_out = {
        name: _responses(name, sources, recipe, tokenizer, console)[0]
        for name, sources in recipe.evaluation.responses.items()
    }
    return training, held_out


def _in_bags(
    batch: PreferenceBatch,
    recipe: PrmRecipe,
    tokenizer: Any,  # noqa: ANN401
) -> PreferenceBatch:
    """The same responses in steps, each of which holds the label of its response."""
    assert batch.desirable_B is not None
    ends = [steps_of_ids(tokenizer, ids, recipe.data.steps) for (ids,) in batch.completion_ids]
    labels_BK = torch.full((len(ends), max(map(len, ends))), float("nan"))
    for row, own in enumerate(ends):
        labels_BK[row, : len(own)] = float(batch.desirable_B[row])
    bags = PreferenceBatch(
        batch.prompt_ids,
        batch.completion_ids,
        step_ends=tuple(map(tuple, ends)),
        step_labels_BK=labels_BK,
    )
    return _with_reference(bags, recipe)


def prompt_groups(batch: PreferenceBatch) -> list[str]:
    """Which prompt each response is of, from the tokens alone."""
    return [repr(ids) for ids in batch.prompt_ids]


def _noun(recipe: PrmRecipe) -> str:
    if recipe.in_steps:
        return "responses in steps"
    if recipe.in_bags:
        return "responses in bags of steps"
    return "pairs" if recipe.kind == "pairs" else "labelled responses"


def _responses(
    name: str,
    sources: Sequence[Path],
    recipe: PrmRecipe,
    tokenizer: Any,  # noqa: ANN401
    console: Console,
) -> tuple[PreferenceBatch, list[str]]:
    """Labelled responses within the limits, and the problem of each."""
    found = labelled_responses(name, sources, recipe.data, tokenizer, console)
    batch = PreferenceBatch(
        found.prompt_ids,
        tuple((ids,) for ids in found.completion_ids),
        torch.tensor(found.labels),
    )
    return _with_reference(batch, recipe), list(found.groups)


def _in_steps(
    recipe: PrmRecipe,
    tokenizer: Any,  # noqa: ANN401
    console: Console,
) -> PreferenceBatch:
    """Responses in steps with their labels.

    Raises:
        ValueError: They cannot be read, or nobody judged a step of one.
    """
    solutions = load_labelled_solutions(recipe)
    responses = [item.response for item in solutions]
    encoded = encode_responses(responses, load_template(recipe.data.template), tokenizer)
    kept = within_limits("data", encoded, recipe.data, console)
    chosen, ids = [solutions[row] for row in kept], [encoded[row] for row in kept]
    ends = tuple(
        tuple(given_step_ends(tokenizer, own, item.starts, item.place))
        for item, (_, own) in zip(chosen, ids, strict=True)
    )
    most = max(map(len, ends))
    labels_BK = torch.full((len(chosen), most), float("nan"))
    for row, item in enumerate(chosen):
        for step, label in enumerate(step_labels(item) or ()):
            labels_BK[row, step] = float("nan") if label is None else label
    judged = int((~labels_BK.isnan()).sum())
    say(console, f"data: {len(chosen)} responses in steps, {judged} of them judged")
    batch = PreferenceBatch(
        tuple(prompt for prompt, _ in ids),
        tuple((own,) for _, own in ids),
        step_ends=ends,
        step_labels_BK=labels_BK,
    )
    return _with_reference(batch, recipe)


def load_labelled_solutions(recipe: PrmRecipe) -> list[Solution]:
    """The training data of the objective steps.

    Raises:
        ValueError: It cannot be read, or nobody judged a step of a response.
    """
    find = partial(step_starts, steps=recipe.data.steps)
    solutions = load_solutions(recipe.data.sources, find)
    for item in solutions:
        if all(label is None for label in step_labels(item) or ()):
            raise ValueError(
                f"{item.place}: no step is judged; give step_labels, or label, the index of the "
                "first wrong step (-1 where there is none)"
            )
    return solutions


def _with_reference(batch: PreferenceBatch, recipe: PrmRecipe) -> PreferenceBatch:
    """Without a reference the log-ratio is the log-probability: a reference of log 1."""
    if recipe.use_reference:
        return batch
    zeros = torch.zeros(len(batch), batch.kinds)
    return replace(batch, reference_BK=zeros)


def _training(batch: PreferenceBatch, groups: Sequence[str], recipe: PrmRecipe) -> PreferenceBatch:
    """All pairs, or the responses that the balance keeps.

    Raises:
        ValueError: There are none.
    """
    assert batch.desirable_B is not None
    labels = [bool(label) for label in batch.desirable_B]
    if recipe.kind == "pairs":
        pairs = all_pairs(labels, groups)
        if not pairs:
            raise ValueError(
                f"none of {len(set(groups))} problems has both right and wrong responses, so there "
                f"are no pairs for objective {recipe.objective.name!r}; sample more of each, or "
                "use ce"
            )
        ids = batch.completion_ids
        joined = PreferenceBatch(
            tuple(batch.prompt_ids[good] for good, _ in pairs),
            tuple((ids[good][0], ids[bad][0]) for good, bad in pairs),
        )
        return _with_reference(joined, recipe)
    balance = recipe.objective.balance if isinstance(recipe.objective, CeSettings) else "none"
    kept = balanced(labels, groups, balance, recipe.seed)
    if not kept:
        raise ValueError(
            f"objective.balance = {balance!r} keeps none of {len(labels)} responses, as all are "
            "right or all are wrong; use none, or sample more"
        )
    return batch.select(kept)


def render_plan(recipe: PrmRecipe) -> str:
    """``--dry-run``: the recipe as YAML, then the derived numbers as comment lines.

    Raises:
        ValueError: The responses cannot be read.
    """
    if recipe.in_steps:
        count, lines = _steps_plan(recipe)
    else:
        count, lines = _labels_plan(recipe)
    epochs = recipe.steps * recipe.data.per_step / max(1, count)
    lines += [
        f"{_noun(recipe)}: {count}",
        f"the run: {recipe.steps} steps of {recipe.data.per_step}, {epochs:.2f} epochs",
    ]
    return to_yaml(recipe) + "\n" + "\n".join(f"# {line}" for line in lines)


def _steps_plan(recipe: PrmRecipe) -> tuple[int, list[str]]:
    solutions = load_labelled_solutions(recipe)
    labels = [label for item in solutions for label in step_labels(item) or ()]
    judged = [label for label in labels if label is not None]
    wrong = sum(label < 0.5 for label in judged)
    return len(solutions), [f"steps: {len(labels)}, {len(judged)} judged, {wrong} of them wrong"]


def _labels_plan(recipe: PrmRecipe) -> tuple[int, list[str]]:
    responses = load_responses(recipe.data.sources)
    labels = [bool(item.correct) for item in responses]
    groups = [item.problem for item in responses]
    count = len(all_pairs(labels, groups)) if recipe.kind == "pairs" else len(labels)
    if isinstance(recipe.objective, CeSettings):
        count = len(balanced(labels, groups, recipe.objective.balance, recipe.seed))
    problems = len(set(groups))
    return count, [f"responses: {len(labels)} to {problems} problems, {sum(labels)} of them right"]
