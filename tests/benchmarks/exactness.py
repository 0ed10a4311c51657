"""The same bits whatever the layout: runs of one recipe with ``learner.exact`` in many layouts.

    python -m tests.benchmarks.exactness --out build/exactness
    python -m tests.benchmarks.exactness --out build/exactness --shape smollm2
    python -m tests.benchmarks.exactness --out build/exactness --cost

Every layout is a run of its own, started as users start one: ``rlvr train``, or ``accelerate
launch`` with a file of launch/accelerate. Some are killed after their second step and resumed, also
by another number of processes. Compared are the SHA-256 of the weights (bytes of all tensors, by
name) and of ``metrics.jsonl`` without times, rates and sizes of memory. OUT/results.jsonl has a
line for each run; the same command goes on from there, and prints the tables.

``--shape smollm2`` does so for fewer layouts and 3 steps with a model of SmolLM2-135M's shape and
random weights, in OUT/smollm2.jsonl. It needs 12 GiB of memory.

``--cost`` measures instead what an update takes with and without it, in turn in one process, on a
model of SmolLM2-135M's shape with random weights: 8 completions in two groups, in seconds of the
processor, which other processes do not change.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from rlvr.files import append_line, read_lines, write_lines
from rlvr.learner.checkpoint import checkpoint_path
from rlvr.policy.tiny import TinySettings, write_tiny_model
from tests.learner.launching import command
from tests.training import small_recipe

TIMES = ("time/", "throughput/", "memory/", "phase/")
STEPS, LARGE_STEPS = 4, 3


@dataclass(frozen=True)
class Layout:
    """How a run is laid out.

    Attributes:
        task: The recipe.
        config: A file of launch/accelerate; None is ``rlvr train``.
        processes: How many.
        tokens: ``learner.tokens_per_micro_batch``.
        layout: ``learner.layout``.
        rows: ``rollout.engine.max_rows``.
        resumed: Configuration and processes that it goes on with after a kill.
        exact: ``learner.exact``.
        model: More settings, of the model.
        large: Whether the model has SmolLM2's shape.
    """

    task: str = "rl"
    config: str | None = None
    processes: int = 1
    tokens: int = 4096
    layout: str = "padded"
    rows: int = 256
    resumed: tuple[str | None, int] | None = None
    exact: bool = True
    model: dict[str, Any] = field(default_factory=dict)
    large: bool = False

    @property
    def name(self) -> str:
        """Unique among all."""
        launched = f"{self.config or 'one'} x{self.processes}"
        said = f"{self.task} {launched} {self.layout} {self.tokens} rows {self.rows}"
        if self.resumed is not None:
            said += f" killed, on as {self.resumed[0] or 'one'} x{self.resumed[1]}"
        said += "".join(f" {key} {value}" for key, value in self.model.items())
        return said if self.exact else f"{said} ordinary"


def layouts() -> list[Layout]:
    """All of them; the first of each kind is what others are compared with."""
    alone = [
        Layout(tokens=tokens, layout=layout, rows=rows)
        for tokens, layout, rows in (
            (4096, "padded", 256),
            (4096, "packed", 256),
            (64, "padded", 256),
            (64, "packed", 256),
            (1, "padded", 256),
            (300, "packed", 256),
            (300, "padded", 7),
            (4096, "packed", 1),
        )
    ]
    several = [
        Layout(config=config, processes=count, tokens=tokens, layout=layout)
        for config in ("multi_cpu", "zero1", "zero2", "zero3")
        for count, tokens, layout in ((2, 64, "packed"), (2, 4096, "padded"), (4, 100, "padded"))
    ]
    killed = [
        Layout(resumed=(None, 1)),
        Layout(resumed=("multi_cpu", 2), tokens=64, layout="packed"),
        Layout(config="multi_cpu", processes=2, resumed=(None, 1)),
        Layout(config="zero2", processes=2, resumed=("multi_cpu", 4), layout="packed"),
        Layout(config="multi_cpu", processes=4, resumed=("zero1", 2), tokens=64),
    ]
    tuned = [
        Layout("sft", config, count, tokens, layout)
        for config, count, tokens, layout in (
            (None, 1, 4096, "padded"),
            (None, 1, 64, "packed"),
            ("multi_cpu", 2, 64, "padded"),
            ("zero2", 2, 4096, "packed"),
            ("zero1", 4, 64, "padded"),
        )
    ]
    tuned.append(Layout("sft", "zero2", 2, resumed=(None, 1)))
    ordinary = [
        Layout(exact=False),
        Layout(exact=False, tokens=64),
        Layout(exact=False, layout="packed"),
        Layout(exact=False, config="multi_cpu", processes=2),
    ]
    # In turn, so that what is done when it is stopped says something of each.
    kinds = (alone, several, killed, tuned, ordinary)
    return [one for some in zip_longest(*kinds) for one in some if one is not None]


def large_layouts() -> list[Layout]:
    """Those of the larger model: what differs between them differs in the grid of the tiny one."""
    several = [("multi_cpu", 64, "packed"), ("zero1", 4096, "padded"), ("zero2", 64, "padded"),
               ("zero3", 4096, "packed")]  # fmt: skip
    return [
        Layout(large=True),
        Layout(tokens=64, layout="packed", rows=5, large=True),
        *(Layout("rl", c, 2, tokens, layout, large=True) for c, tokens, layout in several),
        Layout(config="multi_cpu", processes=2, resumed=(None, 1), large=True),
        Layout(resumed=("zero2", 2), layout="packed", tokens=64, large=True),
        Layout(exact=False, large=True),
        Layout(exact=False, large=True, config="multi_cpu", processes=2),
    ]


def recipe_of(layout: Layout, data: Path, output: Path) -> dict[str, Any]:
    """The recipe of a run."""
    model = str(data / ("smollm2" if layout.large else "model"))
    learner: dict[str, Any] = {"lr": 3e-3, "exact": layout.exact}
    learner |= {"tokens_per_micro_batch": layout.tokens, "layout": layout.layout}
    checkpoint = {"every": 2, "keep": 2}
    if layout.task == "sft":
        return {
            "task": "sft",
            "output": str(output),
            "steps": STEPS,
            "model": {"path": model, **layout.model},
            "data": {"sources": [str(data / "traces.jsonl")], "per_step": 10},
            "learner": learner,
            "checkpoint": checkpoint,
        }
    recipe = small_recipe(model, output)
    # An untrained model is never right: lengths differ, and there is something to learn.
    length = {"function": "length", "parameters": {"target": 8}}
    reward = {"functions": [{"function": "accuracy"}, length]}
    recipe |= {"steps": STEPS, "checkpoint": checkpoint, "reward": reward}
    recipe["model"] |= layout.model
    recipe["learner"] |= learner
    recipe["rollout"]["engine"] = {"name": "transformers", "max_rows": layout.rows}
    return smaller(recipe) if layout.large else recipe


def smaller(recipe: dict[str, Any]) -> dict[str, Any]:
    """Three short steps of a larger model, of two updates with two units each."""
    recipe |= {"steps": LARGE_STEPS, "evaluation": {}, "checkpoint": {"every": 1, "keep": 1}}
    recipe["rollout"] |= {"prompts_per_step": 4, "samples_per_prompt": 4}
    recipe["learner"]["lr"] = 1e-4
    return recipe


def start(config: str | None, processes: int, *arguments: str) -> subprocess.Popen[bytes]:
    """A run, in a group of processes of its own."""
    own = ["-m", "rlvr", "train", *arguments]
    whole = [sys.executable, *own]
    if config is not None:
        whole = command(config, *own, processes=processes)
    threads = {} if config is None else {"OMP_NUM_THREADS": "1"}
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | threads
    return subprocess.Popen(
        whole,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=environment,
    )


def finish(process: subprocess.Popen[bytes], name: str) -> None:
    """Wait for its end.

    Raises:
        SystemExit: It failed.
    """
    _, said = process.communicate(timeout=3600)
    if process.returncode:
        raise SystemExit(f"{name}: {said.decode()[-3000:]}")


def run(layout: Layout, data: Path, folder: Path) -> dict[str, Any]:
    """Carry a layout out; what it left."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path, output = folder / "recipe.yaml", folder / "run"
    path.write_text(yaml.safe_dump(recipe_of(layout, data, output)))
    began = time.perf_counter()
    process = start(layout.config, layout.processes, str(path))
    if layout.resumed is not None:
        kill_after(process, checkpoint_path(output / "checkpoints", 1 if layout.large else 2))
        process = start(*layout.resumed, str(path), "--resume")
    finish(process, layout.name)
    found = {"name": layout.name, **digests(output), "seconds": time.perf_counter() - began}
    shutil.rmtree(folder)
    return found


def kill_after(process: subprocess.Popen[bytes], there: Path) -> None:
    """Kill a run and all its processes once it has written something."""
    while not there.exists() and process.poll() is None:
        time.sleep(0.02)
    assert process.poll() is None, "it ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def digests(output: Path) -> dict[str, Any]:
    """SHA-256 of weights and metrics, and the metrics themselves."""
    weights = hashlib.sha256()
    for file in sorted((output / "model").glob("*.safetensors")):
        for name, tensor in sorted(load_file(file).items()):
            weights.update(name.encode() + tensor.contiguous().numpy().tobytes())
    # A step has several lines, and those of a killed run are parted otherwise; readers merge them.
    steps: dict[int, dict[str, Any]] = {}
    for row in read_lines(output / "metrics.jsonl").objects:
        own = {key: value for key, value in row.items() if not key.startswith(TIMES)}
        steps.setdefault(row["step"], {}).update(own)
    rows = [row for _, row in sorted(steps.items())]
    text = "\n".join(json.dumps(row, sort_keys=True) for row in rows)
    return {
        "weights": weights.hexdigest(),
        "metrics": hashlib.sha256(text.encode()).hexdigest(),
        "rows": rows,
    }


def differing(rows: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> list[str]:
    """Names of metrics that are not the same in all rows."""
    if len(rows) != len(others):
        return [f"{len(rows)} rows and {len(others)}"]
    pairs = zip(rows, others, strict=True)
    names = {key for a, b in pairs for key in a | b if a.get(key) != b.get(key)}
    return sorted(names)


def write_data(data: Path) -> None:
    """The tiny model, and what it is tuned on."""
    if (data / "traces.jsonl").exists():
        return
    shape = TinySettings(hidden_size=32, layers=2, heads=4, key_value_heads=2)
    write_tiny_model(data / "model", 0, shape)
    rows = [{"prompt": f"{a}+{b}=", "response": str(a + b) * (1 + a % 3)} for a in range(8)
            for b in range(6)]  # fmt: skip
    write_lines(data / "traces.jsonl", rows)


def write_large(folder: Path) -> None:
    """A model of SmolLM2's shape that writes characters, and sometimes the end."""
    if folder.exists():
        return
    from tests.benchmarks.memory_options import write_model

    write_model(folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    rows = len(AutoTokenizer.from_pretrained(folder))
    # Untrained, it would draw from 49,152 ids evenly, nearly none of which the tokenizer knows.
    tensors["model.embed_tokens.weight"][:rows] *= LOUDER
    save_file(tensors, path, metadata={"format": "pt"})


LOUDER = 12
"""Times the rows of characters in the embedding."""


def table(results: Sequence[dict[str, Any]]) -> str:
    """Of all runs that are done, in Markdown."""
    lines = ["| run | weights | metrics | differ |", "|---|---|---|---|"]
    first: dict[tuple[str, bool], dict[str, Any]] = {}
    for row in results:
        kind = row["name"].split()[0], row["name"].endswith("ordinary")
        reference = first.setdefault(kind, row)
        names = differing(reference["rows"], row["rows"])
        said = ", ".join(names) if len(names) < 4 else f"{len(names)}, as {names[0]}"
        cells = row["name"], row["weights"][:12], row["metrics"][:12], said or "none"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def cost(out: Path, rounds: int) -> None:
    """Processor seconds of an update, ordinary and exact, side by side."""
    import torch

    from rlvr.learner.learner import Learner
    from rlvr.learner.settings import LearnerSettings
    from rlvr.objective.objective import Objective
    from rlvr.objective.policy_losses.clip import Clip
    from rlvr.objective.reducers import TokenMean
    from rlvr.policy.loading import load_policy
    from rlvr.policy.settings import ModelSettings
    from tests.benchmarks.memory_options import write_model
    from tests.learner.batches import make_batch

    torch.set_num_threads(1)
    folder = out / "smollm2"
    if not folder.exists():
        write_model(folder)
    ways = {
        "ordinary, padded": {"layout": "padded"},
        "ordinary, packed": {"layout": "packed"},
        "exact": {"exact": True},
    }
    batch = make_batch([1.0, 0, 0, 1] * 2, group=4, longest=LONGEST, dtype=torch.float32)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for round_ in range(rounds):
        for way, settings in ways.items():
            learner = Learner(
                load_policy(ModelSettings(path=str(folder))),
                Objective(Clip(), (), TokenMean()),
                LearnerSettings(lr=1e-5, **settings),
            )
            learner.update(batch)  # makes the moments
            began = time.process_time()
            learner.update(batch)
            took = time.process_time() - began
            seconds[way].append(took)
            append_line(out / "cost.jsonl", {"round": round_, "way": way, "seconds": took})
            print(f"{way}: {took:.2f} s", flush=True)
            del learner
    ordinary = statistics.median(seconds["ordinary, padded"])
    for way, own in seconds.items():
        print(f"| {way} | {statistics.median(own):.1f} | {statistics.median(own) / ordinary:.2f} |")


LONGEST = 100
"""Tokens of a completion that the cost is measured with, at most."""


def main() -> None:
    """Run what was not run yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/exactness"))
    parser.add_argument("--shape", choices=["tiny", "smollm2"], default="tiny")
    parser.add_argument("--cost", action="store_true", help="measure the cost instead")
    parser.add_argument("--rounds", type=int, default=3, help="of the cost")
    given = parser.parse_args()
    out = given.out.absolute()
    (out / "data").mkdir(parents=True, exist_ok=True)
    if given.cost:
        cost(out, given.rounds)
        return
    large = given.shape == "smollm2"
    write_data(out / "data")
    if large:
        write_large(out / "data" / "smollm2")
    results = out / ("smollm2.jsonl" if large else "results.jsonl")
    done = list(read_lines(results, ended=True).objects) if results.exists() else []
    for layout in large_layouts() if large else layouts():
        if any(row["name"] == layout.name for row in done):
            continue
        done.append(run(layout, out / "data", out / f"runs_{given.shape}"))
        append_line(results, done[-1])
        print(
            f"{layout.name}: {done[-1]['weights'][:12]} in {done[-1]['seconds']:.0f} s", flush=True
        )
    print(table(done))


if __name__ == "__main__":
    main()
