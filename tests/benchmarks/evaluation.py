"""Speed of the evaluation harness.

    python -m tests.benchmarks.evaluation score [SAMPLES]        scoring of recorded samples
    python -m tests.benchmarks.evaluation throughput MODEL DATA  the harness against its engine

``throughput`` gives both the same requests (prompts of a benchmark file, seeds, sampling), in turn,
three times each, after one warm-up, and compares medians: the vLLM engine alone, its samples thrown
away, and the harness over it, which decodes and writes each.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from eval.score import read_recorded, score
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


def time_generation(model: str, data: str, problems: int = 48, tokens: int = 64) -> None:
    """Median seconds of the harness and of the bare engine over the same requests."""
    from eval.generate import sample_missing
    from eval.models import find_targets
    from eval.plan import EvalSettings, make_plan
    from rlvr.policy import ModelSettings, load_tokenizer, stop_token_ids
    from rlvr.ranks import Ranks
    from rlvr.rollout import VllmEngine, VllmEngineSettings

    settings = ModelSettings(path=model)
    (target,) = find_targets(settings)
    policy, tokenizer = target.load(), load_tokenizer(settings)
    wanted = EvalSettings(benchmarks=(data,), limit=problems, max_tokens=tokens, temperature=0.6)
    plan = make_plan(wanted, tokenizer, stop_token_ids(policy, tokenizer), policy.context_length)
    engine = VllmEngine(policy, plan.stop_ids, VllmEngineSettings(), plan.longest)
    engine.sync(policy, 0)
    requests = [job.request(0) for job in plan.jobs]
    (sampling, jobs), *_ = plan.rounds(plan.jobs)
    times: dict[str, list[float]] = {"engine": [], "harness": []}
    for turn in range(4):
        for name in times:
            with tempfile.TemporaryDirectory() as place:
                began = time.perf_counter()
                if name == "engine":
                    engine.generate(requests, sampling)
                else:
                    sample_missing(plan, jobs, engine, tokenizer, Path(place), Ranks())
                if turn:
                    times[name].append(time.perf_counter() - began)
    engine.close()
    print(json.dumps({name: [round(t, 2) for t in found] for name, found in times.items()}))
    print(f"harness / engine: {median(times['engine']) / median(times['harness']):.3f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["score"]:
        time_scoring(int(sys.argv[2]) if len(sys.argv) > 2 else 10_000)
    elif sys.argv[1:2] == ["throughput"] and len(sys.argv) == 4:
        time_generation(sys.argv[2], sys.argv[3])
    else:
        raise SystemExit(__doc__)
