"""What ``--dry-run`` shows of the data: as the model will read them, with its tokenizer alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlvr.data.shown import quoted, shown_example, shown_prompt

if TYPE_CHECKING:
    from rlvr.data import EncodedPrompts
    from rlvr.data.examples import Examples
    from rlvr.policy.settings import ModelSettings

_SHOWN = 2


def with_tokenizer(model: ModelSettings, show: Callable[[Any], list[str]]) -> list[str]:
    """Lines that need the model's tokenizer; without it, one that says why they are not there.

    Args:
        model: Whose tokenizer.
        show: Given the tokenizer; what it raises is raised, because a start would raise it.
    """
    from rlvr.policy.loading import load_tokenizer

    try:
        check_tokenizer_there(model)
        tokenizer = load_tokenizer(model)
    except ValueError as error:
        return [f"what the model reads is not shown: {' '.join(str(error).split())}"]
    return show(tokenizer)


def check_tokenizer_there(model: ModelSettings) -> None:
    """See that a local folder holds a tokenizer: of some families transformers makes an empty one.

    Raises:
        ValueError: It holds none.
    """
    folder = Path(model.path).expanduser()
    if model.tokenizer is None and folder.is_dir() and not any(folder.glob("*token*")):
        with_weights = any(folder.glob("*.safetensors")) or (folder / "recipe.yaml").is_file()
        if not with_weights:
            raise ValueError(f"the folder {model.path!r} holds a configuration and no tokenizer")


def out_of_reach(error: ValueError) -> bool:
    """Whether a model could not be looked up because there is no way to the Hub."""
    return "couldn't connect to" in str(error).lower()


def prompts_shown(encoded: EncodedPrompts, tokenizer: Any) -> list[str]:  # noqa: ANN401
    """The first prompts as the model continues them."""
    lines = [] if encoded.notice is None else [encoded.notice]
    for prompt in encoded.prompts[:_SHOWN]:
        title = f"prompt of problem {prompt.problem.id!r}, {len(prompt.ids)} tokens"
        lines += quoted(title, shown_prompt(tokenizer, prompt.ids))
    return lines


def examples_shown(examples: Examples, tokenizer: Any) -> list[str]:  # noqa: ANN401
    """The first examples, with what is learnt of each completion."""
    lines: list[str] = []
    for number, rows in enumerate(examples.rows[:_SHOWN], 1):
        for place, row in enumerate(rows, 1):
            which = f" completion {place} of {len(rows)}," if len(rows) > 1 else ""
            prompt, completion = examples.prompt_ids[row], examples.completion_ids[row]
            label = _label(examples, row)
            title = f"example {number},{which} {len(prompt)} + {len(completion)} tokens{label}"
            ends: Sequence[int] = () if examples.step_ends is None else examples.step_ends[row]
            lines += quoted(title, shown_example(tokenizer, prompt, completion, ends))
    return lines


def _label(examples: Examples, row: int) -> str:
    if "label" not in examples.columns:
        return ""
    return f", label {float(examples.columns['label'][row]):g}"
