"""A run: everything a recipe describes, built and put in one place, and saved as one thing."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rlvr.data import ProblemSampler, Prompt
from rlvr.hub.background import Uploads, uploading
from rlvr.hub.remote import token_from_environment
from rlvr.learner import (
    CheckpointWriter,
    CriticTraining,
    Launch,
    Learner,
    PreferenceLearner,
    checkpoint_path,
    join,
    latest_checkpoint,
    load_state,
    random_states,
    restore_random_states,
    written_by,
)
from rlvr.learner.watchdog import Watchdog
from rlvr.objective import Gae, Objective
from rlvr.policy import (
    Policy,
    critic_writer,
    load_critic,
    load_policy,
    load_tokenizer,
    policy_writer,
    stop_token_ids,
)
from rlvr.ranks import Ranks
from rlvr.remedies import VLLM_PACKAGES
from rlvr.rollout import Engine, build_engine
from rlvr.settings import load_settings, to_yaml
from rlvr.train.interrupt import StopSignals
from rlvr.train.log import RunLog, SilentLog, check_trackers, say, write_atomically
from rlvr.train.preference_recipe import PreferenceRecipe
from rlvr.train.prime import build_prime, reward_model_writer
from rlvr.train.prm_recipe import PrmRecipe
from rlvr.train.prompts import check_context, load_prompts
from rlvr.train.recipe import RLRecipe
from rlvr.train.scoring import Scorer
from rlvr.train.together import first_rank

AnyRecipe = RLRecipe | PreferenceRecipe | PrmRecipe

# What may differ between a run and its continuation: nothing that enters a gradient.
MAY_CHANGE = frozenset({"steps", "evaluation", "checkpoint", "watchdog", "log", "output", "hub"})
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
    checkpoints: CheckpointWriter
    ranks: Ranks
    rollout_ranks: Ranks
    """The same processes, for the thread that samples."""
    signals: StopSignals
    watchdog: Watchdog | None = None
    step: int = 0
    rollouts_state: dict[str, Any] = field(default_factory=dict)
    """Where the sampling of rollouts stood at the checkpoint that the run was continued from."""
    saved: Path | None = None
    """The checkpoint that this process wrote or read last."""
    uploads: Uploads | None = None
    """What is sent to the Hub while the run goes on."""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.recipe.output

    @property
    def policy(self) -> Policy:
        """The model being trained."""
        return self.learner.policy

    @property
    def central(self) -> bool:
        """Whether the first rank speaks to the engine for all."""
        return self.recipe.rollout.engine.name == "vllm_server"

    def share(self, count: int) -> range:
        """The places, of ``count`` prompts, that this rank samples."""
        if self.central:
            return range(count if self.ranks.first else 0)
        return self.ranks.share(count)

    def watch(self, phase: str) -> AbstractContextManager[None]:
        """Have the watchdog end the process if the block hangs."""
        return nullcontext() if self.watchdog is None else self.watchdog.phase(phase)

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
        if self.saved == checkpoint_path(self.checkpoints.folder, self.step):
            return self.saved
        write_policy = policy_writer(
            self.policy, keep=self.ranks.first, copy=self.checkpoints.background
        )
        critic = None if self.learner.critic is None else self.learner.critic.model
        write_critic = critic_writer(
            critic, self.policy, keep=self.ranks.first, copy=self.checkpoints.background
        )

        write_prm = reward_model_writer(
            self.learner.prime, keep=self.ranks.first, copy=self.checkpoints.background
        )

        def write_model(path: Path) -> None:
            write_policy(path)
            write_critic(path)
            write_prm(path)
            if not self.policy.has_adapters:
                self.tokenizer.save_pretrained(path / "model")

        self.saved = self.checkpoints.save(
            self.step,
            write_model,
            tensors={**self.learner.engine.state(), **random_states()},
            state={
                "step": self.step,
                "rollouts": dict(rollouts),
                "updates": self.learner.updates,
                "skipped_updates": self.learner.skipped_updates,
                "trained_rollouts": self.learner.rollouts,
                "objective": self.learner.objective.state(),
            },
        )
        return self.saved

    def restore(self, checkpoint: Path) -> None:
        """Take everything but the weights (loaded already) from a checkpoint."""
        state = restore_learner(self.learner, checkpoint, self.ranks)
        self.rollouts_state = state["rollouts"]
        self.sampler.load_state_dict(self.rollouts_state["sampler"])
        self.learner.rollouts = state.get("trained_rollouts", 0)
        self.learner.objective.load_state(state.get("objective", {}))
        self.step = state["step"]
        self.saved = checkpoint


def restore_learner(
    learner: Learner | PreferenceLearner, checkpoint: Path, ranks: Ranks
) -> dict[str, Any]:
    """Take optimizer, counters and random states from a checkpoint; the rest of its state."""
    state, tensors = load_state(checkpoint, ranks)
    learner.engine.load_state(
        {key: value for key, value in tensors.items() if not key.startswith("rng/")}
    )
    restore_random_states(tensors)
    learner.updates = state["updates"]
    learner.skipped_updates = state["skipped_updates"]
    return state


@contextmanager
def open_run(
    recipe: RLRecipe, *, resume: bool, console: Console, signals: StopSignals | None = None
) -> Iterator[Run]:
    """Build a run, from its newest valid checkpoint where ``resume`` is set and there is one.

    Every process of the job builds one; the first alone writes records and speaks.

    Raises:
        ValueError: Anything the recipe names is missing or unusable, the output folder holds
            another run, or the recipe does not go with the launch.
    """
    signals = signals or StopSignals()
    launch = join()
    ranks = launch.ranks
    check_launch(recipe, launch)
    signals.deferred = ranks.count > 1
    console = console if ranks.first else Console(quiet=True)
    found = first_rank(ranks, lambda: starting_point(recipe, resume))
    checkpoint = None if found is None else Path(found)
    torch.manual_seed(recipe.seed)
    tokenizer = load_tokenizer(recipe.model)
    with ExitStack() as stack:
        # Verifier processes start before torch touches a GPU.
        scorer = stack.enter_context(
            Scorer(recipe.reward, tokenizer, recipe.rollout.sampling.max_tokens)
        )
        prompts, evaluation_prompts = load_prompts(recipe, tokenizer, scorer, console)
        learner = build_learner(recipe, checkpoint, launch)
        if not ranks.first:
            torch.manual_seed(recipe.seed + ranks.rank)  # dropout differs between ranks
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
                        recipe.rollout.engine,
                        learner.policy,
                        stop_ids,
                        recipe.longest_sequence,
                        ranks,
                    )
                )
            ),
            learner=learner,
            scorer=scorer,
            log=None,  # type: ignore[arg-type]  # needs the step, which a checkpoint may set
            checkpoints=CheckpointWriter(
                recipe.output / "checkpoints",
                recipe.checkpoint.keep,
                ranks,
                background=recipe.checkpoint.background,
            ),
            ranks=ranks,
            rollout_ranks=ranks.group(),
            signals=signals,
        )
        stack.callback(run.checkpoints.wait)
        if ranks.count > 1 or launch.zero is not None:
            say(console, launch.description)
        if checkpoint is not None:
            run.restore(checkpoint)
            say(console, f"resuming after step {run.step} from {checkpoint}")
            say_what_is_not_exact(console, checkpoint, ranks)
        waited_for = {"vllm": "starting vLLM", "vllm_server": "waiting for vLLM servers"}
        if recipe.rollout.engine.name in waited_for:
            console.print(waited_for[recipe.rollout.engine.name])
        run.sync()
        # Only now: a recipe that cannot be carried out leaves no folder behind.
        first_rank(ranks, lambda: record_run(recipe))
        run.log = stack.enter_context(open_log(recipe, ranks, run.step, console))
        run.uploads = stack.enter_context(
            uploading(recipe.output, recipe.hub, ranks, run.checkpoints, run.log.say)
        )
        if recipe.watchdog is not None:
            run.watchdog = stack.enter_context(
                closing(Watchdog(ranks.rank, **recipe.watchdog.model_dump()))
            )
        yield run


def finish_uploads(
    uploads: Uploads | None,
    checkpoints: CheckpointWriter,
    saved: Path | None,
    log: RunLog,
    signals: StopSignals,
) -> None:
    """Have the final weights sent to the Hub and wait for it, where a run is to be sent."""
    if uploads is None or saved is None:
        return
    checkpoints.wait()
    log.phase("sending to the Hub")
    uploads.finish(saved, signals.check)


def open_log(recipe: AnyRecipe, ranks: Ranks, step: int, console: Console) -> RunLog:
    """The records of a run that stands after ``step`` steps; the first rank keeps them."""
    if not ranks.first:
        return SilentLog()
    return RunLog(
        recipe.output,
        recipe.steps,
        resumed_step=step,
        trackers=recipe.log.track,
        config=recipe.model_dump(mode="json"),
        console=console,
    )


def check_launch(recipe: RLRecipe, launch: Launch) -> None:
    """See that the recipe can be carried out by the processes there are.

    Raises:
        ValueError: It cannot; the message says what to change.
    """
    if shards_weights(launch) and recipe.rollout.engine.name == "transformers":
        raise ValueError(
            "rollout.engine 'transformers' generates with the learner's own weights, which ZeRO 3 "
            "parts over processes; use vllm or vllm_server, or launch with ZeRO 2"
        )
    if launch.ranks.count > 1 and recipe.rollout.max_staleness > 1:
        raise ValueError(
            f"rollout.max_staleness = {recipe.rollout.max_staleness} with several processes: which "
            "weights a rollout gets would depend on each one's timing; set it to 0 or 1"
        )


def shards_weights(launch: Launch | None) -> bool:
    """Whether the launch parts weights over processes."""
    return launch is not None and launch.zero is not None and launch.zero["stage"] == 3


def starting_point(recipe: AnyRecipe, resume: bool) -> str | None:
    """See that the run can begin; the checkpoint to begin from, if there is one."""
    check_folder(recipe, resume)
    checkpoint = checkpoint_to_resume(recipe.output / "checkpoints") if resume else None
    check_trackers(recipe.log.track)
    if recipe.hub is not None:
        token_from_environment()
    return None if checkpoint is None else str(checkpoint)


def say_what_is_not_exact(console: Console, checkpoint: Path, ranks: Ranks) -> None:
    """Say so where another number of processes takes a checkpoint up."""
    wrote, now = written_by(checkpoint), ranks.count
    if wrote != now:
        say(
            console,
            f"the checkpoint was written by {wrote} processes and is taken up by {now}: weights "
            "and optimizer are the same, but sums are taken in another order, and dropout draws "
            "other numbers",
        )


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


def build_learner(
    recipe: RLRecipe, checkpoint: Path | None = None, launch: Launch | None = None
) -> Learner:
    """The policy, its reference where the objective needs one, and the optimizer."""
    objective = Objective(
        recipe.policy_loss,
        recipe.regularisers,
        recipe.reducer,
        recipe.correction,
        recipe.filters,
    )
    # Weights that do not fit on one GPU are taken apart in host memory.
    device = torch.device("cpu") if shards_weights(launch) else None
    policy = load_policy(recipe.model, saved=checkpoint, device=device)
    critic, needs_reference = None, objective.needs_reference
    if isinstance(recipe.advantage, Gae):
        model = load_critic(recipe.model, saved=checkpoint, device=device)
        critic = CriticTraining(model, recipe.critic, recipe.advantage)
        needs_reference |= recipe.advantage.kl_in_reward > 0
    reference = None
    if needs_reference and recipe.model.lora is None:
        reference = load_policy(recipe.model).requires_grad_(False).eval()
    return Learner(
        policy,
        objective,
        recipe.learner,
        temperature=recipe.rollout.sampling.temperature,
        total_updates=recipe.steps * recipe.learner.updates_per_rollout,
        reference=reference,
        critic=critic,
        prime=build_prime(recipe, policy, checkpoint, device),
        launch=launch,
    )


def _no_folder(folder: Path, reason: str | None) -> str:
    return f"output {str(folder)!r} cannot be written ({reason}); choose another output"


def _check_same_recipe(old: AnyRecipe, new: AnyRecipe) -> None:
    for name in type(new).model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if name not in MAY_CHANGE and before != after:
            raise ValueError(
                f"output {str(new.output)!r} holds a run with other settings: {name} was {before} "
                f"and is {after}; resume with the same recipe or choose another output"
            )
