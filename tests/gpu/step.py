"""Whole GRPO steps of fixed length, from prompts to new weights: 64 prompts x 8 samples x 512.

Qwen3-0.6B's shape with random weights hardly ever ends a completion. The answers are graded as in
any run; what is learnt from is a reward that differs between completions.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from rlvr.policy.tiny import character_tokenizer
from rlvr.rl.recipe import RLRecipe
from rlvr.rl.rollouts import sampling_rollouts
from rlvr.rl.run import open_run
from rlvr.rl.train import train_step
from rlvr.runs.callers import CallerObjects
from rlvr.runs.interrupt import StopSignals
from rlvr.settings import load_settings
from tests.gpu.kit import SEED, Row, Setting
from tests.gpu.shapes import QWEN3, config_of, device_of, forget, peak_gib, random_model

_STEPS = 2
_SHOWN = {
    "seconds": "time/step",
    "generate": "time/generate",
    "verify": "time/verify",
    "update": "time/update",
    "sync": "time/sync",
    "length": "completion/length_mean",
    "generated_tokens_per_second": "throughput/generated_tokens_per_second",
    "trained_tokens_per_second": "throughput/trained_tokens_per_second",
    "reward_std": "reward/varied/std",
    "grad_norm": "learner/grad_norm",
}
"""Columns of a row, and the metrics of the run (docs/metrics.md)."""


def varied(token_ids) -> float:
    """The share of even ids: about a half, and another one for each completion."""
    return sum(1 - token % 2 for token in token_ids) / max(1, len(token_ids))


def measure(setting: Setting) -> Iterator[Row]:
    """A row for each step; the first one warms up."""
    with tempfile.TemporaryDirectory() as text, ExitStack() as stack:
        recipe = recipe_of(setting, Path(text))
        config = config_of(QWEN3, tiny=setting.tiny)
        config.save_pretrained(recipe.model.path)
        character_tokenizer().save_pretrained(recipe.model.path)
        caller = CallerObjects(model=random_model(config, device_of()))
        signals = stack.enter_context(StopSignals().watch())
        run = stack.enter_context(open_run(recipe, False, Console(), signals, caller=caller))
        rollouts = stack.enter_context(sampling_rollouts(run))
        for step in range(1, _STEPS + 1):
            forget()
            train_step(run, rollouts, signals)
            metrics = run.log.recorded(step)
            yield {
                "step": step,
                "completions": completions(recipe),
                **{name: metrics.get(metric) for name, metric in _SHOWN.items()},
                "peak_gib": peak_gib(),
            }


def completions(recipe: RLRecipe) -> int:
    """Of a step."""
    return recipe.rollout.prompts_per_step * recipe.rollout.samples_per_prompt


def recipe_of(setting: Setting, place: Path) -> RLRecipe:
    """The run: arithmetic, GRPO, all completions generated at once."""
    prompts, samples, tokens = setting.pick((2, 4, 8), (64, 8, 512))
    values = {
        "output": str(place / "run"),
        "seed": SEED,
        "steps": _STEPS,
        "model": {
            "path": str(place / "model"),
            "precision": "bfloat16",
            "gradient_checkpointing": True,
        },
        "data": {
            "source": {"name": "arithmetic", "digits": 3, "size": 1000},
            "template": "plain",
            "max_prompt_tokens": 32,
        },
        "rollout": {
            "engine": {"name": "transformers", "max_rows": prompts * samples},
            "prompts_per_step": prompts,
            "samples_per_prompt": samples,
            "sampling": {"max_tokens": tokens},
        },
        "reward": {"functions": [{"function": "tests.gpu.step:varied"}]},
        "learner": {"lr": 1e-6, "tokens_per_micro_batch": setting.pick(128, 16_384)},
        "log": {"completions_per_step": 0},
    }
    return load_settings(RLRecipe, values)
