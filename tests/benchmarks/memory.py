r"""What the estimate of memory says of two updates, against what they take, for every option.

    python -m tests.benchmarks.memory [--cases "full;adapters"] [--page docs/memory.md]

A Llama with 227 million random weights, in few and wide layers, is built by ``rlvr train``'s own
code from a recipe, and takes two updates (the second has moments) on eight completions of one
prompt, all as long as they may be. Each case is a process of its own. The figure is the most that
it held after the model was loaded; *loading* is the most until then. Layers are wide because on a
CPU the C library gives back to the system only blocks of 4 MiB and more. ``--page`` writes the rows
into a page.
"""

import argparse
import tempfile
from collections.abc import Callable
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

PROMPT, SAMPLES, TOKENS = 16, 8, 32
SHAPE = {"hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 6}
HEADS = {"num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 128}
VOCABULARY = 49152
MIXED = ("model.precision=bfloat16",)
LORA = ("model.lora={rank: 16}",)
KL = ("regularisers=[{name: kl, coefficient: 0.01}]",)
CASES: dict[str, tuple[str, ...]] = {
    "full": (),
    "activations recomputed": ("model.gradient_checkpointing=true",),
    "micro-batches of 48 tokens": ("learner.tokens_per_micro_batch=48",),
    "bfloat16 passes": MIXED,
    "bfloat16 passes, recomputed": (*MIXED, "model.gradient_checkpointing=true"),
    "with a reference": KL,
    "reference in bfloat16": (*KL, "model.frozen_weights=bfloat16"),
    "weights in bfloat16": ("model.weights=bfloat16",),
    "moments in bfloat16": ("learner.optimizer_states=bfloat16",),
    "moments in int8": ("learner.optimizer_states=int8",),
    "weights in bfloat16, moments in int8": (
        "model.weights=bfloat16",
        "learner.optimizer_states=int8",
    ),
    "in the backward pass, per tensor": ("learner.in_backward=per_tensor",),
    "in the backward pass, two passes": ("learner.in_backward=two_passes",),
    "adapters": LORA,
    "adapters, base in bfloat16": (*LORA, "model.frozen_weights=bfloat16"),
    "adapters, base in int8": (*LORA, "model.frozen_weights=int8"),
    "adapters, base in nf4": (*LORA, "model.frozen_weights=nf4"),
}
LIBRARIES = ("torch", "transformers", "peft", "rlvr.rl.run", "rlvr.policy.shape")
START, END = "<!-- measured -->\n", "<!-- end -->"


def write_model(folder: Path, vocabulary: int = VOCABULARY, **shape: int) -> None:
    """Random weights, published in bfloat16 as most are.

    Read as float32 they are then copies: of a float32 file they would be its pages, all of which
    count as the process's own for as long as one tensor of it is used.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    sizes = {"vocab_size": vocabulary, **SHAPE, **HEADS, **shape, **ends}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **sizes))
    model.to(torch.bfloat16).save_pretrained(folder)


def recipe(model: str, words: tuple[str, ...]) -> Any:
    """One update of one prompt's completions."""
    from rlvr.rl.recipe import RLRecipe
    from rlvr.settings import load_settings

    values = {
        "output": "runs/memory",
        "steps": 2,
        "model": {"path": model},
        "data": {"source": {"name": "arithmetic"}, "max_prompt_tokens": PROMPT},
        "rollout": {
            "prompts_per_step": 1,
            "samples_per_prompt": SAMPLES,
            "sampling": {"max_tokens": TOKENS},
        },
        "learner": {"skip_zero_advantage": False},
    }
    return load_settings(RLRecipe, values, words)


def measure(model: str, words: tuple[str, ...]) -> dict[str, float]:
    """Build the learner and update twice, in this process; bytes."""
    from rlvr.learner.parameter_store import give_back_freed_memory
    from rlvr.rl.run import build_learner
    from tests.benchmarks.learner import batch_of

    give_back_freed_memory()  # as every run does before it loads
    learner = build_learner(recipe(model, words))
    loading = _most()
    Path("/proc/self/clear_refs").write_text("5")  # forget the most so far
    for _ in range(2):
        learner.update(batch_of((TOKENS,) * SAMPLES))
    return {"loading": loading, "running": _most()}


def _most() -> float:
    """The most that this process has held resident, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024.0


def predict(model: str, words: tuple[str, ...]) -> dict[str, float]:
    """What the estimate says of the same; generation is left out, as nothing generates here."""
    from rlvr.memory import Machine, estimate
    from rlvr.memory.estimate import GRADIENTS
    from rlvr.policy.shape import read_shape
    from rlvr.rl.memory import rl_work

    run = recipe(model, words)
    found = estimate(rl_work(run, read_shape(run.model), "cpu"), None, Machine("cpu"))
    return {"loading": found.at("load"), "running": max(found.at(one) for one in GRADIENTS)}


def compare(model: str, words: tuple[str, ...]) -> tuple[dict[str, float], dict[str, float]]:
    """Predicted, and measured in a process of its own."""
    predicted: dict[str, float] = in_child(predict, model, words)
    measured: dict[str, float] = in_child(measure, model, words)
    return predicted, measured


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process that has the libraries, and nothing else, in memory."""
    for name in LIBRARIES:
        import_module(name)
    context = get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=lambda: there.send(function(*arguments)))
    child.start()
    there.close()
    try:
        return here.recv()
    finally:
        child.join()


def row(name: str, model: str) -> str:
    """A case as a line of the table."""
    predicted, measured = compare(model, CASES[name])
    cells = [name]
    for key in ("running", "loading"):
        ratio = predicted[key] / measured[key]
        cells += [f"{predicted[key] / 2**30:.2f}", f"{measured[key] / 2**30:.2f}", f"{ratio:.2f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Run the cases in turn and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=";".join(CASES), help="separated by ;")
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    head = "| | predicted GiB | measured | ratio | loading, predicted | measured | ratio |"
    lines = [head, "|---" * 7 + "|"]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        in_child(write_model, Path(folder))
        for name in options.cases.split(";"):
            lines.append(row(name.strip(), folder))
            print(lines[-1], flush=True)
    if options.page:
        before, mark, rest = options.page.read_text(encoding="utf-8").partition(START)
        text = before + mark + "\n".join(lines) + "\n" + END + rest.partition(END)[2]
        options.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
