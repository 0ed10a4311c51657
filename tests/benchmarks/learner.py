r"""Seconds and peak memory of an update, against TRL's GRPO update of the same batch.

    python -m tests.benchmarks.learner MODEL             seconds, interleaved in one process
    python -m tests.benchmarks.learner MODEL --memory    peak memory, each in a process of its own
    python -m tests.benchmarks.learner MODEL --skipping  seconds with 0, 50, 90 % groups without mix

MODEL is a folder of SmolLM2-135M(-Instruct). A batch is eight completions of one prompt, tokens and
advantages made up: of equal lengths, of lengths that make half of the padded batch padding, and
seven short ones with a long one. Both train in float32 (PRECISION=bfloat16 in the environment:
autocast over float32 weights) with a fused AdamW and clip at 1. An update is everything from the
batch to the new weights:

    rlvr          as a recipe has it: one update per rollout, nothing recomputed, default batching
    rlvr, 512     with learner.tokens_per_micro_batch = 512 (memory only)
    trl           GRPOTrainer's defaults with vLLM: activations recomputed in the backward pass, and
                  a forward pass for the log-probabilities that its importance correction needs
    trl, lean     neither: activations kept, no correction

Seconds are the processor's (all threads of the process), which other work on the machine disturbs
less than the clock's; both are printed. The machine's own rate is that of matrix multiplication in
the model's shapes, measured in the same run; the share of it is 6 x parameters x real tokens /
seconds, prompts counted once a completion.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

PROMPT = 16
PRECISION = os.environ.get("PRECISION", "float32")
SHAPES = {
    "equal lengths": (48,) * 8,
    "half padding": (48, 6, 12, 18, 24, 30, 36, 18),
    "one long": (12,) * 7 + (96,),
}
WAYS = ("rlvr", "trl", "trl, lean")
SMALL = "rlvr, 512"


def batch_of(lengths: tuple[int, ...]):
    """The learner's batch."""
    from rlvr.bench.workloads import made_up_batch

    return made_up_batch(
        list(lengths), prompt_tokens=PROMPT, group_size=len(lengths), vocab_size=40_000
    )


def rlvr_update(
    model: str,
    budget: int = 4096,
    model_settings: Mapping[str, Any] | None = None,
    learner_settings: Mapping[str, Any] | None = None,
) -> Callable[[tuple[int, ...]], float]:
    """One update by the learner, with further settings; returns its loss."""
    from rlvr.learner.learner import Learner
    from rlvr.learner.settings import LearnerSettings
    from rlvr.objective.objective import Objective
    from rlvr.objective.policy_losses.clip import Clip
    from rlvr.objective.reducers import TokenMean
    from rlvr.policy.loading import load_policy
    from rlvr.policy.settings import ModelSettings
    from rlvr.settings import load_settings

    held = {"path": model, "precision": PRECISION, **(model_settings or {})}
    policy = load_policy(load_settings(ModelSettings, held))
    rates = {"lr": 1e-6, "tokens_per_micro_batch": budget, **(learner_settings or {})}
    settings = load_settings(LearnerSettings, rates)
    learner = Learner(policy, Objective(Clip(), (), TokenMean()), settings)
    return lambda lengths: learner.update(batch_of(lengths))["policy/loss"]


def trl_update(model: str, lean: bool) -> Callable[[tuple[int, ...]], float]:
    """One update by TRL's trainer; returns its loss."""
    import tempfile

    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    arguments = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=not torch.cuda.is_available(),
        per_device_train_batch_size=8,
        num_generations=8,
        learning_rate=1e-6,
        beta=0.0,
        report_to=[],
        gradient_checkpointing=not lean,
        bf16=PRECISION == "bfloat16",
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": "x"}] * 8),
    )
    if not lean:
        trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    wrapped, optimizer = trainer.accelerator.prepare(trainer.model, trainer.create_optimizer())
    wrapped.train()
    trainer.current_gradient_accumulation_steps = 1

    def update(lengths: tuple[int, ...]) -> float:
        inputs = _trl_inputs(batch_of(lengths))
        if not lean:
            ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
            mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
            width = inputs["completion_ids"].shape[1]
            trainer.model.gradient_checkpointing_disable()
            with torch.no_grad():
                old, *_ = trainer._get_per_token_logps_and_entropies(wrapped, ids, mask, width)
            trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
            inputs["old_per_token_logps"] = old
        loss = trainer.compute_loss(wrapped, inputs)
        trainer.accelerator.backward(loss)
        trainer.accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return update


def _trl_inputs(batch):
    import torch

    completion_ids = torch.zeros(batch.mask_BT.shape, dtype=torch.long)
    for row, ids in enumerate(batch.completion_ids):
        completion_ids[row, : len(ids)] = torch.tensor(ids)
    prompt_ids = torch.tensor(batch.prompt_ids)
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": torch.ones_like(prompt_ids),
        "completion_ids": completion_ids,
        "completion_mask": batch.mask_BT.long(),
        "advantages": batch.rewards_B,
        "num_items_in_batch": batch.mask_BT.sum(),
    }


def build(way: str, model: str) -> Callable[[tuple[int, ...]], float]:
    """The update of one way."""
    if way in ("rlvr", SMALL):
        return rlvr_update(model, 512 if way == SMALL else 4096)
    return trl_update(model, lean=way != "trl")


def matmul_rate() -> float:
    """Twice the multiply-adds per processor second of products in the model's shapes."""
    import torch

    tokens, total, seconds = 1024, 0.0, 0.0
    for rows, columns in ((576, 1536), (1536, 576), (576, 576), (576, 49152)):
        a = torch.randn(tokens, rows, dtype=getattr(torch, PRECISION))
        b = torch.randn(rows, columns, dtype=getattr(torch, PRECISION))
        a @ b
        started = time.process_time()
        a @ b
        seconds += time.process_time() - started
        total += 2 * tokens * rows * columns
    return total / seconds


def measure_seconds(model: str, repeats: int, shapes: Sequence[str]) -> None:
    """All ways in this process, in turn, medians."""
    updates = {way: build(way, model) for way in WAYS}
    times: dict[tuple[str, str], list[float]] = {}
    clock: dict[tuple[str, str], list[float]] = {}
    rates, losses = [], {}
    for repeat in range(repeats + 1):
        rates.append(matmul_rate())
        for shape in shapes:
            lengths = SHAPES[shape]
            for way in WAYS:
                began, started = time.perf_counter(), time.process_time()
                loss = updates[way](lengths)
                taken = time.process_time() - started
                print(repeat, shape, way, f"{taken:.2f}", file=sys.stderr, flush=True)
                if repeat:  # the first makes moments and warms up
                    times.setdefault((shape, way), []).append(taken)
                    clock.setdefault((shape, way), []).append(time.perf_counter() - began)
                else:
                    losses[shape, way] = loss
    rate = statistics.median(rates)
    print(f"matrix multiplication: {rate / 1e9:.1f} GFLOP/s")
    print(
        "batch            way        seconds  (range)        ratio  of the rate  by the clock  loss"
    )
    for shape in shapes:
        lengths = SHAPES[shape]
        base = statistics.median(times[shape, "rlvr"])
        tokens = sum(lengths) + PROMPT * len(lengths)
        for way in WAYS:
            taken = times[shape, way]
            middle = statistics.median(taken)
            print(
                f"{shape:16} {way:10} {middle:7.2f}  ({min(taken):.2f}-{max(taken):.2f})  "
                f"{middle / base:5.2f}  {6 * 134.5e6 * tokens / middle / rate:8.2f}     "
                f"{statistics.median(clock[shape, way]):8.2f}     {losses[shape, way]:+.4f}"
            )


def measure_skipping(model: str, repeats: int) -> None:
    """Ten groups of four completions of 24 tokens; all run, or those without advantage left out."""
    import torch

    from rlvr.learner.learner import Learner
    from rlvr.learner.settings import LearnerSettings
    from rlvr.objective.objective import Objective
    from rlvr.objective.policy_losses.clip import Clip
    from rlvr.objective.reducers import TokenMean
    from rlvr.policy.loading import load_policy
    from rlvr.policy.settings import ModelSettings

    batch = batch_of((24,) * 40)
    index = torch.arange(40) // 4
    prompts = tuple((10 + int(group), *batch.prompt_ids[0][1:]) for group in index)
    batch = replace(batch, group_index_B=index, prompt_ids=prompts)
    policy = load_policy(ModelSettings(path=model, precision=PRECISION))
    learners = {
        skip: Learner(
            policy,
            Objective(Clip(), (), TokenMean()),
            LearnerSettings(lr=1e-9, skip_zero_advantage=skip),
        )
        for skip in (False, True)
    }
    print("groups of equal rewards  all run, s  skipped, s  ratio")
    for share in (0.0, 0.5, 0.9):
        mixed_B1 = (index >= share * 10).float()[:, None]
        part = replace(batch, advantages_BT=batch.advantages_BT * mixed_B1)
        times: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(repeats):
            for skip, learner in learners.items():
                times[skip].append(learner.update(part)["time/update"])
        run, skipped = (statistics.median(times[skip]) for skip in (False, True))
        print(f"{share:23.0%}  {run:10.2f}  {skipped:10.2f}  {run / skipped:5.2f}", flush=True)


def measure_memory(model: str, scale: int, shapes: Sequence[str]) -> None:
    """Each way in a process of its own; completions ``scale`` times as long."""
    print("batch            way        peak GiB  ratio")
    for shape in shapes:
        peaks = {}
        for way in ("rlvr", SMALL, *WAYS[1:]):
            command = [sys.executable, "-m", "tests.benchmarks.learner", model]
            command += ["--one", way, "--shape", shape, "--scale", str(scale)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=True)
            peaks[way] = json.loads(done.stdout.splitlines()[-1])["peak_gib"]
            ratio = peaks[way] / peaks["rlvr"]
            print(f"{shape:16} {way:10} {peaks[way]:8.2f}  {ratio:5.2f}", flush=True)


def measure_one(way: str, model: str, shape: str, scale: int) -> None:
    """Two updates (the second has moments) of one way; the process's high-water mark."""
    update = build(way, model)
    for _ in range(2):
        update(tuple(scale * length for length in SHAPES[shape]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"peak_gib": peak}))


def main() -> None:
    """Measure what the options say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--skipping", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scale", type=int, default=4, help="of lengths, with --memory")
    parser.add_argument("--one", choices=(*WAYS, SMALL))
    parser.add_argument("--shape", choices=SHAPES, help="this batch alone")
    options = parser.parse_args()
    shapes = [options.shape] if options.shape else list(SHAPES)
    if options.one:
        measure_one(options.one, options.model, options.shape, options.scale)
    elif options.skipping:
        measure_skipping(options.model, options.repeats)
    elif options.memory:
        measure_memory(options.model, options.scale, shapes)
    else:
        measure_seconds(options.model, options.repeats, shapes)


if __name__ == "__main__":
    main()
