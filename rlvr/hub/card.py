"""The model card: README.md with the Hub's front matter, written from the records of the run.

Everything in it is read from the recipe, the records and the evaluations, so that it cannot claim
what was not done. Paths in the home folder are shortened, and tokens never appear.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvr.data import load_template
from rlvr.hub.card_text import (
    card_table,
    described,
    fenced,
    hub_link,
    is_hub_id,
    paper_link,
    public,
)
from rlvr.hub.curves import Picture
from rlvr.hub.methods import Method, methods_of, papers_of
from rlvr.hub.scores import Score
from rlvr.hub.source import TASKS, Source
from rlvr.report.completions import Completions
from rlvr.report.headline import headline
from rlvr.report.recorded_run import RunFolder
from rlvr.rl.recipe import RLRecipe
from rlvr.settings import parse_yaml
from rlvr.tasks.prm import PrmRecipe
from rlvr.tasks.reward_model import RewardModelRecipe
from rlvr.tasks.sft import SftRecipe

IMAGES = "images"
_REWARD_MODELS = (PrmRecipe, RewardModelRecipe)
_EXAMPLE = "What is 12 + 30?"
_FACTS = ("Steps", "Seed", "Saturation", "Started", "Time")


@dataclass(frozen=True)
class Card:
    """The contents of a card.

    ``name`` is what a user will load: the repository or the folder. ``license`` is the Hub's
    identifier, or None if unknown.
    """

    source: Source
    name: str
    scores: Sequence[Score]
    pictures: Sequence[Picture]
    tokenizer: Any
    dtype: str
    adapter_only: bool = False
    license: str | None = None

    @property
    def base(self) -> str:
        """The model from which training started."""
        return self.source.base or self.source.recipe.model.path

    @property
    def title(self) -> str:
        """The last part of the name."""
        return self.name.rstrip("/").rpartition("/")[2]


def write_card(card: Card) -> str:
    """The text of README.md."""
    methods = methods_of(card.source.recipe)
    parts = [
        f"# {card.title}",
        _opening(card),
        *_results(card),
        *_curves(card),
        *_method(methods),
        *_data(card),
        *_use(card),
        *_reproduction(card),
        *_limits(card),
    ]
    return public(f"---\n{_front(card, methods)}\n---\n\n" + "\n\n".join(parts) + "\n")


def _front(card: Card, methods: Sequence[Method]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    recipe = card.source.recipe
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=score.name.lower().replace(" ", "-"),
            dataset_name=score.name,
            metric_type=score.metric,
            metric_value=round(score.value, 6),
        )
        for score in card.scores
        if score.ours and score.value is not None
    ]
    names = [method.name.lower() for method in methods if method.role in _TAGGED]
    tags = ["rlvr", recipe.task, *names, *(f"arxiv:{number}" for number in papers_of(methods))]
    datasets = [path for path in _hub_datasets(card) if is_hub_id(path)]
    data = ModelCardData(
        base_model=card.base if is_hub_id(card.base) else None,
        datasets=datasets or None,
        eval_results=results or None,
        library_name="peft" if card.adapter_only else "transformers",
        license=card.license or _license_of(card.base),
        model_name=card.title,
        pipeline_tag=None if isinstance(recipe, _REWARD_MODELS) else "text-generation",
        tags=list(dict.fromkeys(tags)),
    )
    return str(data.to_yaml())


_TAGGED = (
    "preference loss",
    "objective",
    "loss",
    "policy loss",
    "process rewards",
    "trained weights",
)


def _license_of(base: str) -> str | None:
    """The license in the base model's card, if its folder contains one."""
    card = Path(base).expanduser() / "README.md"
    if not card.is_file():
        return None
    text = card.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---\n"):
        return None
    try:
        front = parse_yaml(text[4:].partition("\n---")[0], str(card))
    except ValueError:
        return None
    found = front.get("license") if isinstance(front, dict) else None
    return found if isinstance(found, str) else None


def _opening(card: Card) -> str:
    source = card.source
    what = "The LoRA adapters of" if card.adapter_only else "The weights of"
    head = headline(_run_folder(source))
    base = hub_link(card.base)
    steps = f"{source.step} of {source.recipe.steps} steps"
    if source.recipe.steps is None:  # the recipe counts epochs
        steps = f"{source.step} steps"
    text = f"{what} {base} after {steps} of {TASKS[source.recipe.task]} with rlvr."
    facts = [(name, text) for name, text in head["facts"] if name in _FACTS]
    return f"{text} {head['summary']}\n\n{card_table(('run', ''), facts)}"


def _run_folder(source: Source) -> RunFolder:
    text = (source.run / "recipe.yaml").read_text(encoding="utf-8")
    info = run_info(source.run)
    nothing = Completions((), ())
    recipe = parse_yaml(text, "recipe.yaml")
    return RunFolder(source.run, recipe, text, info, source.history, nothing, {}, [], ())


def run_info(run: Path) -> dict[str, Any]:
    """``run.json``, or an empty dictionary if it cannot be read."""
    try:
        info = json.loads((run / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return info if isinstance(info, dict) else {}


def _results(card: Card) -> list[str]:
    if not card.scores:
        return ["## Results", "Nothing was evaluated, neither by the run nor later."]
    heads = ("weights", "set", "n", "metric", "value ± standard error", "95 % interval", "how")
    rows = [
        (s.weights, s.name, s.problems, s.metric, s.text, s.interval, s.how) for s in card.scores
    ]
    note = (
        "n counts problems (or held-out items). Standard errors and intervals are bootstrapped "
        "over problems unless the line says otherwise (w: Wilson's interval); those of shares of "
        "held-out items assume independent items. A figure without ± was logged without an error. "
        "All figures come from one training run and do not include the variation between seeds."
    )
    return ["## Results", card_table(heads, rows), note]


def _curves(card: Card) -> list[str]:
    if not card.pictures:
        return []
    shown = [
        f"![{picture.title}]({IMAGES}/{picture.name})\n\n*{picture.title}.* {picture.caption}"
        for picture in card.pictures
    ]
    return ["## Curves", *shown]


def _method(methods: Sequence[Method]) -> list[str]:
    rows = [
        (m.role, f"`{m.name}`", m.settings, m.meaning, ", ".join(map(paper_link, m.papers)))
        for m in methods
    ]
    if not rows:
        return []
    return ["## Method", card_table(("part", "name", "settings", "what it is", "papers"), rows)]


def _hub_datasets(card: Card) -> list[str]:
    data = card.source.recipe.data
    source = getattr(data, "source", None)
    if source is None or source.name != "hub":
        return []
    return [str(source.path)]


def _data(card: Card) -> list[str]:
    recipe = card.source.recipe
    lines = []
    if isinstance(recipe, _REWARD_MODELS):
        lines += [f"- responses: `{path.name}`" for path in recipe.data.sources]
        held_out = _files(recipe.evaluation.responses)
    elif isinstance(recipe, SftRecipe):
        lines += [f"- demonstrations: `{path.name}`" for path in recipe.data.sources]
        sets = {name: _source(chosen) for name, chosen in recipe.evaluation.sets.items()}
        held_out = _files(recipe.evaluation.traces) | sets
    else:
        lines.append(f"- training: {_source(recipe.data.source)}")
        chosen: dict[str, Any] = dict(recipe.evaluation.sets)
        if not isinstance(recipe, RLRecipe):
            chosen |= recipe.evaluation.pairs
        held_out = {name: _source(source) for name, source in chosen.items()}
    lines += [f"- held out, `{name}`: {text}" for name, text in held_out.items()]
    return ["## Data", "\n".join(lines), *_prompt(card)]


def _files(sets: Mapping[str, Sequence[Path]]) -> dict[str, str]:
    return {name: ", ".join(f"`{path.name}`" for path in paths) for name, paths in sets.items()}


def _source(source: Any) -> str:  # noqa: ANN401
    values = source.model_dump(mode="json")
    kind, path = values.pop("name"), values.pop("path", None)
    rest = described(values)
    if path is None:
        return f"{kind} ({rest})"
    where = hub_link(str(path), "datasets/") if kind == "hub" else f"file `{Path(path).name}`"
    return f"{where} ({rest})" if rest else where


def _prompt(card: Card) -> list[str]:
    """The prompt of a problem, shown with an example."""
    template = load_template(card.source.recipe.data.template)
    try:
        shown = template.render([{"role": "user", "content": _EXAMPLE}], card.tokenizer)
    except ValueError:
        return []
    return [f"A prompt as the model saw it, with “{_EXAMPLE}” as the problem:", fenced(shown)]


def _use(card: Card) -> list[str]:
    recipe = card.source.recipe
    if isinstance(recipe, _REWARD_MODELS):
        return ["## Use", *_scoring(card, recipe)]
    code = fenced("\n".join(_code(card)), "python")
    if card.adapter_only:
        return ["## Use", code]
    served = fenced(shlex.join(["vllm", "serve", card.name, "--dtype", card.dtype]), "bash")
    return ["## Use", code, served, _sampling(card)]


def _scoring(card: Card, recipe: PrmRecipe | RewardModelRecipe) -> tuple[str, str]:
    """What a reward model's rewards are, and the command that computes them."""
    base = card.base if is_hub_id(card.base) else "BASE"
    reference = ["--reference", base]
    if isinstance(recipe, RewardModelRecipe):
        about, reference = "The reward of a response is one number, which the head reads off.", []
    elif recipe.use_reference:
        about = (
            "A token's reward is beta times the log-ratio of this model to its reference, the "
            f"model from which training started (beta {recipe.objective.beta:g})."
        )
    else:
        about = "A token's reward is beta times this model's own log-probability."
        reference = ["--no-reference"]
    command = ["rlvr", "prm", "score", "responses.jsonl", "--model", card.name, *reference]
    return about, fenced(shlex.join([*command, "--out", "scored.jsonl"]), "bash")


def _code(card: Card) -> list[str]:
    kind = "AutoPeftModelForCausalLM" if card.adapter_only else "AutoModelForCausalLM"
    package = "peft" if card.adapter_only else "transformers"
    template = load_template(card.source.recipe.data.template)
    lines = [f"from {package} import {kind}", "from transformers import AutoTokenizer", ""]
    if package == "transformers":
        lines = [f"from transformers import {kind}, AutoTokenizer", ""]
    lines += [
        f"tokenizer = AutoTokenizer.from_pretrained({card.name!r})",
        f"model = {kind}.from_pretrained({card.name!r})",
    ]
    messages = [{"role": "user", "content": _EXAMPLE}]
    if template.settings.mode == "chat":
        turns = template.messages(messages)  # type: ignore[arg-type]
        given = "".join(f", {k}={v!r}" for k, v in template.settings.chat_template_kwargs.items())
        lines += [
            f"messages = {turns!r}",
            "text = tokenizer.apply_chat_template(",
            f"    messages, add_generation_prompt=True, tokenize=False{given}",
            ")",
        ]
        if template.settings.prefill:  # every response of the run began so
            lines.append(f"text += {template.settings.prefill!r}")
        lines.append("inputs = tokenizer(text, add_special_tokens=False, return_tensors='pt')")
    else:
        text = template.render(messages, card.tokenizer)  # type: ignore[arg-type]
        lines.append(f"inputs = tokenizer({text!r}, return_tensors='pt')")
    limit = _longest(card)
    return [
        *lines,
        f"output = model.generate(**inputs, max_new_tokens={limit})",
        "print(tokenizer.decode(output[0, inputs['input_ids'].shape[1] :]))",
    ]


def _longest(card: Card) -> int:
    recipe = card.source.recipe
    if isinstance(recipe, RLRecipe):
        return recipe.rollout.sampling.max_tokens
    if isinstance(recipe, SftRecipe):
        return recipe.data.max_tokens or recipe.evaluation.sampling.max_tokens
    return 1 if isinstance(recipe, _REWARD_MODELS) else recipe.data.max_completion_tokens


def _sampling(card: Card) -> str:
    if not isinstance(card.source.recipe, RLRecipe):
        return "`generation_config.json` is the base model's, with the end tokens of training."
    drawn = card.source.recipe.rollout.sampling
    return (
        f"`generation_config.json` samples as training did (temperature {drawn.temperature:g}, "
        f"top_p {drawn.top_p:g}, top_k {drawn.top_k or 'off'}); completions had at most "
        f"{drawn.max_tokens} tokens."
    )


def _reproduction(card: Card) -> list[str]:
    info = run_info(card.source.run)
    versions = info.get("versions")
    found = versions.items() if isinstance(versions, dict) else ()
    command = info.get("command")
    lines = ["rlvr train recipe.yaml"]
    if isinstance(command, list):
        lines += ["# the last command of the run:", "# " + shlex.join(map(str, command))]
    recipe = (card.source.run / "recipe.yaml").read_text(encoding="utf-8")
    return [
        "## Reproduce",
        "The resolved recipe is next to this card as `recipe.yaml`.",
        fenced("\n".join(lines), "bash"),
        card_table(("package", "version"), [(str(k), str(v)) for k, v in found]) if found else "",
        "<details>\n<summary>recipe.yaml</summary>\n\n" + fenced(recipe, "yaml") + "\n\n</details>",
    ]


def _limits(card: Card) -> list[str]:
    recipe = card.source.recipe
    lines = ["- Only the results above were measured; nothing else was tested."]
    if isinstance(recipe, RLRecipe):
        lines.append(
            "- The reward checked only final answers. Reasoning that leads to a right answer may "
            "be wrong, and prompts unlike those above may get no better answers than from the "
            "base model."
        )
    lines.append("- The biases and gaps of the base model remain, and its license applies.")
    return ["## Limits", "\n".join(lines)]
