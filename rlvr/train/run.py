"""A run: everything a recipe describes, built and put in one place, and saved as one thing."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rlvr.data import (
    ProblemSampler,
    Prompt,
    Template,
    encode_prompts,
    load_problems,
    load_template,
    overlap,
)
from rlvr.learner import (
    Learner,
    checkpoint_path,
    latest_checkpoint,
    load_state,
    random_states,
    restore_random_states,
    save_checkpoint,
)
from rlvr.objective import Objective
from rlvr.policy import Policy, load_policy, load_tokenizer, save_policy, stop_token_ids
from rlvr.remedies import VLLM_PACKAGES
from rlvr.rollout import Engine, build_engine
from rlvr.settings import load_settings, to_yaml
from rlvr.train.log import RunLog, check_trackers, write_atomically
from rlvr.train.preference_recipe import PreferenceRecipe
from rlvr.train.recipe import RLRecipe
from rlvr.train.scoring import Scorer

AnyRecipe = RLRecipe | PreferenceRecipe

# What may differ between a run and its continuation: nothing that enters a gradient.
_MAY_CHANGE = frozenset({"steps", "evaluation", "checkpoint", "log", "output"})
_STACK = (
    "rlvr",
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "math-verify",
    *VLLM_PACKAGES,
)


@dataclass
class Run:
    """A run in progress; ``step`` counts finished steps."""

    recipe: RLRecipe
    tokenizer: Any
    prompts: list[Prompt]
    evaluation_prompts: dict[str, list[Prompt]]
    sampler: ProblemSampler
    engine: Engine
    learner: Learner
    scorer: Scorer
    log: RunLog
    step: int = 0
    rollouts_state: dict[str, Any] = field(default_factory=dict)
    """Where the sampling of rollouts stood at the checkpoint that the run was continued from."""
    saved: Path | None = None
    """The checkpoint that this process wrote or read last."""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.recipe.output

    @property
    def policy(self) -> Policy:
        """The model being trained."""
        return self.learner.policy

    def next_prompts(self, count: int) -> list[Prompt]:
        """The coming prompts; the sampler advances."""
        return [self.prompts[index] for index in self.sampler.next(count)]

    def sync(self) -> dict[str, float]:
        """Give the engine the learner's weights; metrics of it."""
        return self.engine.sync(self.policy, self.step)

    def save(self, rollouts: Mapping[str, Any]) -> Path:
        """Write a checkpoint of the state after ``step`` steps, unless that was done already.

        ``rollouts`` is where their sampling stands.
        One that is there but was not read is damaged, and is written again.
        """
        folder = self.folder / "checkpoints"
        if self.saved == checkpoint_path(folder, self.step):
            return self.saved

        def write_model(path: Path) -> None:
            save_policy(self.policy, path)
            if not self.policy.has_adapters:
                self.tokenizer.save_pretrained(path / "model")

        self.saved = save_checkpoint(
            folder,
            self.step,
            write_model=write_model,
            tensors={**self.learner.engine.state(), **random_states()},
            state={
                "step": self.step,
                "rollouts": dict(rollouts),
                "updates": self.learner.updates,
                "skipped_updates": self.learner.skipped_updates,
            },
            keep=self.recipe.checkpoint.keep,
        )
        return self.saved

    def restore(self, checkpoint: Path) -> None:
        """Take everything but the weights (loaded already) from a checkpoint."""
        state, tensors = load_state(checkpoint)
        self.learner.engine.load_state(
            {key: value for key, value in tensors.items() if not key.startswith("rng/")}
        )
        restore_random_states(tensors)
        self.rollouts_state = state["rollouts"]
        self.sampler.load_state_dict(self.rollouts_state["sampler"])
        self.learner.updates = state["updates"]
        self.learner.skipped_updates = state["skipped_updates"]
        self.step = state["step"]
        self.saved = checkpoint


@contextmanager
def open_run(recipe: RLRecipe, *, resume: bool, console: Console) -> Iterator[Run]:
    """Build a run, from its newest valid checkpoint where ``resume`` is set and there is one.

    Raises:
        ValueError: Anything the recipe names is missing or unusable, or the output folder holds
            another run.
    """
    check_single_process()
    check_folder(recipe, resume)
    checkpoint = checkpoint_to_resume(recipe.output / "checkpoints") if resume else None
    check_trackers(recipe.log.track)
    torch.manual_seed(recipe.seed)
    tokenizer = load_tokenizer(recipe.model)
    with ExitStack() as stack:
        # Verifier processes start before torch touches a GPU.
        scorer = stack.enter_context(
            Scorer(recipe.reward, tokenizer, recipe.rollout.sampling.max_tokens)
        )
        prompts, evaluation_prompts = load_prompts(recipe, tokenizer, scorer, console)
        learner = build_learner(recipe, checkpoint)
        check_context(recipe, learner.policy, [prompts, *evaluation_prompts.values()])
        stop_ids = stop_token_ids(learner.policy, tokenizer)
        run = Run(
            recipe=recipe,
            tokenizer=tokenizer,
            prompts=prompts,
            evaluation_prompts=evaluation_prompts,
            sampler=ProblemSampler(len(prompts), recipe.seed, shuffle=recipe.data.shuffle),
            engine=stack.enter_context(
                closing(
                    build_engine(
                        recipe.rollout.engine, learner.policy, stop_ids, recipe.longest_sequence
                    )
                )
            ),
            learner=learner,
            scorer=scorer,
            log=None,  # type: ignore[arg-type]  # needs the step, which a checkpoint may set
        )
        if checkpoint is not None:
            run.restore(checkpoint)
            say(console, f"resuming after step {run.step} from {checkpoint}")
        if recipe.rollout.engine.name == "vllm":
            console.print("starting vLLM")
        run.sync()
        # Only now: a recipe that cannot be carried out leaves no folder behind.
        record_run(recipe)
        run.log = stack.enter_context(
            RunLog(
                recipe.output,
                recipe.steps,
                resumed_step=run.step,
                trackers=recipe.log.track,
                config=recipe.model_dump(mode="json"),
                console=console,
            )
        )
        yield run


def checkpoint_to_resume(folder: Path) -> Path | None:
    """The newest sound checkpoint; None where none was written yet.

    Raises:
        ValueError: There are checkpoints, all damaged: starting over would delete the run's records
            without a word.
    """
    found = latest_checkpoint(folder)
    if found is None and any(folder.glob("step_*")):
        raise ValueError(
            f"every checkpoint in {str(folder)!r} is damaged; delete the folder to start over at "
            "step 0, or choose another output"
        )
    return found


def check_single_process() -> None:
    """Refuse to be one of several processes."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        raise ValueError(
            f"started with {processes} processes, but a run has one so far; "
            "use accelerate launch --num_processes 1"
        )


def check_folder(recipe: AnyRecipe, resume: bool) -> None:
    """See that the output folder can be this run's own.

    Raises:
        ValueError: It holds another run (or this one, and ``resume`` is not set), or other files.
    """
    folder, written = recipe.output, recipe.output / "recipe.yaml"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output {str(folder)!r} is a file; give a folder")
    if written.is_file():
        if not resume:
            raise ValueError(
                f"output {str(folder)!r} holds a run already; continue it with --resume or choose "
                "another output"
            )
        _check_same_recipe(load_settings(type(recipe), written), recipe)
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"output {str(folder)!r} holds other files and no run; choose another output"
        )
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(_no_folder(folder, f"{str(existing)!r} is a file"))
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(_no_folder(folder, f"{str(existing)!r} is not writable"))


def record_run(recipe: AnyRecipe) -> None:
    """Write what is run, with which versions, when."""
    try:
        recipe.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(_no_folder(recipe.output, error.strerror)) from error
    description = {
        "versions": versions(),
        "seed": recipe.seed,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["rlvr", *sys.argv[1:]],
    }
    # First what makes the folder a run's: a kill in between leaves one that --resume takes.
    write_atomically(recipe.output / "recipe.yaml", to_yaml(recipe))
    write_atomically(recipe.output / "run.json", json.dumps(description, indent=1))


def versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on."""
    found = {}
    for name in _STACK:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def build_learner(recipe: RLRecipe, checkpoint: Path | None = None) -> Learner:
    """The policy, its reference where the objective needs one, and the optimizer."""
    objective = Objective(
        recipe.policy_loss, recipe.regularisers, recipe.reducer, recipe.correction
    )
    policy = load_policy(recipe.model, saved=checkpoint)
    reference = None
    if objective.needs_reference and recipe.model.lora is None:
        reference = load_policy(recipe.model).requires_grad_(False).eval()
    return Learner(
        policy,
        objective,
        recipe.learner,
        temperature=recipe.rollout.sampling.temperature,
        total_updates=recipe.steps * recipe.learner.updates_per_rollout,
        reference=reference,
    )


def check_context(recipe: RLRecipe, policy: Policy, prompts: Sequence[Sequence[Prompt]]) -> None:
    """See that the model knows every prompt's tokens and that each leaves room for a completion.

    Raises:
        ValueError: One does not fit; it is named.
    """
    samplings = [recipe.rollout.sampling, *[recipe.evaluation_sampling] * (len(prompts) - 1)]
    limit = policy.context_length
    words = policy.causal_lm.get_input_embeddings().num_embeddings
    for members, sampling in zip(prompts, samplings, strict=True):
        for prompt in members:
            if max(prompt.ids) >= words:
                raise ValueError(
                    f"problem {prompt.problem.id!r} holds token {max(prompt.ids)}, but the model "
                    f"has {words} embeddings; set model.tokenizer to the model's own tokenizer"
                )
        longest = max(members, key=lambda prompt: len(prompt.ids))
        if limit is not None and len(longest.ids) + sampling.max_tokens > limit:
            raise ValueError(
                f"problem {longest.problem.id!r} has a prompt of {len(longest.ids)} tokens, which "
                f"with max_tokens {sampling.max_tokens} exceeds the model's context of {limit}; "
                "lower max_tokens or data.max_prompt_tokens"
            )


def load_prompts(
    recipe: RLRecipe,
    tokenizer: Any,  # noqa: ANN401
    scorer: Scorer,
    console: Console,
) -> tuple[list[Prompt], dict[str, list[Prompt]]]:
    """Training prompts and evaluation prompts by set, without problems that cannot be graded."""
    template = load_template(recipe.data.template)
    limit = recipe.data.max_prompt_tokens

    def load(name: str, source: Any) -> list[Prompt]:  # noqa: ANN401
        return load_problem_set(name, source, template, tokenizer, limit, scorer, console)

    training = load("data", recipe.data.source)
    held_out = {name: load(name, source) for name, source in recipe.evaluation.sets.items()}
    for name, prompts in held_out.items():
        shared = overlap((p.problem for p in training), (p.problem for p in prompts))
        if shared:
            say(
                console,
                f"{name}: {len(shared)} problems are also trained on, the first {shared[0]!r}",
            )
    return training, held_out


def load_problem_set(
    name: str,
    source: Any,  # noqa: ANN401
    template: Template,
    tokenizer: Any,  # noqa: ANN401
    limit: int,
    scorer: Scorer,
    console: Console,
) -> list[Prompt]:
    """The encoded prompts of one source, without problems that cannot be graded.

    Raises:
        ValueError: None is left, or the source cannot be read.
    """
    problems = load_problems(source)
    bad = dict(scorer.pool.check_golds([problem.answer for problem in problems]))
    for index, reason in bad.items():
        problem = problems[index]
        say(console, f"{name}: problem {problem.id!r} is left out: {reason}")
    usable = [problem for index, problem in enumerate(problems) if index not in bad]
    if not usable:
        raise ValueError(f"{name}: none of {len(problems)} reference answers can be graded")
    encoded = encode_prompts(usable, template, tokenizer, limit)
    if encoded.notice:
        say(console, f"{name}: {encoded.notice}")
    return list(encoded.prompts)


def _no_folder(folder: Path, reason: str | None) -> str:
    return f"output {str(folder)!r} cannot be written ({reason}); choose another output"


def say(console: Console, text: str) -> None:
    """One line as it is: words of data sets and paths may look like rich's markup."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _check_same_recipe(old: AnyRecipe, new: AnyRecipe) -> None:
    for name in type(new).model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if name not in _MAY_CHANGE and before != after:
            raise ValueError(
                f"output {str(new.output)!r} holds a run with other settings: {name} was {before} "
                f"and is {after}; resume with the same recipe or choose another output"
            )
