"""Sample recorded completions again, with the weights that sampled them.

The ledger of a run (:mod:`rlvr.runs.ledger`) says of every completion which weights sampled it and
with which seed. A replay copies the run's recipe into a temporary folder, goes on from the nearest
checkpoint at or before that version, trains forward to it where there is none of its own, shows by
the ledger's fingerprint that the weights are the same, and has the engine sample again. The run's
folder is only read, and nothing is tracked or uploaded.

What an engine computes for a completion may depend on what it computes beside it. So the engine is
asked for what it was asked for then: all prompts of the round, or the share of them that one of
several processes had. Where the engine's bits do not depend on that (``learner.exact`` with
transformers) only the completions in question are sampled.

A run whose reward functions, data or model were given by a Python program in memory cannot be
opened again, and so not be replayed.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from rlvr.files import write_atomically
from rlvr.learner.checkpoint import checkpoint_path, checkpoints_of, find_fault
from rlvr.policy.fingerprint import fingerprint
from rlvr.rl.recipe import RLLogSettings, RLRecipe
from rlvr.rl.recorded import recipe_with_ledger
from rlvr.rl.rollouts import Rollouts, sampling_rollouts
from rlvr.rl.run import Run, open_run
from rlvr.rl.train import train_step
from rlvr.rollout.engine import Request, Sample
from rlvr.rollout.episodes import play
from rlvr.rollout.transformers_engine import TransformersEngine
from rlvr.runs.interrupt import StopSignals
from rlvr.runs.ledger import LedgerCompletion, LedgerRows, logprob_hash, read_ledger, token_hash
from rlvr.settings import to_yaml

Group = list[LedgerCompletion]
"""All completions of one prompt, in the order of its request."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """A completion that was sampled again, beside what the ledger says of it.

    Attributes:
        id: ``STEP/POSITION/SAMPLE``.
        version: Of the weights, in finished steps.
        fault: Why it could not be sampled again; None if it was, and then:
        same_ids: Whether the token ids are the same.
        same_logprobs: Whether the log-probabilities are, as float32 numbers.
        first_difference: The first position whose id or log-probability differs; None where none
            does, or the ledger has hashes alone (``log.ledger: hashes``).
        largest: Largest |difference| of log-probabilities in nats, up to the first other id; None
            where the ledger has hashes alone and they differ.
        of_sum: |difference| of the sums of log-probabilities in nats; None if ids differ.
    """

    id: str
    version: int
    fault: str | None = None
    same_ids: bool = False
    same_logprobs: bool = False
    first_difference: int | None = None
    largest: float | None = None
    of_sum: float | None = None

    @property
    def same(self) -> bool:
        """Whether ids and log-probabilities are the recorded ones."""
        return self.same_ids and self.same_logprobs

    def __str__(self) -> str:
        start = f"{self.id} (weights of version {self.version}): "
        if self.fault is not None:
            return f"{start}not sampled again: {self.fault}"
        if self.same:
            return f"{start}the same ids and log-probabilities"
        what = "log-probabilities differ" if self.same_ids else "ids differ"
        where = "" if self.first_difference is None else f" from token {self.first_difference} on"
        apart = self.of_sum if self.largest is None else self.largest
        which = "in sum" if self.largest is None else "at most, where ids are the same"
        by = "" if apart is None else f"; log-probabilities are {apart:.3g} nats apart {which}"
        return f"{start}{what}{where}{by}"


def replay_completions(
    run_folder: Path,
    ids: Sequence[str],
    *,
    retrain: bool = True,
    console: Console | None = None,
) -> list[Replayed]:
    """Sample completions of a run again and compare them with its ledger; in the order of ``ids``.

    Every checkpoint that is needed is loaded once.

    Args:
        run_folder: The run's; it is only read.
        ids: As the ledger has them: ``STEP/POSITION/SAMPLE``.
        retrain: Whether to train forward to versions that have no checkpoint.
        console: Where progress is shown; None is nowhere.

    Raises:
        ValueError: There is no run or no ledger, the ledger has no such completion, or the run
            cannot be opened again.
    """
    recipe = recipe_with_ledger(run_folder)
    ledger = read_ledger(run_folder)
    groups = list(_groups(ledger))
    known = {item.id: item for group in groups for item in group}
    wanted = {name: known.get(name) or ledger.completion(name) for name in ids}
    quiet = console or Console(quiet=True)
    found: dict[str, Replayed] = {}
    # Of a branch, versions before its first are its parent's.
    first = min(ledger.weights, default=0)
    versions = {item.version for item in wanted.values() if item.version >= first}
    starts = _starts(run_folder, versions, first)
    for start, reached in starts.items():
        ready = reached if retrain else [v for v in reached if v == start]
        if ready:
            asked = [item for item in wanted.values() if item.version in ready]
            with TemporaryDirectory(prefix="rlvr-replay-") as folder:
                copy = _copied(run_folder, recipe, Path(folder) / "run", start)
                found |= _replayed(copy, ledger, groups, asked, quiet)
    for name, item in wanted.items():
        fault = f"the run has no checkpoint of version {item.version}"
        found.setdefault(name, Replayed(name, item.version, fault))
    return [found[name] for name in ids]


def _groups(ledger: LedgerRows) -> Iterator[Group]:
    group: Group = []
    for item in ledger.completions():
        if group and item.prompt is not group[0].prompt:
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def _starts(run_folder: Path, versions: set[int], first: int) -> dict[int, list[int]]:
    """Versions in order, by the step that they are reached from: of a checkpoint, or the first."""
    intact = [path for path in checkpoints_of(run_folder / "checkpoints") if not find_fault(path)]
    steps = [first, *sorted(int(path.name.removeprefix("step_")) for path in intact)]
    found: dict[int, list[int]] = {}
    for version in sorted(versions):
        start = max(step for step in steps if step <= version)
        found.setdefault(start, []).append(version)
    return found


def _copied(run_folder: Path, recipe: RLRecipe, folder: Path, start: int) -> RLRecipe:
    """Make a run's folder that goes on from one checkpoint of another's; its recipe.

    Nothing of what is left out of the recipe has a part in weights or samples.
    """
    (folder / "checkpoints").mkdir(parents=True)
    if checkpoint_path(run_folder / "checkpoints", start).is_dir():  # not where a run begins
        source, place = (checkpoint_path(f / "checkpoints", start) for f in (run_folder, folder))
        place.symlink_to(source.resolve(), target_is_directory=True)
    copy = recipe.model_copy(
        update={
            "output": folder,
            "hub": None,
            "watchdog": None,
            "evaluation": recipe.evaluation.model_copy(update={"sets": {}, "pathways": None}),
            "log": RLLogSettings(ledger="none", completions_per_step=0),
        }
    )
    # A branch finds its parent in what describes the run.
    described = (run_folder / "run.json").read_text(encoding="utf-8")
    write_atomically(folder / "run.json", described)
    write_atomically(folder / "recipe.yaml", to_yaml(copy))
    return copy


def _replayed(
    recipe: RLRecipe,
    ledger: LedgerRows,
    groups: Sequence[Group],
    asked: Sequence[LedgerCompletion],
    console: Console,
) -> dict[str, Replayed]:
    """Go through the versions of the completions that are asked for, from one checkpoint on."""
    found: dict[str, Replayed] = {}
    with (
        StopSignals().watch() as signals,
        open_run(recipe, True, console, signals) as run,
        ExitStack() as stack,
    ):
        rollouts: Rollouts | None = None
        for version in sorted({item.version for item in asked}):
            if run.step < version and rollouts is None:
                rollouts = stack.enter_context(sampling_rollouts(run))
            while rollouts is not None and run.step < version:
                train_step(run, rollouts, signals)
            own = [item for item in asked if item.version == version]
            with nullcontext() if rollouts is None else rollouts.exclusive():
                found |= _at_version(run, ledger, groups, own)
    return found


def _at_version(
    run: Run, ledger: LedgerRows, groups: Sequence[Group], asked: Sequence[LedgerCompletion]
) -> dict[str, Replayed]:
    """Sample again, with the run's weights, what they sampled before."""
    recorded = ledger.weights.get(run.step)
    fault = None
    if recorded is None:
        fault = f"the ledger has no weights of version {run.step}"
    elif recorded["fingerprint"] != fingerprint(run.policy):
        fault = (
            f"the weights of version {run.step} came out otherwise: this machine, its versions or "
            "an asynchronous run's timing are not the same"
        )
    else:
        fault = _prompt_fault(run, asked)
    if fault is not None:
        return {item.id: Replayed(item.id, item.version, fault) for item in asked}
    found: dict[str, Replayed] = {}
    names = {item.id for item in asked}
    for call in _calls(run, ledger, groups, names):
        for group, samples in zip(call, _sampled(run, call), strict=True):
            for item, sample in zip(group, samples, strict=True):
                if item.id in names:
                    found[item.id] = compared(item, sample)
    return found


def _prompt_fault(run: Run, asked: Sequence[LedgerCompletion]) -> str | None:
    for item in asked:
        place = run.places.get(item.prompt["problem"])
        if place is None or token_hash(run.prompts[place].ids) != item.prompt["prompt_hash"]:
            return (
                f"the prompt of problem {item.prompt['problem']!r} is not what it was: data, "
                "template or tokenizer have changed"
            )
    return None


def _calls(
    run: Run, ledger: LedgerRows, groups: Sequence[Group], names: set[str]
) -> list[list[Group]]:
    """What the engine is asked for at once."""
    if isinstance(run.engine, TransformersEngine) and run.engine.rows != "any":
        alone = [[item for item in group if item.id in names] for group in groups]
        return [[group for group in alone if group]]
    rounds: dict[tuple[int, int], list[Group]] = {}
    for group in groups:
        rounds.setdefault((group[0].sampled_for, group[0].prompt["round"]), []).append(group)
    shares = [
        whole[len(whole) * rank // count : len(whole) * (rank + 1) // count]
        for (step, _), whole in rounds.items()
        for count in [_processes(run, ledger, step)]
        for rank in range(count)
    ]
    return [share for share in shares if any(item.id in names for g in share for item in g)]


def _processes(run: Run, ledger: LedgerRows, step: int) -> int:
    """How many processes shared the prompts of a step."""
    engine = ledger.engine(step)
    return 1 if run.central or engine is None else int(engine["processes"])


def _sampled(run: Run, call: Sequence[Group]) -> list[list[Sample]]:
    """What the engine, and the environment, make of the groups' prompts and seeds."""
    prompts = [run.prompts[run.places[group[0].prompt["problem"]]] for group in call]
    requests = [
        Request(tuple(prompt.ids), tuple(int(item.row["seed"], 16) for item in group))
        for prompt, group in zip(prompts, call, strict=True)
    ]
    sampling, environments = run.recipe.rollout.sampling, run.environments
    if environments is None:
        return run.engine.generate(requests, sampling)
    found: dict[int, list[Sample]] = {}
    play(
        run.engine,
        requests,
        lambda r, s: environments.begin(prompts[r].problem, requests[r].seeds[s]),
        sampling,
        environments.limits,
        finished=lambda r, samples: found.update({r: samples}),
    )
    return [found[index] for index in range(len(requests))]


def compared(item: LedgerCompletion, sample: Sample) -> Replayed:
    """A sample beside the completion that the ledger records."""
    row = item.row
    same_ids = token_hash(sample.token_ids) == row["ids_hash"]
    same_logprobs = same_ids and logprob_hash(sample.logprobs) == row["logprobs_hash"]
    first, largest = (None, 0.0) if same_logprobs else _difference(row, sample)
    of_sum = abs(sum(sample.logprobs) - row["logprob_sum"]) if same_ids else None
    return Replayed(
        item.id,
        item.version,
        same_ids=same_ids,
        same_logprobs=same_logprobs,
        first_difference=first,
        largest=largest,
        of_sum=0.0 if same_logprobs else of_sum,
    )


def _difference(row: Mapping[str, object], sample: Sample) -> tuple[int | None, float | None]:
    """The first position that differs, and by how many nats before the first other id."""
    ids, logprobs = row.get("ids"), row.get("logprobs")
    if not isinstance(ids, list) or not isinstance(logprobs, list):
        return None, None
    pairs = list(zip(ids, sample.token_ids, strict=False))
    same = next((place for place, (one, two) in enumerate(pairs) if one != two), len(pairs))
    apart = [
        abs(one - two) for one, two in zip(logprobs[:same], sample.logprobs[:same], strict=True)
    ]
    first = next((place for place, value in enumerate(apart) if value), same)
    return first, max(apart, default=0.0)
