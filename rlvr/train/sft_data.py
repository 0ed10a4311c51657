"""The data of a fine-tuning run: demonstrations as TRL takes them, and problems to be answered."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from rlvr.data import load_template
from rlvr.data.demonstrations import Demonstration, keep_short, load_demonstrations
from rlvr.policy import load_tokenizer
from rlvr.settings import to_yaml
from rlvr.train.log import say
from rlvr.train.sft_recipe import SftRecipe

IGNORED = -100  # the label of tokens that are not learnt, as torch's cross-entropy has it


def load_training(
    recipe: SftRecipe,
    tokenizer: Any,  # noqa: ANN401
    console: Console,
    context: int | None = None,
) -> tuple[list[Demonstration], dict[str, list[Demonstration]]]:
    """Demonstrations to learn from, and held-out ones by name.

    Args:
        recipe: Which.
        tokenizer: The model's.
        console: Told what was left out.
        context: The model's longest sequence, the limit where the recipe gives none.

    Raises:
        ValueError: They cannot be read, or none is short enough.
    """
    template = load_template(recipe.data.template)
    limit = recipe.data.max_tokens or context

    def load(name: str, sources: Sequence[Any]) -> list[Demonstration]:
        kept, left = keep_short(load_demonstrations(sources, template, tokenizer), limit)
        if not kept:
            shortest = min(map(len, left))
            raise ValueError(
                f"{name}: none of {len(left)} sequences is within data.max_tokens = {limit}; the "
                f"shortest has {shortest} tokens"
            )
        if left:
            say(
                console,
                f"{name}: left out {len(left)} of {len(kept) + len(left)} sequences of "
                f"more than {limit} tokens",
            )
        return kept

    training = load("data", recipe.data.sources)
    held_out = {name: load(name, files) for name, files in recipe.evaluation.traces.items()}
    return training, held_out


def dataset(found: Sequence[Demonstration]) -> Any:  # noqa: ANN401  (datasets is untyped)
    """Columns input_ids and labels: the prompt is not learnt."""
    from datasets import Dataset

    return Dataset.from_dict(
        {
            "input_ids": [[*item.prompt_ids, *item.token_ids] for item in found],
            "labels": [[IGNORED] * len(item.prompt_ids) + [*item.token_ids] for item in found],
        }
    )


def count_rows(recipe: SftRecipe, found: Sequence[Demonstration]) -> int:
    """Rows of the training data, packed where the recipe says so."""
    if not recipe.data.packing:
        return len(found)
    from trl import pack_dataset

    return len(pack_dataset(dataset(found), recipe.data.max_tokens, "bfd"))


def render_plan(recipe: SftRecipe) -> str:
    """``--dry-run``: the recipe as YAML, then the derived numbers as comment lines.

    Raises:
        ValueError: The demonstrations cannot be read.
    """
    from datasets import disable_progress_bars

    disable_progress_bars()
    tokenizer = load_tokenizer(recipe.model)
    found, _ = load_training(recipe, tokenizer, Console(stderr=True))
    learnt = sum(len(item.token_ids) for item in found)
    rows, longest = count_rows(recipe, found), max(map(len, found))
    steps = recipe.total_steps(rows)
    packed = f", packed on {rows} rows" if recipe.data.packing else ""
    lines = [
        f"sequences: {len(found)}{packed}, the longest of {longest} tokens",
        f"tokens: {sum(map(len, found))}, of which {learnt} are learnt",
        f"the run: {steps} steps of {recipe.data.per_step}, "
        f"{steps * recipe.data.per_step / rows:.2f} epochs",
    ]
    return to_yaml(recipe) + "\n" + "\n".join(f"# {line}" for line in lines)
