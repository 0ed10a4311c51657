"""Who reads a recipe, or asks for help, waits for no torch: schemas and the command line are light.

A failure names the chain of imports. The remedy: ``from rlvr.lazy import torch`` where a module
only computes with it, or settings in a module of their own where it needs it when it loads.
"""

import subprocess
import sys

import pytest

from rlvr.tasks.registry import TASKS
from tests.import_graph import ROOT, chain, files, loaded_with

HEAVY = {
    *("torch", "transformers", "vllm", "datasets", "accelerate", "deepspeed", "trl", "peft"),
    *("numpy", "sympy", "math_verify", "matplotlib", "rich", "aiohttp", "psutil", "safetensors"),
    *("tokenizers", "huggingface_hub", "gguf"),
}
SCHEMAS = [
    *(task.schema_at.partition(":")[0] for task in TASKS.values()),
    *("rlvr.distill.recipe", "rlvr.bench.plan", "eval.settings", "launch.settings", "launch.job"),
]
COMMANDS = [name for name in files() if name.partition("rlvr.cli")[1]]


@pytest.mark.parametrize(
    "module", ["rlvr", *SCHEMAS, *COMMANDS, "rlvr.settings", "rlvr.tasks.registry"]
)
def test_nothing_heavy_is_imported(module):
    by = loaded_with(module)
    assert [chain(by, name) for name in sorted(HEAVY & by.keys())] == []


def test_recipes_are_refused_and_help_is_given_without_heavy_modules():
    code = f"""
import sys
from importlib import import_module

from typer.main import get_command

from rlvr.cli import app, main

def loaded():
    return sorted({HEAVY!r} & sys.modules.keys())

def verbs(command, words=()):
    yield [*words, "--help"]
    for name, inner in getattr(command, "commands", {{}}).items():
        yield from verbs(inner, (*words, name))

def run(words):
    sys.argv[1:] = words
    try:
        main()
    except SystemExit as end:
        return end.code

helped = list(verbs(get_command(app)))
assert len(helped) > 20
for words in helped:
    assert run(words) == 0, words
    assert not loaded(), (words, loaded())
for module in {SCHEMAS!r}:
    import_module(module)
    assert not loaded(), (module, loaded())
for words in (
    ["settings", "learner"],
    ["train", "nowhere.yaml"],
    ["train", "recipes/preference_tiny.yaml", "stepz=3"],
    ["train", "recipes/preference_tiny.yaml", "stepz=3", "--dry-run"],
    ["train", "recipes/lp_reg/qwen3_14b_gspo.yaml", "policy_loss.lwo=3"],
    ["launch", "nowhere.yaml", "--slurm"],
    ["launch", "recipes/preference_tiny.yaml", "--slurm", "stepz=3"],
    ["launch", "recipes/preference_tiny.yaml", "--slurm", "--nodes", "1", "--rollout-nodes", "1"],
    ["distill", "generate", "nowhere.yaml"],
    ["distill", "generate", "recipes/distill/tiny.yaml", "sampels=3"],
    ["eval", "model", "smaples=3"],
    ["plan", "nowhere.yaml"],
    ["bench", "--parts", "nothing"],
):
    code = run(words)
    assert code == (0 if words[0] == "settings" else 2), (words, code)
    assert not loaded(), (words, loaded())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(len(line) > 10 for line in done.stderr.splitlines())
