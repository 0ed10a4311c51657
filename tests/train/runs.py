"""Runs of a task in this process, and what they logged."""

import os

from rich.console import Console

from rlvr.settings import load_settings
from rlvr.train.log import read_metrics
from rlvr.train.tasks import find_task

SILENT = Console(file=open(os.devnull, "w"))  # noqa: SIM115


def run(values, *overrides, resume=False):
    """Train as the recipe says; the run folder and the rows of its metrics."""
    task = find_task(values.get("task", "rl"))
    recipe = load_settings(task.schema, values, overrides)
    task.train(recipe, resume=resume, console=SILENT)
    return recipe.output, read_metrics(recipe.output / "metrics.jsonl")


def column(metrics, name):
    """The values of one metric, row by row."""
    return [row[name] for row in metrics if name in row]
