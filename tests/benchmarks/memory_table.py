r"""The tables of docs/memory.md: memory of common models by the project's own estimate.

    python -m tests.benchmarks.memory_table docs/memory.md

The estimate is that of ``--dry-run`` (`rlvr/rl/plan.py`). Models are configurations without
weights, written from public facts, so that nothing is downloaded. What ZeRO shards is divided here.
"""

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlvr.policy.token_stats import default_chunk
from rlvr.rl.plan import ModelShape, estimate_memory, model_shape
from rlvr.rl.recipe import RLRecipe
from rlvr.settings import load_settings

QWEN = ("Qwen2ForCausalLM", "qwen2")
LLAMA = ("LlamaForCausalLM", "llama")
MODELS: dict[str, tuple[Any, ...]] = {
    # kind, hidden, intermediate, layers, heads, key-value heads, vocabulary, tied embeddings
    "SmolLM2-135M": (LLAMA, 576, 1536, 30, 9, 3, 49152, True),
    "SmolLM2-360M": (LLAMA, 960, 2560, 32, 15, 5, 49152, True),
    "Qwen2.5-0.5B": (QWEN, 896, 4864, 24, 14, 2, 151936, True),
    "Llama-3.2-1B": (LLAMA, 2048, 8192, 16, 32, 8, 128256, True),
    "Qwen2.5-1.5B": (QWEN, 1536, 8960, 28, 12, 2, 151936, True),
    "SmolLM2-1.7B": (LLAMA, 2048, 8192, 24, 32, 32, 49152, True),
    "Qwen2.5-3B": (QWEN, 2048, 11008, 36, 16, 2, 151936, True),
    "Llama-3.2-3B": (LLAMA, 3072, 8192, 28, 24, 8, 128256, True),
    "Qwen2.5-7B": (QWEN, 3584, 18944, 28, 28, 4, 152064, False),
    "Qwen2.5-14B": (QWEN, 5120, 13824, 48, 40, 8, 152064, False),
    "Qwen2.5-32B": (QWEN, 5120, 27648, 64, 40, 8, 152064, False),
}
PRECISIONS = ("float32", "bfloat16")
GPUS = (2, 4, 8)
PASS = "the larger of update and rollout"
END = "\n<!-- end -->"
MASTER = 4
"""Bytes a weight: DeepSpeed keeps a float32 copy of the weights that a process updates."""


def write_config(name: str, folder: Path) -> Path:
    """The folder of a model's configuration."""
    (kind, family), hidden, intermediate, layers, heads, key_values, vocabulary, tied = MODELS[name]
    values = {
        "architectures": [kind],
        "model_type": family,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_values,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 32768,
    }
    (folder / name).mkdir()
    (folder / name / "config.json").write_text(json.dumps(values))
    return folder / name


def recipe(name: str, folder: Path, precision: str, *, lora: bool) -> RLRecipe:
    """The run of the tables; docs/memory.md says it in words."""
    values = {
        "output": "runs/memory",
        "steps": 1,
        "model": {"path": str(folder), "precision": precision, "gradient_checkpointing": True},
        "data": {"source": {"name": "arithmetic"}, "max_prompt_tokens": 512},
        "rollout": {
            "engine": {"name": "transformers", "max_rows": 32},
            "prompts_per_step": 8,
            "samples_per_prompt": 8,
            "sampling": {"max_tokens": 1024},
        },
        # A GPU's chunk, whatever this machine has.
        "learner": {"logits_chunk": default_chunk(MODELS[name][6], "cuda")},
    }
    return load_settings(RLRecipe, values, ["model.lora={rank: 16}"] if lora else [])


def per_gpu(parts: Mapping[str, float], shape: ModelShape, stage: int, gpus: int) -> float:
    """Bytes on each GPU under a ZeRO stage, of an estimate for one process.

    Under stage 3 other GPUs generate; the estimate is then larger by what generation needs, if that
    is more than the update.
    """
    weights = parts["weights"] / (gpus if stage == 3 else 1)
    sharded = parts["gradients and moments"] + MASTER * shape.trained
    return weights + sharded / gpus + parts[PASS] + parts["the program"]


def model_rows(name: str, folder: Path) -> tuple[str, str]:
    """A model's row of either table."""
    path = write_config(name, folder)
    alone = []
    for lora in (False, True):
        recipes = [recipe(name, path, precision, lora=lora) for precision in PRECISIONS]
        shape = model_shape(recipes[0])
        estimates = [estimate_memory(one, shape) for one in recipes]
        alone += [sum(parts.values()) for parts in estimates]
        if not lora:
            full = shape
            many = [per_gpu(estimates[-1], shape, stage, n) for stage in (2, 3) for n in GPUS]
    return (
        _row(name, f"{full.parameters / 1e9:.2f}", *_gib(alone)),
        _row(name, *_gib(many)),
    )


def tables() -> dict[str, str]:
    """Both tables as Markdown, by key."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [model_rows(name, Path(folder)) for name in MODELS]
    kinds = [f"{kind}, {precision}" for kind in ("full", "LoRA") for precision in PRECISIONS]
    splits = [f"ZeRO {stage}, {gpus} GPUs" for stage in (2, 3) for gpus in GPUS]
    heads = {"one": ["model", "10^9 weights", *kinds], "several": ["model", *splits]}
    return {
        key: "\n".join([_row(*head), "|---" * len(head) + "|", *(pair[index] for pair in rows)])
        for index, (key, head) in enumerate(heads.items())
    }


def _gib(sizes: Sequence[float]) -> list[str]:
    return [f"{size / 2**30:.1f}" for size in sizes]


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def main(page: Path) -> None:
    """Bring the tables of the page up to date."""
    text = page.read_text(encoding="utf-8")
    for key, table in tables().items():
        before, mark, rest = text.partition(f"<!-- table: {key} -->\n")
        text = f"{before}{mark}{table}\n<!-- end -->{rest.partition(END)[2]}"
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
