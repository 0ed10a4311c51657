"""Prove from a run's files that its books are closed: ``rlvr audit RUN``.

The ledger's rows are checked among themselves (:mod:`rlvr.rl.books`) and against what else the run
left: its metrics, its checkpoints, the completions that it kept, whose answers are graded again.
Neither the model nor the data are loaded. docs/audit.md says what that proves and what it does not.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import reward
from reward.graders import graded_text
from reward.thoughts import left_open
from rlvr.data.decoding import thought_markers
from rlvr.files import Row, enumerate_, read_lines
from rlvr.learner.checkpoint import checkpoints_of, find_fault, latest_checkpoint, load_state
from rlvr.policy.loading import load_tokenizer
from rlvr.rl.books import Books, Check, check_books
from rlvr.rl.recipe import RLRecipe
from rlvr.runs.ledger import LEDGER, logprob_hash, read_ledger, token_hash
from rlvr.runs.log import read_metrics
from rlvr.runs.scoring import policy_of
from rlvr.settings import load_settings, read_recipe

_DIGITS = 1e-8
"""Relative: metrics are written with nine digits."""
_GIVEN_UP = {"timeout", "crash", "error"}
"""States of a verdict that say something about the machine and not about the answer."""


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        checks: In order.
        notes: What could not be looked at, and why.
    """

    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()

    @property
    def faults(self) -> list[str]:
        """Every fault, with the name of its check."""
        return [f"{check.name}: {fault}" for check in self.checks for fault in check.faults]

    @property
    def closed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "closed": self.closed,
            "checks": [asdict(check) for check in self.checks],
            "notes": list(self.notes),
        }


def audit(run: Path, *, sample: int = 1000, replay: int = 0, seed: int = 0) -> Audit:
    """Audit a run of reinforcement learning, finished, running or killed.

    Args:
        run: Its folder.
        sample: Kept completions, at most, whose answers are graded again, drawn at random.
        replay: Completions, at most, that are sampled again, drawn at random of those whose weights
            are at hand.
        seed: Of the draws.

    Raises:
        ValueError: The folder holds no such run, or no ledger.
    """
    recipe = _recipe(run)
    ledger = read_ledger(run)
    if not ledger.rows:
        raise ValueError(f"{str(run / LEDGER)!r} holds no finished step yet; wait for the first")
    books = Books(
        ledger, recipe.rollout.model_dump(mode="json"), recipe.learner.updates_per_rollout
    )
    notes = list(ledger.notes)
    if ledger.cut:
        notes.append(f"{len(ledger.cut)} rows are of a step that was cut short")
    checks = check_books(books)
    if not any(check.faults for check in checks[:1]):
        checks += [_metrics(books, run), _checkpoints(books, run)]
        checks += [_hashes(books), _verdicts(books, run, recipe, sample, seed)]
        if replay:
            checks.append(_replays(books, run, replay, seed))
    return Audit(tuple(checks), tuple(notes))


def _recipe(run: Path) -> RLRecipe:
    path = run / "recipe.yaml"
    if not path.is_file():
        raise ValueError(f"{str(run)!r} is not the folder of a run: it has no recipe.yaml")
    task = read_recipe(path).data.get("task", "rl")
    if task != "rl":
        raise ValueError(
            f"{str(run)!r} is a run of task {task!r}; only runs of task rl keep a ledger"
        )
    return load_settings(RLRecipe, path)


def _metrics(books: Books, run: Path) -> Check:
    """``metrics.jsonl`` says of each step what its rows say."""
    logged: dict[int, Row] = {}
    for row in read_metrics(run / "metrics.jsonl"):
        logged.setdefault(row["step"], {}).update(row)
    trained = {step for step, row in logged.items() if "reward/mean" in row}
    first, told = books.begin["step"], set(books.ledger.steps)
    # Steps after the newest checkpoint are repeated if the run was killed, in the midst of writing
    # them or of dropping them at a resume.
    settled = _newest_step(run)
    alone = {
        "metrics.jsonl and not in the ledger": sorted(s for s in trained - told if s > first),
        "the ledger and not in metrics.jsonl": sorted(told - trained),
    }
    faults = [
        f"step {step} is in {where}"
        for where, own in alone.items()
        for step in own
        if step <= settled
    ]
    open_steps = sorted({step for own in alone.values() for step in own if step > settled})
    note = f"step {enumerate_(open_steps)} is not in both: to be repeated" if open_steps else ""
    for step in sorted(trained & told):
        for name, value in _figures(books, step).items():
            other = logged[step].get(name)
            if other is None or not math.isclose(other, value, rel_tol=_DIGITS, abs_tol=1e-12):
                faults.append(
                    f"step {step}: {name} is {other} in metrics.jsonl, and the rows give "
                    f"{value:.9g}"
                )
    return Check("metrics", len(trained & told), "steps", tuple(faults), note)


def _newest_step(run: Path) -> int:
    """The step of the newest intact checkpoint; 0 if there is none."""
    newest = latest_checkpoint(run / "checkpoints")
    return 0 if newest is None else int(newest.name.removeprefix("step_"))


def _figures(books: Books, step: int) -> dict[str, float]:
    """Metrics of a step, from its rows."""
    rows = [row for row in books.at_step(step) if row["kind"] == "completion"]
    (end,) = (row for row in books.at_step(step) if row["kind"] == "step")
    lengths = [row["tokens"] for row in rows]
    right = [row["verdict"]["correct"] for row in rows if row["verdict"] is not None]
    return {
        "reward/mean": fmean(row["reward"] for row in rows),
        "completion/length_mean": fmean(lengths),
        "completion/length_max": max(lengths),
        "completion/truncated": fmean(row["finish"] != "stop" for row in rows),
        "completion/logprob_mean": math.fsum(row["logprob_sum"] for row in rows)
        / max(1, sum(lengths)),
        "rollout/rounds": end["rounds"],
        "learner/updates": end["updates"],
        "learner/skipped_updates": end["skipped_updates"],
        **({"reward/correct": fmean(right)} if right else {}),
    }


def _checkpoints(books: Books, run: Path) -> Check:
    """Each checkpoint continues the ledger: its last row, and the draws that it holds."""
    faults: list[str] = []
    found = [path for path in checkpoints_of(run / "checkpoints") if find_fault(path) is None]
    first = books.begin["step"]
    looked = 0
    for path in reversed(found):
        state, _ = load_state(path)
        if "ledger" in state and state["step"] >= first:
            looked += 1
            faults += [f"{path.name}: {fault}" for fault in _checkpoint_faults(books, state)]
    return Check("checkpoints", looked, "checkpoints", tuple(faults))


def _checkpoint_faults(books: Books, state: Mapping[str, Any]) -> Iterator[str]:
    head, step, rollouts = state["ledger"], state["step"], state["rollouts"]
    links = {row["row"]: row["link"] for row in books.ledger.rows}
    if links.get(head["row"]) != head["link"]:
        yield f"it was written when row {head['row']} had another link, or the row is gone"
    if step not in (books.begin["step"], *books.ledger.steps):
        yield f"step {step} is not in the ledger"
        return
    ahead = [(rollout, g) for rollout in rollouts.get("queue", []) for g in rollout["sampled"]]
    queued = [_draw(group) for _, group in ahead]
    drawn = max(
        (row["draw"] for row in books.prompts if row["step"] <= step),
        default=books.begin["first_draw"] - 1,
    )
    if queued != list(range(drawn + 1, drawn + 1 + len(queued))):
        yield f"draw {drawn} was the last of step {step}, and draws {queued} are in flight"
    there = _sampler_drawn(rollouts["sampler"])
    if there != drawn + 1 + len(queued):
        yield (
            f"the sampler gave {there} problems, and the ledger and what is in flight hold "
            f"{drawn + 1 + len(queued)}"
        )
    waiting = books.waiting(step)
    for rollout in rollouts.get("queue", []):
        used = {_draw(group) for group in (*rollout["carried"], *rollout["stale"])}
        waiting = (waiting - used) | set(rollout["held"])
    carried = {_draw(group) for group in rollouts.get("carry_over", [])}
    if carried != waiting:
        yield f"draws {sorted(waiting)} wait, and the checkpoint holds {sorted(carried)}"


def _draw(group: Sequence[Mapping[str, Any]]) -> int:
    return int(group[0]["completion"]["draw"])


def _sampler_drawn(state: Mapping[str, Any]) -> int:
    return int(state["epoch"] * state["size"] + state["cursor"] - len(state["put_off"]))


def _hashes(books: Books) -> Check:
    """Where ids and log-probabilities are kept (``log.ledger: tokens``), they have their hashes."""
    kept = [row for row in books.ledger.of("completion") if "ids" in row]
    faults = []
    for row in kept:
        if len(row["ids"]) != row["tokens"] or token_hash(row["ids"]) != row["ids_hash"]:
            faults.append(f"row {row['row']}: the token ids of {row['id']} have another hash")
        total = math.fsum(row["logprobs"])
        if logprob_hash(row["logprobs"]) != row["logprobs_hash"] or total != row["logprob_sum"]:
            faults.append(
                f"row {row['row']}: the log-probabilities of {row['id']} have another hash"
            )
    return Check("hashes", len(kept), "completions with their tokens", tuple(faults))


def _verdicts(books: Books, run: Path, recipe: RLRecipe, sample: int, seed: int) -> Check:
    """Kept completions have the ledger's rewards, and their answers get the same verdicts again."""
    rows = {row["id"]: row for row in books.ledger.of("completion")}
    graders = {row["group"]: row.get("grader", "rlvr") for row in books.prompts}
    last = max(books.ledger.steps, default=0)
    kept = [
        one
        for path in sorted((run / "completions").glob("step_*.jsonl"))
        for one in read_lines(path).objects
        if books.begin["step"] < one["step"] <= last
    ]
    known = [(one, rows.get(f"{one['group']}/{one['sample']}")) for one in kept]
    early = {row["group"] for row in books.begin["carried"]}
    faults = [
        f"completion {one['group']}/{one['sample']} was kept at step {one['step']} and has no row"
        for one, row in known
        if row is None and one["group"] not in early
    ]
    pairs = [(one, row) for one, row in known if row is not None]
    for one, row in pairs:
        faults += _kept_faults(one, row)
    chosen = [pair for pair in pairs if pair[1]["verdict"] is not None]
    if len(chosen) > sample:
        chosen = random.Random(seed).sample(chosen, sample)
    again, given_up = _graded_again(chosen, graders, _with_own_tokenizer(recipe, run))
    note = f"of {given_up} more the verifier gave up, now or in the run" if given_up else ""
    count = len(chosen) - given_up
    return Check("verdicts", count, "answers graded again", (*faults, *again), note)


def _replays(books: Books, run: Path, count: int, seed: int) -> Check:
    """Completions whose weights are at hand come out the same when they are sampled again."""
    # It loads the model; an audit of the files alone does not.
    from rlvr.rl.replay import replay_completions

    steps = [int(path.name.removeprefix("step_")) for path in checkpoints_of(run / "checkpoints")]
    ready = {books.begin["step"], *steps}
    able = [item.id for item in books.ledger.completions() if item.version in ready]
    chosen = random.Random(seed).sample(able, min(count, len(able)))
    found = replay_completions(run, chosen, retrain=False)
    faults = tuple(str(result) for result in found if not result.same)
    note = "" if able else "no weights are at hand that any was sampled with"
    return Check("replay", len(found), "completions sampled again", faults, note)


def _with_own_tokenizer(recipe: RLRecipe, run: Path) -> RLRecipe:
    """The recipe with the tokenizer that a finished run left: its model may be somewhere else."""
    own = run / "model"
    if not (own / "tokenizer_config.json").is_file():
        return recipe
    model = recipe.model.model_copy(update={"tokenizer": str(own)})
    return recipe.model_copy(update={"model": model})


def _sampled(one: Row) -> int:
    """Tokens of a kept completion that the policy wrote."""
    turns = one.get("turns") or [[0, len(one["tokens"])]]
    return sum(stop - start for start, stop, *_ in turns)


def _kept_faults(one: Row, row: Row) -> Iterator[str]:
    correct = None if row["verdict"] is None else row["verdict"]["correct"]
    for name, kept, told in (
        ("reward", one["reward"], row["reward"]),
        ("verdict", one["correct"], correct),
        ("length", _sampled(one), row["tokens"]),
        ("end", one["finish_reason"], row["finish"]),
    ):
        if kept != told:
            yield (
                f"row {row['row']}: the {name} of {row['id']} is {told}, and {kept} in the "
                f"completions kept at step {one['step']}"
            )


def _graded_again(
    chosen: Sequence[tuple[Row, Row]], graders: Mapping[str, str], recipe: RLRecipe
) -> tuple[list[str], int]:
    """Faults, and of how many answers there is no verdict to compare."""
    if not chosen:
        return [], 0
    settings = recipe.reward
    thoughts = thought_markers(load_tokenizer(recipe.model), settings.thoughts)
    policy = policy_of(settings, thoughts)
    asked = []
    for one, _ in chosen:
        grader, opened = graders.get(one["group"], "rlvr"), left_open(one["prompt"], thoughts)
        asked.append((graded_text(one["response"], opened, grader), one["answer"], grader))
    with reward.VerifierPool(settings.workers, settings.timeout, policy=policy) as pool:
        grades = pool.grade_many(asked)
    compared = [
        (row, grade)
        for (_, row), grade in zip(chosen, grades, strict=True)
        if not {grade.status, row["verdict"]["status"]} & _GIVEN_UP
    ]
    faults = [
        f"row {row['row']}: {row['id']} is said to be {_named(row['verdict']['correct'])}, and "
        f"graded again it is {_named(grade.correct)} ({grade.reason})"
        for row, grade in compared
        if grade.correct != row["verdict"]["correct"]
    ]
    return faults, len(chosen) - len(compared)


def _named(correct: bool) -> str:
    return "right" if correct else "wrong"
