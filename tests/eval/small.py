"""A small benchmark and evaluations of the tiny model."""

from pathlib import Path

from rich.console import Console

from eval.models import find_targets
from eval.plan import EvalSettings
from eval.run import evaluate
from rlvr.policy import ModelSettings
from rlvr.rollout import TransformersEngineSettings

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
