"""Runs of a task in this process, and what they logged."""

import os

from rich.console import Console

from rlvr.runs.log import read_metrics
from rlvr.settings import load_settings
from rlvr.tasks.registry import find_task

SILENT = Console(file=open(os.devnull, "w"))  # noqa: SIM115


def run(values, *overrides, resume=False):
    """Train as the recipe says; the run folder and the rows of its metrics."""
    task = find_task(values.get("task", "rl"))
    recipe = load_settings(task.schema, values, overrides)
    task.train(recipe, resume=resume, console=SILENT)
    return recipe.output, read_metrics(recipe.output / "metrics.jsonl")


def small_recipe(model, output):
    """Reinforcement learning in six steps, as a mapping."""
    source = {"name": "arithmetic", "digits": 1, "size": 60}
    return {
        "output": str(output),
        "steps": 6,
        "model": {"path": str(model)},
        "data": {"source": source, "template": "plain", "max_prompt_tokens": 16},
        "rollout": {
            "prompts_per_step": 6,
            "samples_per_prompt": 6,
            "sampling": {"max_tokens": 8},
        },
        "learner": {"lr": 3e-3, "updates_per_rollout": 2},
        "regularisers": [{"name": "kl", "coefficient": 0.01}],
        "evaluation": {
            "every": 2,
            "sets": {"held_out": {**source, "size": 12, "split": "held_out"}},
        },
        "checkpoint": {"every": 2, "keep": 2},
    }


def column(metrics, name):
    """The values of one metric, row by row."""
    return [row[name] for row in metrics if name in row]
