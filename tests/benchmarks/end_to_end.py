r"""Seconds and memory of whole training steps, against TRL's GRPOTrainer, in turns.

    python -m tests.benchmarks.end_to_end MODEL [--prompts 4] [--rounds 3] [--arms rlvr,trl]

MODEL is a folder of SmolLM2-135M-Instruct. The work of a step: two-digit additions after two worked
examples (about 100 tokens), ``prompts`` of them with 8 samples each of up to 64 tokens, temperature
1, verified, one update by GRPO's clipped loss with AdamW at 1e-5, float32, new weights in the
engine. Samples may end earlier, as they do in training; how long they were is printed. The arms:

    rlvr        recipes/smollm2_arithmetic.yaml: the transformers engine
    rlvr, vllm  the vLLM engine
    trl         GRPOTrainer's defaults (activations recomputed) with transformers' generate
    trl, lean   the same with activations kept
    trl, vllm   use_vllm with vllm_mode colocate, where TRL can start it

Every arm is a process of its own, and only one runs at a time: after a step it is stopped, and the
next goes on. The first step of each is not counted. Seconds are the clock's, from going on to the
end of the step; the processor's (of all its processes) are printed beside them. TRL's reward is a
comparison of strings, rlvr's its verifier.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from rlvr.bench.memory import tree_gib

ROOT = Path(__file__).parents[2]
ARMS = ("rlvr", "rlvr, vllm", "trl", "trl, lean", "trl, vllm")
SAMPLES, TOKENS = 8, 64


def recipe_overrides(options: argparse.Namespace, folder: Path, vllm: bool) -> list[str]:
    """The settings of our arm."""
    engine = ["rollout.engine.name=vllm"] if vllm else []
    return [
        *engine,
        f"model.path={options.model}",
        f"output={folder}",
        f"steps={options.rounds + 1}",
        f"rollout.prompts_per_step={options.prompts}",
        f"rollout.samples_per_prompt={SAMPLES}",
        f"rollout.sampling.max_tokens={TOKENS}",
        "data.max_prompt_tokens=256",
        "evaluation.sets={}",
        "checkpoint.every=1000000",
    ]


def run_rlvr(options: argparse.Namespace, vllm: bool) -> None:
    """Our training command, in this process, with a line at the end of each step."""
    from rlvr.rl.recipe import RLRecipe
    from rlvr.rl.train import train
    from rlvr.runs.log import RunLog
    from rlvr.settings import load_settings

    usual = RunLog.step

    def step(self: RunLog, number: int, metrics: dict[str, float]) -> None:
        usual(self, number, metrics)
        if "time/step" in metrics:
            phases = {k: v for k, v in metrics.items() if k.startswith("time/")}
            said = {"tokens": metrics["completion/length_mean"], **phases}
            print("STEP " + json.dumps(said), flush=True)

    RunLog.step = step  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as place:
        overrides = recipe_overrides(options, Path(place) / "run", vllm)
        train(load_settings(RLRecipe, ROOT / "recipes/smollm2_arithmetic.yaml", overrides))


def run_trl(options: argparse.Namespace, arm: str) -> None:
    """TRL's trainer on the same problems, with a line at the end of each step."""
    import torch
    from datasets import Dataset
    from rich.console import Console
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from rlvr.policy.loading import load_tokenizer
    from rlvr.rl.prompts import load_prompts
    from rlvr.rl.recipe import RLRecipe
    from rlvr.runs.scoring import Scorer
    from rlvr.settings import load_settings

    with tempfile.TemporaryDirectory() as place:
        overrides = recipe_overrides(options, Path(place) / "run", False)
        recipe = load_settings(RLRecipe, ROOT / "recipes/smollm2_arithmetic.yaml", overrides)
    tokenizer = load_tokenizer(recipe.model)
    with Scorer(recipe.reward, tokenizer, TOKENS) as scorer:
        prompts, _ = load_prompts(recipe, tokenizer, scorer, Console(quiet=True))
    rows = [{"prompt": tokenizer.decode(list(p.ids)), "answer": p.problem.answer} for p in prompts]

    def reward(completions: list[str], answer: list[str], **_: object) -> list[float]:
        return [
            float(f"\\boxed{{{right}}}" in text)
            for text, right in zip(completions, answer, strict=True)
        ]

    class Tell(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            if logs and "completions/mean_length" in logs:
                said = {"tokens": logs["completions/mean_length"]}
                print("STEP " + json.dumps(said), flush=True)

    completions = options.prompts * SAMPLES
    arguments = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=completions // 8,
        num_generations=SAMPLES,
        max_completion_length=TOKENS,
        temperature=1.0,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        beta=0.0,
        max_steps=options.rounds + 1,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        gradient_checkpointing=arm != "trl, lean",
        use_vllm=arm == "trl, vllm",
        vllm_mode="colocate",
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32),
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Tell()],
    )
    trainer.train()


class Arm:
    """One system in a process of its own, which runs only when it is its turn."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name = name
        command = [sys.executable, "-m", "tests.benchmarks.end_to_end", options.model]
        command += ["--one", name, "--prompts", str(options.prompts)]
        command += ["--rounds", str(options.rounds)]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self.errors, text=True, cwd=ROOT
        )
        self.process = psutil.Process(self.child.pid)
        self.peak_gib = 0.0
        self.rows: list[dict[str, float]] = []

    def family(self) -> list[psutil.Process]:
        """The process and all it started."""
        return [self.process, *self.process.children(recursive=True)]

    def cpu(self) -> float:
        """Processor seconds of the family so far."""
        total = 0.0
        for member in self.family():
            try:
                times = member.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total

    def signal(self, number: int) -> None:
        """Tell every process of it to stop or to go on."""
        for member in self.family():
            try:
                member.send_signal(number)
            except psutil.NoSuchProcess:
                continue

    def step(self) -> bool:
        """Go on until a step is done, and stop; whether it was."""
        before = self.cpu()
        began = time.perf_counter()
        self.signal(signal.SIGCONT)
        for text in self.child.stdout:
            if text.startswith("STEP "):
                break
        else:
            self.errors.seek(0)
            last = (self.errors.read().strip().splitlines() or ["it said nothing"])[-1]
            print(f"{self.name}: ended early: {last}", flush=True)
            return False
        seconds = time.perf_counter() - began
        self.signal(signal.SIGSTOP)
        self.peak_gib = max(self.peak_gib, tree_gib(self.process))
        row = json.loads(text[5:]) | {"seconds": seconds, "cpu": self.cpu() - before}
        self.rows.append(row)
        return True

    def close(self) -> None:
        """End it and all it started."""
        for member in self.family():
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue
        self.child.wait()


def high_water_gib(arm: Arm) -> float:
    """The most that each process of the arm held, added up (shared pages twice)."""
    total = 0
    for member in arm.family():
        try:
            text = Path(f"/proc/{member.pid}/status").read_text()
        except OSError:
            continue
        total += next((int(s.split()[1]) for s in text.splitlines() if s[:6] == "VmHWM:"), 0)
    return total / 2**20


def main() -> None:
    """Measure in turns and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arms", default="rlvr;trl", help=f"parted by ;, of {'; '.join(ARMS)}")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        if options.one.startswith("rlvr"):
            run_rlvr(options, options.one.endswith("vllm"))
        else:
            run_trl(options, options.one)
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    arms: list[Arm] = []
    try:
        for name in options.arms.split(";"):
            arm = Arm(name, options)
            if arm.step():  # its start and first step
                arms.append(arm)
                print(f"{name}: started, first step {arm.rows[0]['seconds']:.1f} s", flush=True)
        peaks = {}
        for turn in range(options.rounds):
            for place in range(len(arms)):
                arm = arms[(place + turn) % len(arms)]
                if arm.step():
                    peaks[arm.name] = high_water_gib(arm)
                    print(f"round {turn} {arm.name}: {json.dumps(arm.rows[-1])}", flush=True)
        base = statistics.median(row["seconds"] for row in arms[0].rows[1:])
        print("arm          seconds (range)        ratio  processor s  tokens  peak GiB")
        for arm in arms:
            rows = arm.rows[1:]
            seconds = [row["seconds"] for row in rows]
            middle = statistics.median(seconds)
            print(
                f"{arm.name:12} {middle:7.1f} ({min(seconds):.1f} to {max(seconds):.1f})  "
                f"{middle / base:6.2f}  {statistics.median(row['cpu'] for row in rows):11.1f}  "
                f"{statistics.median(row['tokens'] for row in rows):6.1f}  {peaks[arm.name]:8.2f}"
            )
    finally:
        for arm in arms:
            arm.signal(signal.SIGCONT)
            arm.close()


if __name__ == "__main__":
    main()
