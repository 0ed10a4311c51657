r"""Peak memory of an update by how weights, moments and gradients are held, and of TRL's update.

    python -m tests.benchmarks.memory_options [--ways "float32;trl"]

A Llama of SmolLM2-135M's shape with random weights takes two GRPO updates (the second has moments)
on eight completions of one prompt, in one micro-batch, activations recomputed. Each way is a
process of its own; the figure is its high-water mark, libraries included, and what it had reached
before the first update. TRL's is its GRPOTrainer's update of the same batch with its defaults for
vLLM (tests/benchmarks/learner.py), float32 weights and moments. *Predicted* is what the settings
should take off the first row, of 134.5 million weights.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LENGTHS = (32,) * 8
WEIGHTS = 134.5e6
CHECKPOINTING = {"gradient_checkpointing": True}
SMALL_WEIGHTS = {**CHECKPOINTING, "weights": "bfloat16"}
SMALL_MOMENTS = {"optimizer_states": "int8"}
ADAPTERS = {**CHECKPOINTING, "lora": {"rank": 16}}
WAYS: dict[str, tuple[Mapping[str, Any], Mapping[str, Any], float]] = {
    # settings of model and learner, and the bytes a weight that they save
    "float32": (CHECKPOINTING, {}, 0.0),
    "weights bfloat16": (SMALL_WEIGHTS, {}, 4.0),
    "moments bfloat16": (CHECKPOINTING, {"optimizer_states": "bfloat16"}, 4.0),
    "moments int8": (CHECKPOINTING, SMALL_MOMENTS, 5.97),
    "per_tensor": (CHECKPOINTING, {"in_backward": "per_tensor"}, 4.0),
    "two_passes": (CHECKPOINTING, {"in_backward": "two_passes"}, 4.0),
    "weights bfloat16, moments int8, per_tensor": (
        SMALL_WEIGHTS,
        {**SMALL_MOMENTS, "in_backward": "per_tensor"},
        2.0 + 5.97 + 4.0,
    ),
    "adapters": (ADAPTERS, {}, 12.0),
    "adapters, base bfloat16": ({**ADAPTERS, "frozen_weights": "bfloat16"}, {}, 14.0),
    "adapters, base nf4": ({**ADAPTERS, "frozen_weights": "nf4"}, {}, 15.0),
    "trl": ({}, {}, 0.0),
}


def write_model(folder: Path) -> None:
    """Random weights of SmolLM2-135M's shape, and a tokenizer that nothing here asks."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from rlvr.policy.tiny import character_tokenizer

    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=49152, tie_word_embeddings=True, **shape, **heads, **ends)
    LlamaForCausalLM(config).save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)


def peak_gib() -> float:
    """The most that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(way: str, folder: str) -> dict[str, float]:
    """Two updates in this process."""
    from tests.benchmarks.learner import rlvr_update, trl_update

    model, learner, _ = WAYS[way]
    if way == "trl":
        update = trl_update(folder, lean=False)
    else:
        update = rlvr_update(folder, model_settings=model, learner_settings=learner)
    before, started = peak_gib(), time.process_time()
    loss = [update(LENGTHS) for _ in range(2)][-1]
    seconds = (time.process_time() - started) / 2
    return {"before": before, "peak": peak_gib(), "seconds": seconds, "loss": loss}


def main() -> None:
    """Print the table, or measure one way for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ways", default=";".join(WAYS), help="separated by ;")
    parser.add_argument("--one", choices=WAYS)
    parser.add_argument("--model")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.model)))
        return
    print("| way | peak, GiB | before the updates | less than float32 | predicted | seconds |")
    print("|---|---|---|---|---|---|", flush=True)
    first = None
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        for way in options.ways.split(";"):
            command = [sys.executable, "-m", "tests.benchmarks.memory_options", "--one", way]
            command += ["--model", folder]
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=3600)
            found = json.loads(done.stdout.splitlines()[-1])
            first = first or found["peak"]
            saved, due = first - found["peak"], WAYS[way][2] * WEIGHTS / 2**30
            print(
                f"| {way} | {found['peak']:.2f} | {found['before']:.2f} | {saved:.2f} | {due:.2f} "
                f"| {found['seconds']:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
