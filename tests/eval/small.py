"""A small benchmark and evaluations of the tiny model."""

import json
from pathlib import Path

import numpy as np
from rich.console import Console

from eval.run import evaluate
from eval.settings import EvalSettings
from eval.targets import find_targets
from rlvr.policy.settings import ModelSettings
from rlvr.rollout.settings import TransformersEngineSettings

NASTY = "</script><img src=x onerror=\"document.title='taken'\"><svg onload=alert(1)> {{data}}"
ENGINE = TransformersEngineSettings(max_rows=6)

ROWS = [
    {
        "id": f"sum-{a}-{b}",
        "problem": f"{a} + {b}",
        "answer": str(a + b),
        "subject": "sums" if a < 4 else "more sums",
        "level": 1 + b % 2,
    }
    for a in (1, 2, 3, 4, 5)
    for b in (2, 5)
]


def settings_for(path, **changed) -> EvalSettings:
    given = {"samples": 2, "max_tokens": 6, "template": "raw", "temperature": 1.0, "workers": 1}
    return EvalSettings(benchmarks=(str(path),), **{**given, **changed})


def run(model, path, out, **changed):
    """Evaluate a model folder on one file, quietly."""
    targets = find_targets(ModelSettings(path=str(model)))
    return evaluate(settings_for(path, **changed), targets, out, console=Console(quiet=True))


def files_of(folder: Path) -> dict[str, bytes]:
    """All files of an evaluation but the log of when it ran."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "log.jsonl"
    }


def write_samples(folder: Path, label: str, rate: float, seed: int = 0, n: int = 4) -> Path:
    """A finished evaluation with made-up responses, of which about ``rate`` are right.

    One problem of each benchmark holds markup, and one response in ten is cut.
    """
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    names = {"math500": 12, "aime24": 8}
    problems, samples = [], []
    for name, count in names.items():
        for index in range(count):
            level = {"level": str(1 + index % 5), "subject": ("Algebra", "Geometry")[index % 2]}
            question = NASTY if index == 3 else f"What is {index} + {index}?"
            place = {"benchmark": name, "problem": f"{name}-{index}"}
            problems.append(
                {
                    **place,
                    "prompt": f"<|im_start|>user\n{question}",
                    "question": question,
                    "answer": str(2 * index),
                    **(level if name == "math500" else {}),
                }
            )
            for sample in range(n):
                samples.append({**place, **_response(random, index, sample, rate)})
    item = {
        "title": "", "data": "file", "data_fingerprint": "f", "problems": 1, "of": 1, "samples": n,
        "greedy": False, "temperature": 0.6, "top_p": 1.0, "top_k": 0, "max_tokens": 99,
        "template": {}, "template_sha256": "t", "prompts_sha256": "p",
    }  # fmt: skip
    sizes = names.items()
    plan = {
        "model": {
            "label": label, "path": f"models/{label}", "parameters": 135_000_000,
            "weights_sha256": "0" * 64, "precision": "float32",
        },
        "engine": "vllm", "versions": {"rlvr": "0.1.0"}, "protocol": "rlvr", "grader": "rlvr",
        "truncated": "wrong", "seed": 0, "limit": None, "only": [], "notes": [],
        "benchmarks": {k: {**item, "title": k.upper(), "problems": c, "of": c} for k, c in sizes},
    }  # fmt: skip
    (folder / "plan.json").write_text(json.dumps(plan))
    for file, rows in (("problems.jsonl", problems), ("samples.jsonl", samples)):
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _response(random, index: int, sample: int, rate: float) -> dict:
    right, cut = random.random() < rate, random.random() < 0.1
    given = 2 * index if right else 2 * index + int(random.integers(1, 3))
    ending = "" if cut else f"The answer is \\boxed{{{given}}}."
    ending = f"Answer: {given}" if random.random() < 0.1 and not cut else ending
    return {
        "greedy": False,
        "sample": sample,
        "response": f"{NASTY if index == 3 else 'Add the number to itself.'} {ending}",
        "tokens": int(random.integers(10, 90)),
        "finish_reason": "length" if cut else "stop",
    }
