r"""The tables of docs/memory.md: memory of common models by the project's own estimate.

    python -m tests.benchmarks.memory_table docs/memory.md

The estimate is that of ``--dry-run`` and ``rlvr fit`` (`rlvr/memory`), for a GPU. Models are
configurations without weights, written from public facts, so that nothing is downloaded.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlvr.memory import GIB, EngineWork, Machine, ModelShape, Processes, estimate
from rlvr.policy.shape import read_shape
from rlvr.rl.memory import rl_work
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
LORA = ("model.lora={rank: 16}",)
MIXED = ("model.precision=bfloat16",)
INT8 = (*MIXED, "learner.optimizer_states=int8")
WAYS = {
    "full, float32": (),
    "full, bfloat16 passes": MIXED,
    "full, moments in int8": INT8,
    "full, weights in bfloat16 too": (*INT8, "model.weights=bfloat16"),
    "LoRA, float32": LORA,
    "LoRA, base in bfloat16": (*LORA, *MIXED),
    "LoRA, base in int8": (*LORA, *MIXED, "model.frozen_weights=int8"),
    "QLoRA (nf4)": (*LORA, *MIXED, "model.frozen_weights=nf4"),
}
GPUS = (2, 4, 8)
END = "<!-- end -->"


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
        "dtype": "bfloat16",
    }
    (folder / name).mkdir()
    (folder / name / "config.json").write_text(json.dumps(values))
    return folder / name


def recipe(folder: Path, words: Sequence[str] = ()) -> RLRecipe:
    """The run of the tables; docs/memory.md says it in words."""
    values = {
        "output": "runs/memory",
        "steps": 1,
        "model": {"path": str(folder), "gradient_checkpointing": True},
        "data": {"source": {"name": "arithmetic"}, "max_prompt_tokens": 512},
        "rollout": {
            "engine": {"name": "transformers", "max_rows": 32},
            "prompts_per_step": 8,
            "samples_per_prompt": 8,
            "sampling": {"max_tokens": 1024},
        },
    }
    return load_settings(RLRecipe, values, words)


def model_rows(name: str, folder: Path) -> tuple[str, str]:
    """A model's row of either table."""
    path = write_config(name, folder)
    plain, mixed = recipe(path), recipe(path, MIXED)
    full, adapted = read_shape(plain.model), read_shape(recipe(path, LORA).model)
    alone = []
    for words in WAYS.values():
        shape = adapted if words[: len(LORA)] == LORA else full
        alone.append(_total(recipe(path, words), shape, Processes()))
    many = [_total(mixed, full, Processes(n, stage=stage)) for stage in (2, 3) for n in GPUS]
    return (
        _row(name, f"{full.parameters / 1e9:.2f}", *_gib(alone)),
        _row(name, *_gib(many)),
    )


def _total(run: RLRecipe, shape: ModelShape, launched: Processes) -> float:
    """Bytes of a GPU; under ZeRO 3 other GPUs generate."""
    work = rl_work(run, shape, "cuda")
    if launched.stage == 3:
        work = replace(work, engine=EngineWork("server"))
    return estimate(work, launched, Machine("cuda")).total


def tables() -> dict[str, str]:
    """Both tables as Markdown, by key."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [model_rows(name, Path(folder)) for name in MODELS]
    splits = [f"ZeRO {stage}, {gpus} GPUs" for stage in (2, 3) for gpus in GPUS]
    heads = {"one": ["model", "10^9 weights", *WAYS], "several": ["model", *splits]}
    return {
        key: "\n".join([_row(*head), "|---" * len(head) + "|", *(pair[index] for pair in rows)])
        for index, (key, head) in enumerate(heads.items())
    }


def _gib(sizes: Sequence[float]) -> list[str]:
    return [f"{size / GIB:.1f}" for size in sizes]


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
