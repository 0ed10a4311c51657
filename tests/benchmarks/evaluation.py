"""Speed of the evaluation harness.

    python -m tests.benchmarks.evaluation score [SAMPLES]        scoring of recorded samples
    python -m tests.benchmarks.evaluation throughput MODEL DATA  the harness against raw vLLM

``throughput`` gives both the same requests (prompts of a benchmark file, seeds, sampling), in turn,
five times each, after one warm-up, and compares medians: vLLM's ``LLM.generate`` in a process of
its own, the vLLM engine alone, its samples thrown away, and the harness over it, which decodes and
writes each. All stay started, none has a prompt cached, and the order changes with every round.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from eval.generate import finished_rows, sample_missing
from eval.plan import make_evaluation_plan
from eval.score import read_recorded, score
from eval.settings import EvalSettings
from eval.targets import find_targets
from rlvr.bench.generation import raw_generate, raw_llm
from rlvr.policy.loading import load_tokenizer, stop_token_ids
from rlvr.policy.settings import ModelSettings
from rlvr.ranks import Ranks
from rlvr.rollout.settings import VllmEngineSettings
from rlvr.rollout.vllm_child import child_environment
from rlvr.rollout.vllm_engine import VllmEngine
from tests.eval.small import write_samples


def time_scoring(samples: int) -> None:
    """Score ``samples`` made-up samples with three graders and two processes."""
    with tempfile.TemporaryDirectory() as place:
        folder = write_samples(Path(place) / "run", "m", 0.5, n=samples // 20)
        recorded = read_recorded(folder)
        for alongside in ((), ("qwen", "exact")):
            began = time.perf_counter()
            rows = score(recorded, workers=2, alongside=alongside)
            names = ", ".join(("rlvr", *alongside))
            print(f"{len(rows)} samples, {names}: {time.perf_counter() - began:.1f} s")


class RawVllm:
    """``LLM.generate`` in a process of its own, which is told when to go."""

    def __init__(self, request: dict[str, Any]) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
            json.dump(request, file)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.evaluation", "raw", file.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=child_environment(os.environ, len(os.sched_getaffinity(0))),
        )
        self.answer()

    def answer(self) -> dict[str, Any]:
        """Its next line that is ours."""
        for text in self.process.stdout:
            if text.startswith("RAW "):
                return json.loads(text[4:])
        raise SystemExit(f"the process with LLM.generate ended: {self.process.wait()}")

    def generate(self) -> tuple[float, int]:
        """Seconds and tokens of all its requests, nothing cached."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        found = self.answer()
        return found["seconds"], found["tokens"]

    def close(self) -> None:
        """End it."""
        self.process.stdin.close()
        self.process.wait(60)


def serve_raw(file: str) -> None:
    """The child: generate at every line of standard input."""
    asked = json.loads(Path(file).read_text())
    Path(file).unlink()
    llm = raw_llm(asked["model"], "float32", asked["longest"])
    print("RAW {}", flush=True)
    for _ in sys.stdin:
        llm.reset_prefix_cache()
        began = time.perf_counter()
        tokens = raw_generate(llm, asked["pairs"], **asked["sampling"])
        seconds = time.perf_counter() - began
        print(f"RAW {json.dumps({'seconds': seconds, 'tokens': tokens})}", flush=True)


def time_generation(
    model: str, data: str, problems: int = 48, tokens: int = 64, rounds: int = 5
) -> None:
    """Seconds of the harness, of the bare engine and of ``LLM.generate``, the same requests."""
    settings = ModelSettings(path=model)
    (target,) = find_targets(settings)
    policy, tokenizer = target.load(), load_tokenizer(settings)
    wanted = EvalSettings(benchmarks=(data,), limit=problems, max_tokens=tokens, temperature=0.6)
    plan = make_evaluation_plan(
        wanted, tokenizer, stop_token_ids(policy, tokenizer), policy.context_length
    )
    engine = VllmEngine(policy, plan.stop_ids, VllmEngineSettings(), plan.longest)
    requests = [item.request(0) for item in plan.planned]
    (sampling, planned), *_ = plan.rounds(plan.planned)
    pairs = [(item.request(0).prompt_ids, item.request(0).seeds[0]) for item in planned]
    stops = {"temperature": 0.6, "max_tokens": tokens, "stop_token_ids": list(plan.stop_ids)}
    raw = RawVllm({"model": model, "longest": plan.longest, "pairs": pairs, "sampling": stops})

    def run_engine() -> tuple[float, int]:
        began = time.perf_counter()
        outputs = engine.generate(requests, sampling)
        return time.perf_counter() - began, sum(len(s.token_ids) for out in outputs for s in out)

    def run_harness() -> tuple[float, int]:
        with tempfile.TemporaryDirectory() as place:
            began = time.perf_counter()
            sample_missing(plan, planned, engine, tokenizer, Path(place), Ranks())
            seconds = time.perf_counter() - began
            return seconds, sum(row["tokens"] for row in finished_rows(Path(place)).values())

    arms = {"LLM.generate": raw.generate, "engine": run_engine, "harness": run_harness}
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 1):
        order = list(arms)[turn % 3 :] + list(arms)[: turn % 3]
        for name in order:
            engine.sync(policy, turn)  # forgets what was cached
            seconds, count = arms[name]()
            if turn:  # the first warms up
                rates[name].append(count / seconds)
                print(f"round {turn}  {name:13} {count} tokens  {count / seconds:7.1f} tokens/s")
            sys.stdout.flush()
    engine.close()
    raw.close()
    for other in ("engine", "LLM.generate"):
        ratios = [ours / its for ours, its in zip(rates["harness"], rates[other], strict=True)]
        print(
            f"harness / {other}: {median(rates['harness']) / median(rates[other]):.3f}  "
            f"by round {', '.join(f'{ratio:.3f}' for ratio in ratios)}"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["score"]:
        time_scoring(int(sys.argv[2]) if len(sys.argv) > 2 else 10_000)
    elif sys.argv[1:2] == ["throughput"] and len(sys.argv) == 4:
        time_generation(sys.argv[2], sys.argv[3])
    elif sys.argv[1:2] == ["raw"] and len(sys.argv) == 3:
        serve_raw(sys.argv[2])
    else:
        raise SystemExit(__doc__)
