"""A fine-tuning run: everything that belongs to one, from a recipe or from its checkpoint."""

import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from rlvr.data.demonstrations import Demonstration
from rlvr.distill.surprisal import check_fit
from rlvr.learner import Launch
from rlvr.policy import Policy, load_policy, load_tokenizer, stop_token_ids
from rlvr.rollout import TransformersEngine
from rlvr.train.base_run import BaseRun, Beginning, open_any_run
from rlvr.train.evaluation import HeldOutProblems
from rlvr.train.interrupt import StopSignals
from rlvr.train.prompts import held_out_prompts
from rlvr.train.recipe import RewardSettings
from rlvr.train.scoring import Scorer
from rlvr.train.sft_data import count_rows, dataset, load_training
from rlvr.train.sft_recipe import SftRecipe

if TYPE_CHECKING:
    from rlvr.train.sft_trainer import Trainer


@dataclass(kw_only=True)
class SftRun(BaseRun):
    """A run in progress; its recipe says how many steps there are, and not how many epochs."""

    recipe: SftRecipe
    learner: "Trainer"
    """TRL's, which takes the steps and writes what goes into a checkpoint."""
    held_out: dict[str, list[Demonstration]]
    problems: HeldOutProblems | None = None

    def prepare(self, console: Console) -> None:
        """Remove what a kill left of a checkpoint."""
        from rlvr.train.sft_trainer import PREFIX

        if self.ranks.first:
            for leftover in self.checkpoints.folder.glob(f"{PREFIX}*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def restore(self, checkpoint: Path) -> dict[str, Any]:
        """Where the run stands; the trainer reads the rest itself when it goes on."""
        self.step = int(checkpoint.name.removeprefix("step_"))
        self.saved = checkpoint
        return {}


def open_sft_run(
    recipe: SftRecipe, resume: bool, console: Console, signals: StopSignals
) -> AbstractContextManager[SftRun]:
    """Build a run; see :func:`rlvr.train.base_run.open_any_run`."""
    return open_any_run(
        recipe,
        lambda beginning: _build_run(recipe, beginning),
        check=check_launch,
        resume=resume,
        console=console,
        signals=signals,
    )


def check_launch(launch: Launch) -> None:
    """See that the processes there are can train this way.

    Raises:
        ValueError: They cannot; the message says what to change.
    """
    if launch.zero is not None:
        raise ValueError(
            "task sft runs data parallel alone, and the launch configuration asks for DeepSpeed; "
            "use recipes/accelerate/multi_gpu.yaml, with model.lora where memory is short"
        )


def _build_run(recipe: SftRecipe, beginning: Beginning) -> SftRun:
    from datasets import disable_progress_bars

    from rlvr.train.sft_trainer import Trainer, check_packing

    disable_progress_bars()
    console, ranks = beginning.console, beginning.ranks
    beginning.signals.deferred = True  # the trainer is asked to stop between two steps
    tokenizer = load_tokenizer(recipe.model)
    scorer = None
    if recipe.evaluation.sets:
        # Its processes start before torch touches a GPU.
        limit = recipe.evaluation.sampling.max_tokens
        scorer = beginning.stack.enter_context(Scorer(RewardSettings(), tokenizer, limit))
    policy = load_policy(recipe.model, saved=beginning.checkpoint)
    data, held_out = load_training(recipe, tokenizer, console, policy.context_length)
    for found in (data, *held_out.values()):
        check_fit(policy, found)
    problems = _problems(recipe, policy, tokenizer, scorer, console)
    if recipe.data.packing:
        check_packing(policy)
    steps = recipe.total_steps(count_rows(recipe, data))
    resolved = recipe.model_copy(update={"steps": steps, "epochs": None})
    return SftRun(
        recipe=resolved,
        tokenizer=tokenizer,
        learner=Trainer(resolved, policy, tokenizer, ranks, dataset(data)),
        checkpoints=beginning.checkpoint_writer(),
        held_out=held_out,
        problems=problems,
        ranks=ranks,
        signals=beginning.signals,
    )


def _problems(
    recipe: SftRecipe,
    policy: Policy,
    tokenizer: Any,  # noqa: ANN401
    scorer: Scorer | None,
    console: Console,
) -> HeldOutProblems | None:
    if scorer is None:
        return None
    asked = recipe.evaluation
    template = asked.template or recipe.data.template
    prompts = held_out_prompts(
        asked.sets, template, asked.max_prompt_tokens, tokenizer, scorer, console
    )
    engine = TransformersEngine(policy, stop_token_ids(policy, tokenizer))
    return HeldOutProblems(prompts, engine, scorer, asked.sampling, asked.samples)
