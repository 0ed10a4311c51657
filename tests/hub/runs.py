"""Small runs to export, and the greedy answers that their trainers gave."""

import json
import os
import sys
from pathlib import Path

from rich.console import Console
from safetensors.torch import load_file, save_file

from rlvr.policy.tiny import TinySettings, write_tiny_model
from rlvr.settings import load_settings
from rlvr.tasks.registry import find_task

ROOT = Path(__file__).parents[2]
SHAPE = TinySettings(hidden_size=64, layers=2, heads=2, key_value_heads=1)
"""Heads of 32, which vLLM's attention on a CPU takes."""


def tiny_model(folder):
    """A random model whose blocks weigh so much that its greedy answers wander."""
    write_tiny_model(folder, 0, SHAPE)
    path = folder / "model.safetensors"
    weights = load_file(path)
    wide = {name: 12 * t if "_proj" in name else t for name, t in weights.items()}
    save_file(wide, path, metadata={"format": "pt"})
    return folder


def rl_values(model, output, **changed):
    """Four steps whose evaluations answer twelve problems greedily, in up to 24 tokens.

    A random model earns no reward; the entropy bonus is what moves its weights.
    """
    source = {"name": "arithmetic", "digits": 1, "size": 60}
    return {
        "output": str(output),
        "steps": 4,
        "model": {"path": str(model)},
        "data": {"source": source, "template": "plain", "max_prompt_tokens": 16},
        "rollout": {
            "prompts_per_step": 4,
            "samples_per_prompt": 4,
            "sampling": {"max_tokens": 24},
        },
        "regularisers": [{"name": "entropy", "coefficient": -1.0}],
        "learner": {"lr": 3e-4},
        "evaluation": {
            "every": 2,
            "sets": {"held_out": {**source, "size": 12, "split": "held_out"}},
        },
        "checkpoint": {"every": 2, "keep": 2},
        **changed,
    }


def preference_values(model, folder, **changed):
    """Pairs of right and wrong sums, and a run on them, in ``folder``."""
    rows = [
        {"prompt": f"{a}+{b}=", "chosen": str(a + b), "rejected": str(a + b + 1)}
        for a in range(6)
        for b in range(6)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"name": "file", "path": str(folder / "pairs.jsonl")}
    return {
        "task": "preference",
        "output": str(folder / "run"),
        "steps": 4,
        "model": {"path": str(model)},
        "data": {"source": source, "per_step": 12},
        "losses": [{"name": "sigmoid"}],
        "learner": {"lr": 3e-4},
        "checkpoint": {"every": 2},
        **changed,
    }


def train(values):
    task = find_task(values.get("task", "rl"))
    return task.train(load_settings(task.schema, values), console=Console(quiet=True))


def answers(run, step):
    """Prompt and tokens of every greedy completion that the trainer kept."""
    text = (run / "evaluations" / f"step_{step:06d}.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert len(rows) == 12
    return [(row["prompt"], row["tokens"]) for row in rows]


def generated(folder, prompts, limit=24):
    """What ``AutoModelForCausalLM`` continues greedily, as decoded tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    found = []
    for prompt in prompts:
        inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
        output = model.generate(**inputs, do_sample=False, max_new_tokens=limit)
        ids = output[0, inputs["input_ids"].shape[1] :].tolist()
        found.append([tokenizer.decode([token]) for token in ids])
    return found


def environment(**more):
    """Of a command that speaks to a Hub on loopback, without the protocol that needs a second."""
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_XET": "1"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return {**kept, **own, **more}


def command(*arguments):
    return [sys.executable, "-m", "rlvr", "export", *map(str, arguments)]
