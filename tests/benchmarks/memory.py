r"""What `--dry-run` predicts of a run's memory against what it takes, up to the largest models.

    OMP_NUM_THREADS=2 python -m tests.benchmarks.memory MODEL [--cases "full 135M;lora 3.0B"]

MODEL is a folder of SmolLM2-135M-Instruct, which gives tokenizer and configuration. Each case makes
a model of that family with random weights, larger where it says so, and trains it for two steps by
``rlvr train`` in a process of its own. Random weights hardly ever end a completion, so all reach
their full length, which is what ``--dry-run`` reckons with; their rewards are all zero, so that
leaving out rows without advantage is switched off. The peak is the most that the process held
(proportional set size, looked at four times a second).
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from rlvr.bench.memory import PeakMemory

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Case:
    """A model's shape and what is done with it."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    settings: tuple[str, ...] = ()
    prompts: int = 4
    samples: int = 4
    tokens: int = 64


SMALL = (576, 1536, 30, 9, 3)
MEDIUM = (960, 2560, 32, 15, 5)
LORA = ("model.lora.rank=16",)
CHECKPOINTING = ("model.gradient_checkpointing=true",)
LITTLE = ("learner.tokens_per_micro_batch=256",)
FEW = {"prompts": 1, "samples": 4, "tokens": 32}
CASES = {
    "full 135M": Case(*SMALL),
    "full 135M, 256 tokens": Case(*SMALL, tokens=256),
    "full 135M, 256 tokens, recomputed": Case(*SMALL, CHECKPOINTING, tokens=256),
    "full 135M, micro-batch 512": Case(*SMALL, ("learner.tokens_per_micro_batch=512",), tokens=256),
    "full 360M": Case(*MEDIUM, prompts=8, tokens=32),
    "full 1.2B": Case(2048, 6144, 24, 16, 4, LITTLE, **FEW),
    "lora 3.0B": Case(3072, 8192, 28, 24, 8, (*LORA, *LITTLE), **FEW),
}


def write_model(source: Path, folder: Path, case: Case) -> int:
    """A model with random weights, float32; its parameters."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source)
    config.hidden_size, config.intermediate_size = case.hidden, case.intermediate
    config.num_hidden_layers, config.num_attention_heads = case.layers, case.heads
    config.num_key_value_heads = case.key_value_heads
    config.head_dim = case.hidden // case.heads
    config.dtype = "float32"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder, max_shard_size="2GB")
    for name in (*source.glob("*token*"), *source.glob("chat_template*")):
        shutil.copy(name, folder)
    return sum(parameter.numel() for parameter in model.parameters())


def overrides(case: Case, place: Path) -> list[str]:
    """The case's settings, on the arithmetic recipe."""
    return [
        f"model.path={place / 'model'}",
        f"output={place / 'run'}",
        "steps=2",  # moments are there from the second on
        f"rollout.prompts_per_step={case.prompts}",
        f"rollout.samples_per_prompt={case.samples}",
        f"rollout.sampling.max_tokens={case.tokens}",
        "data.max_prompt_tokens=128",
        "learner.skip_zero_advantage=false",
        "evaluation.sets={}",
        "checkpoint.every=1000000",
        *case.settings,
    ]


def predicted(arguments: Sequence[str]) -> tuple[float, str]:
    """GiB, and the parts, as ``--dry-run`` prints them."""
    said = subprocess.run(
        [*arguments, "--dry-run"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    found = re.search(r"memory at full lengths, estimated, GiB: ([\d.]+) \((.*)\)", said)
    assert found is not None, said
    return float(found[1]), found[2]


def measured(arguments: Sequence[str]) -> tuple[float, float]:
    """Peak GiB and seconds of the run."""
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen(arguments, stdout=output, stderr=output, cwd=ROOT)
        with PeakMemory(child.pid) as memory:
            code = child.wait()
        output.seek(0)
        if code:
            last = output.read().strip().splitlines()[-3:]
            print("  failed: " + " / ".join(last), flush=True)
            return float("nan"), time.perf_counter() - began
    return memory.gib, time.perf_counter() - began


def main() -> None:
    """Run the cases in turn and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--cases", default=";".join(CASES), help="parted by ;")
    options = parser.parse_args()
    print("| case | parameters | predicted | measured | ratio | parts, GiB | seconds |")
    print("|---" * 7 + "|")
    for name in options.cases.split(";"):
        case = CASES[name]
        with tempfile.TemporaryDirectory() as text:
            place = Path(text)
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # whose memory is given back
                count = pool.submit(write_model, options.model, place / "model", case).result()
            recipe = str(ROOT / "recipes/smollm2_arithmetic.yaml")
            arguments = [sys.executable, "-m", "rlvr", "train", recipe, *overrides(case, place)]
            guess, parts = predicted(arguments)
            peak, seconds = measured(arguments)
        ratio = guess / peak
        print(
            f"| {name} | {count / 1e6:.0f} M | {guess:.2f} | {peak:.2f} | {ratio:.2f} | {parts} | "
            f"{seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
