"""The top of the page: what was run, and the result in one sentence."""

import fnmatch
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rlvr.report.history import History
from rlvr.report.recorded_run import RunFolder

SETS_IN_SUMMARY = 3
SATURATED = 0.99


def headline(run: RunFolder) -> dict[str, Any]:
    """Title, summary, key figures and facts of a run.

    Returns:
        ``title``; ``summary`` (one plain sentence or two); ``figures``, a list of ``{"label",
        "first", "last", "format"}`` (a change between two points of the run); ``facts``, a list
        of ``[name, text]``.
    """
    model, task = _model(run.recipe), _task(run.recipe)
    figures = _figures(run.history)
    return {
        "title": " on ".join(part for part in (_short(model), _short_task(run.recipe)) if part)
        or run.path.name,
        "summary": _summary(run.history, figures),
        "figures": figures,
        "facts": [[name, text] for name, text in _facts(run, model, task) if text],
    }


def _facts(run: RunFolder, model: str, task: str) -> list[tuple[str, str]]:
    info, history = run.info, run.history
    versions = info.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    seed = info.get("seed", run.recipe.get("seed"))
    command = info.get("command")
    return [
        ("Run", run.path.resolve().name),
        ("Model", model),
        ("Parameters", _parameters(info.get("model"))),
        ("Task", task),
        ("Method", _method(run.recipe)),
        ("Steps", _steps(run.recipe, history)),
        ("Branched from", _parent(info.get("parent"))),
        ("Seed", "" if seed is None else str(seed)),
        ("Saturation", _saturation(history)),
        ("Started", str(info.get("started", ""))),
        ("Time", _duration(sum(value for _, value in history.points("time/step")))),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("Command", shlex.join(map(str, command)) if isinstance(command, list) else ""),
    ]


def _parent(parent: object) -> str:
    """Run and step whose checkpoint this one began with."""
    if not isinstance(parent, Mapping):
        return ""
    return f"{parent.get('folder')}, after step {parent.get('step')}"


def _model(recipe: Mapping[str, Any]) -> str:
    model = recipe.get("model")
    if not isinstance(model, Mapping):
        return str(model or "")
    path = str(model.get("path") or model.get("name") or "")
    lora = model.get("lora")
    return f"{path} (LoRA rank {lora.get('rank', '?')})" if isinstance(lora, Mapping) else path


def _parameters(card: object) -> str:
    """Number of parameters in total, and for a mixture those that a token uses."""
    if not isinstance(card, Mapping) or not isinstance(total := card.get("parameters"), int):
        return ""
    active, k, experts = (
        card.get(key) for key in ("active_parameters", "experts_per_token", "experts")
    )
    if not isinstance(active, int):
        return f"{total:,}"
    return (
        f"{total:,}, {active:,} active per token ({k} of {experts} experts, "
        f"sparsity {card.get('sparsity')})"
    )


def _short(path: str) -> str:
    """Last part of a folder or Hub id."""
    return path.rstrip("/").rpartition("/")[2]


def _source(recipe: Mapping[str, Any]) -> object:
    data = recipe.get("data")
    if not isinstance(data, Mapping):
        return data
    files = data.get("sources")
    if isinstance(files, list):
        return ", ".join(_short(str(file)) for file in files)
    return data.get("source", data)


def _task(recipe: Mapping[str, Any]) -> str:
    return _named(_source(recipe))


def _short_task(recipe: Mapping[str, Any]) -> str:
    """The kind of problems, without their settings."""
    source = _source(recipe)
    if not isinstance(source, Mapping):
        return str(source or "")
    return str(
        source.get("task") or _short(str(source.get("path") or "")) or source.get("name") or ""
    )


def _method(recipe: Mapping[str, Any]) -> str:
    keys = ("advantage", "policy_loss", "loss", "regularisers", "reducer")
    parts = [(key, recipe[key]) for key in keys if recipe.get(key)]
    return "; ".join(f"{key.replace('_', ' ')}: {_named(value)}" for key, value in parts)


def _named(value: object) -> str:
    """A setting that is a named object, as text: ``clip (low 0.2, high 0.28)``."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " + ".join(_named(item) for item in value)
    if not isinstance(value, Mapping):
        return str(value or "")
    details = ", ".join(
        f"{key} {item}"
        for key, item in value.items()
        if key != "name" and item is not None and not isinstance(item, Mapping | list)
    )
    name = str(value.get("name") or "")
    return f"{name} ({details})" if name and details else name or details


def _steps(recipe: Mapping[str, Any], history: History) -> str:
    reached = str(history.steps[-1]) if history.steps else "0"
    planned = recipe.get("steps")
    return f"{reached} of {planned}" if isinstance(planned, int) else reached


def _saturation(history: History) -> str:
    """The step from which training accuracy stays at its limit, and held-out accuracy since then.

    Source: Wang et al., arXiv:2504.20571, who call it post-saturation generalisation.
    """
    reached = None
    for step, accuracy in reversed(history.points("reward/correct")):
        if accuracy < SATURATED:
            break
        reached = step
    if reached is None:
        return ""
    parts = [f"training accuracy at {100 * SATURATED:.0f} % or more from step {reached} on"]
    for name in fnmatch.filter(history.columns, "eval/*/accuracy"):
        points = history.points(name)
        since = [value for step, value in points if step >= reached]
        if since:
            label = name.removeprefix("eval/").removesuffix("/accuracy")
            parts.append(f"{label} since then {100 * since[0]:.1f} % to {100 * since[-1]:.1f} %")
    return "; ".join(parts)


def _duration(seconds: float) -> str:
    if seconds <= 0:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _figures(history: History) -> list[dict[str, Any]]:
    named = [
        (f"Held-out accuracy on {name.split('/', 1)[1].rpartition('/')[0]}", name, "fraction")
        for name in fnmatch.filter(history.columns, "eval/*/accuracy")
    ]
    if len(named) == 1:
        named = [("Held-out accuracy", named[0][1], "fraction")]
    for measure, label, style in (
        ("auc_within", "Held-out AUC within prompts", "fraction"),
        ("nll", "Held-out log-loss", "number"),
    ):
        for name in fnmatch.filter(history.columns, f"eval/*/{measure}"):
            named.append((f"{label} on {name.split('/', 1)[1].rpartition('/')[0]}", name, style))
    named += [
        ("Training reward", "reward/mean", "number"),
        ("Response length", "completion/length_mean", "count"),
        ("Training loss", "sft/loss", "number"),
    ]
    return [
        {"label": label, "metric": name, "format": style} | _change(history.points(name))
        for label, name, style in named
        if history.points(name)
    ]


def _change(points: list[tuple[int, float]]) -> dict[str, Any]:
    (first_step, first), (last_step, last) = points[0], points[-1]
    return {"first": first, "first_step": first_step, "last": last, "last_step": last_step}


def _summary(history: History, figures: list[dict[str, Any]]) -> str:
    if not history.steps:
        return "Nothing has been logged yet."
    held_out = [figure for figure in figures if figure["metric"].startswith("eval/")]
    parts = [_clause(figure) for figure in figures if figure not in held_out[SETS_IN_SUMMARY:]]
    if not parts:
        return f"{history.steps[-1]} steps, without reward or evaluation."
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def _clause(figure: Mapping[str, Any]) -> str:
    """``held-out accuracy rose from 26 % (before training) to 91 % (step 60)``."""
    first, last = (_value(figure[key], figure["format"]) for key in ("first", "last"))
    name = figure["label"][:1].lower() + figure["label"][1:]
    unit = " tokens" if figure["format"] == "count" else ""
    start = "before training" if figure["first_step"] == 0 else f"step {figure['first_step']}"
    if figure["first_step"] == figure["last_step"]:
        return f"{name} was {last}{unit} ({start})"
    if first == last:
        return f"{name} stayed at {last}{unit} to step {figure['last_step']}"
    verb = "rose" if figure["last"] > figure["first"] else "fell"
    return f"{name} {verb} from {first} ({start}) to {last}{unit} (step {figure['last_step']})"


def _value(value: float, style: str) -> str:
    if style == "fraction":
        return f"{100 * value:.1f} %"
    return f"{value:.1f}" if style == "count" else f"{value:.3g}"
