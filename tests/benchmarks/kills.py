"""Random SIGKILLs: a run that is killed and resumed leaves what an undisturbed run leaves.

    python -m tests.benchmarks.kills --count 100 --seed 0 --out build/kills

Every task and every verb that writes as it goes is run once undisturbed. Then runs are started,
killed at random moments, and resumed, which may be killed too, until one comes to its end. A third
of the kills fall anywhere in the time that half of the undisturbed run takes, so often while a run
starts or resumes; the others up to a third of a second after a few new records. What it leaves is
compared bit for bit: weights, optimizer and counters of the newest checkpoint, completions and
samples, and all metrics but times, rates and sizes of memory.

Each attempt is a fork of this process, which has loaded the libraries and nothing else, so that an
attempt costs a second instead of ten. OUT/results.jsonl has a line for every run that came to its
end; the same command goes on from there. The table at the end counts kills, those that hit before
a resumed run had written a new line of metrics, and runs that differ.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from safetensors.torch import load_file

import eval.score
import rlvr.rl.run
import rlvr.runs.scoring
from eval.run import evaluate
from eval.targets import find_targets
from reward import VerifierPool
from reward.worker import _die_with_parent
from rlvr.distill.filter import run_filter
from rlvr.distill.generate import generate
from rlvr.distill.recipe import DistillRecipe
from rlvr.files import append_line, read_lines, write_lines
from rlvr.learner.checkpoint import latest_checkpoint
from rlvr.policy.settings import ModelSettings
from rlvr.policy.tiny import TinySettings, write_tiny_model
from rlvr.settings import load_settings
from rlvr.tasks.registry import find_task
from tests.eval.small import ENGINE, ROWS, settings_for
from tests.rl.test_rollouts import CopyEngine
from tests.tasks.test_prm import rows_of
from tests.training import small_recipe

TIMES = ("time/", "throughput/", "memory/")
# Of a folder: when things happened, and what says nothing about the result.
IGNORED = ("timeline.jsonl", "run.json", "log.jsonl", "recipe.yaml", "report.html", "results.json")
LONGEST_S = 600.0
"""Of an attempt; after it, the case hangs."""
MOST_KILLS = 6
"""Of one run; then it is left to come to its end."""


@dataclass(frozen=True)
class Case:
    """Something that writes a folder and goes on when it is called again."""

    name: str
    work: Callable[[Path], None]
    """Begins or goes on in a folder."""


def cases(data: Path) -> list[Case]:
    """All of them, with models and data in ``data``."""
    if not (data / "model").is_dir():
        shape = TinySettings(hidden_size=32, layers=1, heads=2, key_value_heads=2)
        write_tiny_model(data / "model", 0, shape)
        write_tiny_model(data / "student", 1, shape)
        _write_data(data)
    model = str(data / "model")
    rl = small_recipe(model, "")
    rl["reward"] = {"functions": [{"function": "accuracy"}, _LENGTH]}
    ahead = {**rl, "rollout": {**rl["rollout"], "max_staleness": 1, "engine": {"name": "vllm"}}}
    filtered = {**rl["rollout"], "dynamic_sampling_rounds": 1, "oversample": 1.5}
    carried = {**rl, "rollout": {**filtered, "carry_over_steps": 2}}
    adapters = {**rl, "model": {"path": model, "lora": {"rank": 2}}}
    recipes = {
        "rl": rl,
        "rl, asynchronous": ahead,
        "rl, carried over, in the background": {
            **carried,
            "checkpoint": {"every": 2, "keep": 2, "background": True},
        },
        "rl, critic": {**rl, "advantage": {"name": "gae"}, "rollout": rl["rollout"]},
        "rl, prime": {**rl, "prime": {}},
        "rl, adapters": adapters,
        **_offline(data, model),
    }
    return [
        *(Case(name, partial(_train, recipe)) for name, recipe in recipes.items()),
        Case("eval", partial(_evaluate, data)),
        Case("distill", partial(_distill, data)),
    ]


_LENGTH = {"function": "length", "parameters": {"target": 8}}


def _offline(data: Path, model: str) -> dict[str, dict[str, Any]]:
    problems = {"name": "arithmetic", "digits": 1, "size": 12}
    answered = {
        "every": 3,
        "sets": {"sums": problems},
        "sampling": {"max_tokens": 8, "temperature": 1.0},
    }
    pairs = {"name": "file", "path": str(data / "pairs.jsonl")}
    responses = str(data / "responses.jsonl")
    common = {
        "steps": 6,
        "model": {"path": model},
        "learner": {"lr": 3e-3},
        "checkpoint": {"every": 2, "keep": 2},
    }
    preference = {
        **common,
        "task": "preference",
        "data": {"source": pairs, "per_step": 20},
        "losses": [{"name": "sigmoid"}],
        "evaluation": {**answered, "pairs": {"held_out": {**pairs, "limit": 10}}},
    }
    labels = {"sources": [responses], "per_step": 16}
    held_out = {"every": 3, "responses": {"held_out": [responses]}}
    best = {"every": 2, "keep_best": "held_out"}
    return {
        "preference": preference,
        "preference, drawn by loss": {
            **preference,
            "data": {"source": pairs, "per_step": 20, "resample": {}},
        },
        "prm": {**common, "task": "prm", "data": labels, "evaluation": held_out},
        "reward model": {
            **common,
            "task": "reward_model",
            "data": {**labels, "hold_out": 0.3},
            "head_lr": 1e-2,
            "evaluation": best,
        },
        "sft": {
            **{name: value for name, value in common.items() if name != "steps"},
            "task": "sft",
            "epochs": 2,
            "data": {"sources": [str(data / "demonstrations.jsonl")], "per_step": 20},
            "evaluation": {**answered, "traces": {"held_out": [str(data / "few.jsonl")]}},
        },
    }


def _write_data(data: Path) -> None:
    sums = [(a, b) for a in range(10) for b in range(5)]
    right = [f"\\boxed{{{a + b}}}" for a, b in sums]
    demonstrations = [
        {"prompt": f"{a}+{b}=", "response": box} for (a, b), box in zip(sums, right, strict=True)
    ]
    write_lines(data / "demonstrations.jsonl", demonstrations)
    write_lines(data / "few.jsonl", demonstrations[:6])
    wrong = [f"\\boxed{{{(a + b + 3) % 19}}}" for a, b in sums] * 2
    asked = [row["prompt"] for row in demonstrations]
    chosen = zip(asked * 2, right * 2, wrong, strict=True)
    rows = [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in chosen]
    write_lines(data / "pairs.jsonl", rows)
    write_lines(data / "responses.jsonl", rows_of(0, problems=12))
    write_lines(data / "sums.jsonl", ROWS)


def _train(values: dict[str, Any], folder: Path) -> None:
    task = find_task(values.get("task", "rl"))
    # Under nice, on a busy machine, a worker may take minutes to start.
    rlvr.runs.scoring.VerifierPool = partial(VerifierPool, start_timeout=LONGEST_S)
    recipe = load_settings(task.schema, {**values, "output": str(folder)})
    rlvr.rl.run.build_engine = _copying_engine if _is_asynchronous(values) else _build_engine
    task.train(recipe, resume=True, console=Console(file=sys.stdout))


_build_engine = rlvr.rl.run.build_engine


def _is_asynchronous(values: dict[str, Any]) -> bool:
    return bool(values.get("rollout", {}).get("max_staleness"))


def _copying_engine(
    _settings: object, policy: Any, stop_ids: Any, *_: object, **__: object
) -> CopyEngine:
    """An engine with weights of its own, as vLLM's, in this process."""
    return CopyEngine(policy, stop_ids, lambda: None)


def _evaluate(data: Path, folder: Path) -> None:
    eval.score.ALONGSIDE = ()  # each further grader starts processes of its own
    settings = settings_for(data / "sums.jsonl", samples=4, engine=ENGINE, greedy=True)
    targets = find_targets(ModelSettings(path=str(data / "model")))
    evaluate(settings, targets, folder, console=Console(file=sys.stdout))


def _distill(data: Path, folder: Path) -> None:
    recipe = load_settings(
        DistillRecipe,
        {
            "task": "distill",
            "output": str(folder),
            "teacher": {"path": str(data / "model")},
            "student": {"path": str(data / "student")},
            "data": {
                "source": {"name": "arithmetic", "digits": 1, "size": 6},
                "template": "plain",
            },
            "samples": 4,
            "max_tokens": 16,
            "acceptance_rule": {"threshold": 0.012, "draws": 2},
            "engine": {"name": "transformers", "rows": 1},
        },
    )
    generate(recipe, resume=True, console=Console(file=sys.stdout))
    run_filter(recipe)


# What a folder holds.


def contents(folder: Path) -> dict[str, Any]:
    """Everything in a folder that must not depend on kills, by name."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.name in IGNORED or name.startswith(("checkpoints/", "parts/")):
            continue
        found[name] = _metrics(path) if name == "metrics.jsonl" else _digest(path)
    newest = latest_checkpoint(folder / "checkpoints")
    if newest is not None:
        found["checkpoint"] = newest.name
        for path in sorted(path for path in newest.rglob("*") if path.is_file()):
            if path.name != "MANIFEST.json":
                found[f"checkpoint: {path.relative_to(newest)}"] = _digest(path)
    return found


def _metrics(path: Path) -> dict[str, dict[str, Any]]:
    """The merged record of every step, without times."""
    steps: dict[str, dict[str, Any]] = {}
    for row in read_lines(path).objects:
        kept = {name: value for name, value in row.items() if not name.startswith(TIMES)}
        steps.setdefault(str(row["step"]), {}).update(kept)
    return steps


def _digest(path: Path) -> str:
    if path.suffix == ".safetensors":
        tensors = load_file(path)
        digest = hashlib.sha256()
        for name in sorted(tensors):
            tensor = tensors[name].contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.flatten().view(tensor.dtype).numpy().tobytes())
        return digest.hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest()


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What two folders do not share, by name; of metrics, the step and the metric."""
    names: list[str] = []
    for name in sorted(expected.keys() | found.keys()):
        one, two = expected.get(name), found.get(name)
        if one == two:
            continue
        if not (isinstance(one, dict) and isinstance(two, dict)):
            names.append(f"{name}{'' if one and two else ' is missing in one'}")
            continue
        for step in sorted(one.keys() | two.keys()):
            old, new = one.get(step, {}), two.get(step, {})
            changed = [
                key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)
            ]
            names += [f"{name} step {step}: {key}" for key in changed]
    return names


# Attempts.


@dataclass(frozen=True)
class Kill:
    """When to kill: so many seconds after so many changes of the records."""

    changes: int
    seconds: float


def attempt(case: Case, folder: Path, log: Path, kill: Kill | None) -> tuple[str, float]:
    """Fork, work, and perhaps kill: how it ended, and how long it took."""
    began = time.monotonic()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        _die_with_parent(parent)
        _work(case, folder, log)
    deadline = began + (kill.seconds if kill and not kill.changes else LONGEST_S)
    changes, written = 0, _written(folder)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if kill and changes < kill.changes and written != (written := _written(folder)):
            changes += 1
            if changes == kill.changes:
                deadline = time.monotonic() + kill.seconds
        if time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            break
        time.sleep(0.002)
    taken = time.monotonic() - began
    if os.WIFSIGNALED(status):
        return ("killed" if kill is not None else "hangs"), taken
    return ("ended" if os.WEXITSTATUS(status) == 0 else "failed"), taken


def _work(case: Case, folder: Path, log: Path) -> None:
    """In the child: work, with what is written in a file, and never come back."""
    code = 1
    try:
        with log.open("a") as file, contextlib.redirect_stdout(file):
            os.dup2(file.fileno(), 2)
            case.work(folder)
            code = 0
    except BaseException as error:
        import traceback

        with log.open("a") as file:
            file.write("".join(traceback.format_exception(error)))
    finally:
        os._exit(code)


def undisturbed(case: Case, out: Path) -> tuple[dict[str, Any], float]:
    """What the case leaves, and how long it takes; made where it is not there yet."""
    folder = out / "undisturbed" / _folder_name(case)
    record = folder.with_suffix(".json")
    if not record.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        how, seconds = attempt(case, folder, folder.with_suffix(".log"), None)
        if how != "ended":
            raise SystemExit(f"{case.name} {how} undisturbed; see {folder.with_suffix('.log')}")
        record.write_text(json.dumps({"seconds": seconds}))
    return contents(folder), json.loads(record.read_text())["seconds"]


def _folder_name(case: Case) -> str:
    return case.name.replace(", ", "-").replace(" ", "_")


def run_with_kills(case: Case, number: int, seed: int, out: Path) -> dict[str, Any]:
    """One run, killed at random until it comes to its end; its line of results."""
    expected, seconds = undisturbed(case, out)
    generator = random.Random(f"{seed}/{case.name}/{number}")
    folder = out / "runs" / f"{_folder_name(case)}-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    log, kills, resuming, how = folder.with_suffix(".log"), 0, 0, "killed"
    while how == "killed":
        before = _written(folder)
        kill = Kill(generator.randint(1, 5), generator.random() / 3)
        if generator.random() < 1 / 3:
            kill = Kill(0, generator.random() * seconds / 2)
        how, _ = attempt(case, folder, log, kill if kills < MOST_KILLS else None)
        kills += how == "killed"
        resuming += how == "killed" and kills > 1 and _written(folder) == before
    found = differences(expected, contents(folder)) if how == "ended" else [f"{how}; see {log}"]
    if not found:
        shutil.rmtree(folder)
        log.unlink()
    return {
        "case": case.name,
        "number": number,
        "kills": kills,
        "in_resume": resuming,
        "differences": found,
    }


def _written(folder: Path) -> int:
    files = [folder / "metrics.jsonl", *folder.glob("parts/*.jsonl")]
    return sum(path.stat().st_size for path in files if path.is_file())


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: a line for every case, and what differed."""
    yield "| case | runs | kills | of them in a resume | runs that differ |"
    yield "|---|---|---|---|---|"
    for name in [*dict.fromkeys(row["case"] for row in rows), "all"]:
        own = [row for row in rows if name in (row["case"], "all")]
        bad = sum(bool(row["differences"]) for row in own)
        kills, resuming = (sum(row[key] for row in own) for key in ("kills", "in_resume"))
        yield f"| {name} | {len(own)} | {kills} | {resuming} | {bad} |"
    for row in rows:
        if row["differences"]:
            yield f"{row['case']} {row['number']}: {'; '.join(row['differences'][:6])}"


def record_kills(
    chosen: Sequence[Case],
    wanted: int,
    out: Path,
    run: Callable[[Case, int], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Run cases in turn until so many kills are recorded in ``results.jsonl``; all its rows."""
    results = out / "results.jsonl"
    rows = list(read_lines(results, ended=True).objects)
    number = 0
    while sum(row["kills"] for row in rows) < wanted:
        for case in chosen:
            if any((row["case"], row["number"]) == (case.name, number) for row in rows):
                continue
            row = run(case, number)
            append_line(results, row)
            rows.append(row)
            print(json.dumps(row), flush=True)
            if sum(row["kills"] for row in rows) >= wanted:
                break
        number += 1
    return rows


def main() -> None:
    """Kill until ``--count`` kills are recorded."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=100, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/kills"))
    parser.add_argument("--case", action="append", help="only this one; may be repeated")
    given = parser.parse_args()
    out = given.out.absolute()
    (out / "data").mkdir(parents=True, exist_ok=True)
    chosen = [case for case in cases(out / "data") if not given.case or case.name in given.case]
    if not chosen:
        raise SystemExit(f"--case: the cases are {[case.name for case in cases(out / 'data')]}")
    (out / "cases.yaml").write_text(yaml.safe_dump([case.name for case in chosen]))
    rows = record_kills(
        chosen, given.count, out, lambda case, number: run_with_kills(case, number, given.seed, out)
    )
    print("\n".join(table(rows)))
    sys.exit(any(row["differences"] for row in rows))


if __name__ == "__main__":
    main()
