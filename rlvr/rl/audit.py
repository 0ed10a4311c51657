"""Prove from a run's files that its books are closed: ``rlvr audit RUN``.

The ledger's rows are checked among themselves (:mod:`rlvr.rl.books`) and against what else the run
left: its metrics, its checkpoints, the completions that it kept, whose answers are graded again.
Neither the model nor the data are loaded. docs/audit.md says what that proves and what it does not.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rlvr.files import Row, enumerate_
from rlvr.learner.checkpoint import checkpoints_of, find_fault, load_state
from rlvr.rl.books import Books, Check, check_books
from rlvr.rl.recorded import recipe_with_ledger
from rlvr.rl.regrading import check_verdicts
from rlvr.runs.ledger import LEDGER, logprob_hash, read_ledger, token_hash
from rlvr.runs.log import read_metrics

_DIGITS = 1e-8
"""Relative: metrics are written with nine digits."""


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
    recipe = recipe_with_ledger(run)
    written = _written(run)
    ledger = read_ledger(run)
    if not ledger.rows:
        raise ValueError(f"{str(run / LEDGER)!r} holds no finished step yet; wait for the first")
    books = Books(
        ledger, recipe.rollout.model_dump(mode="json"), recipe.learner.updates_per_rollout
    )
    notes = [*ledger.notes, *written.notes]
    if ledger.cut:
        notes.append(f"{len(ledger.cut)} rows are of a step that was cut short")
    checks = check_books(books)
    if not any(check.faults for check in checks[:1]):
        checks += [_metrics(books, written), _checkpoints(books, written)]
        checks += [_hashes(books), check_verdicts(books, run, recipe, sample, seed)]
        if replay:
            checks.append(_replays(books, run, replay, seed))
    return Audit(tuple(checks), tuple(notes))


@dataclass(frozen=True)
class _Saved:
    """What a checkpoint says of the ledger and of its draws.

    Attributes:
        head: Number and link of the ledger's last row.
        drawn: How many problems the sampler had given.
        queue: Of each rollout that was sampled ahead: the draws that were sampled for it, those of
            earlier steps that it used up, and those that it leaves waiting.
        waiting: The draws that were carried over.
    """

    step: int
    head: Row
    drawn: int
    queue: tuple[tuple[list[int], set[int], set[int]], ...]
    waiting: set[int]


@dataclass(frozen=True)
class _Written:
    """What a run left beside its ledger.

    Attributes:
        saved: By name, of the intact checkpoints that tell of the ledger, oldest first.
        settled: The step of the newest intact checkpoint; 0 if there is none.
        metrics: By step.
        notes: Of checkpoints that could not be read.
    """

    saved: Mapping[str, _Saved]
    settled: int
    metrics: Mapping[int, Row]
    notes: tuple[str, ...]


def _written(run: Path) -> _Written:
    """Read checkpoints, then metrics: the order in which a step writes them, turned round.

    The ledger, which a step writes first, must be read after them. So whatever they tell of is in
    it, also where the run goes on meanwhile.
    """
    saved: dict[str, _Saved] = {}
    notes, settled = [], 0
    for path in reversed(checkpoints_of(run / "checkpoints")):
        with suppress(FileNotFoundError):  # it was pruned just now
            fault = find_fault(path)
            if fault is None:
                state, _ = load_state(path)
                settled = state["step"]
                if "ledger" in state:
                    saved[path.name] = _saved(state)
            elif path.is_dir():
                notes.append(f"checkpoint {path.name} is damaged ({fault}) and was not looked at")
    metrics: dict[int, Row] = {}
    for row in read_metrics(run / "metrics.jsonl"):
        metrics.setdefault(row["step"], {}).update(row)
    return _Written(saved, settled, metrics, tuple(notes))


def _saved(state: Mapping[str, Any]) -> _Saved:
    rollouts = state["rollouts"]
    sampler = rollouts["sampler"]
    return _Saved(
        state["step"],
        state["ledger"],
        sampler["epoch"] * sampler["size"] + sampler["cursor"] - len(sampler["put_off"]),
        tuple(
            (
                [_draw(group) for group in rollout["sampled"]],
                {_draw(group) for group in (*rollout["carried"], *rollout["stale"])},
                set(rollout["held"]),
            )
            for rollout in rollouts.get("queue", [])
        ),
        {_draw(group) for group in rollouts.get("carry_over", [])},
    )


def _draw(group: Sequence[Mapping[str, Any]]) -> int:
    return int(group[0]["completion"]["draw"])


def _metrics(books: Books, written: _Written) -> Check:
    """``metrics.jsonl`` says of each step what its rows say."""
    logged = written.metrics
    trained = {step for step, row in logged.items() if "reward/mean" in row}
    first, told = books.begin["step"], set(books.ledger.steps)
    # Steps after the newest checkpoint are repeated if the run was killed, in the midst of writing
    # them or of dropping them at a resume. A run that goes on may not have written them yet.
    alone = {
        "metrics.jsonl and not in the ledger": sorted(s for s in trained - told if s > first),
        "the ledger and not in metrics.jsonl": sorted(told - trained),
    }
    faults = [
        f"step {step} is in {where}"
        for where, own in alone.items()
        for step in own
        if step <= written.settled
    ]
    open_steps = sorted({step for own in alone.values() for step in own if step > written.settled})
    note = (
        f"step {enumerate_(open_steps)} is not in both: being written, or to be repeated"
        if open_steps
        else ""
    )
    for step in sorted(trained & told):
        for name, value in _figures(books, step).items():
            other = logged[step].get(name)
            if other is None or not math.isclose(other, value, rel_tol=_DIGITS, abs_tol=1e-12):
                faults.append(
                    f"step {step}: {name} is {other} in metrics.jsonl, and the rows give "
                    f"{value:.9g}"
                )
    return Check("metrics", len(trained & told), "steps", tuple(faults), note)


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


def _checkpoints(books: Books, written: _Written) -> Check:
    """Each checkpoint continues the ledger: its last row, and the draws that it holds."""
    first = books.begin["step"]
    looked = {name: saved for name, saved in written.saved.items() if saved.step >= first}
    faults = tuple(
        f"{name}: {fault}"
        for name, saved in looked.items()
        for fault in _checkpoint_faults(books, saved)
    )
    return Check("checkpoints", len(looked), "checkpoints", faults)


def _checkpoint_faults(books: Books, saved: _Saved) -> Iterator[str]:
    step, row = saved.step, saved.head["row"]
    links = {row["row"]: row["link"] for row in books.ledger.rows}
    if links.get(row) != saved.head["link"]:
        yield f"it was written when row {row} had another link, or the row is gone"
    if step not in (books.begin["step"], *books.ledger.steps):
        yield f"step {step} is not in the ledger"
        return
    ahead = [draw for sampled, _, _ in saved.queue for draw in sampled]
    drawn = max(
        (row["draw"] for row in books.prompts if row["step"] <= step),
        default=books.begin["first_draw"] - 1,
    )
    if ahead != list(range(drawn + 1, drawn + 1 + len(ahead))):
        yield f"draw {drawn} was the last of step {step}, and draws {ahead} are in flight"
    if saved.drawn != drawn + 1 + len(ahead):
        yield (
            f"the sampler gave {saved.drawn} problems, and the ledger and what is in flight hold "
            f"{drawn + 1 + len(ahead)}"
        )
    waiting = books.waiting(step)
    for _, used, held in saved.queue:
        waiting = (waiting - used) | held
    if saved.waiting != waiting:
        yield f"draws {sorted(waiting)} wait, and the checkpoint holds {sorted(saved.waiting)}"


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


def _replays(books: Books, run: Path, count: int, seed: int) -> Check:
    """Completions whose weights are at hand come out the same when they are sampled again."""
    # It loads the model; an audit of the files alone does not.
    from rlvr.rl.replay import replay_completions

    ready = _at_hand(books, run)
    able = [item.id for item in books.ledger.completions() if item.version in ready]
    chosen = random.Random(seed).sample(able, min(count, len(able)))
    found = replay_completions(run, chosen, retrain=False)
    # A run that goes on prunes checkpoints meanwhile.
    gone = ready - _at_hand(books, run)
    done = [result for result in found if result.same or result.version not in gone]
    faults = tuple(str(result) for result in done if not result.same)
    note = "" if able else "no weights are at hand that any was sampled with"
    if len(done) < len(found):
        note = f"the weights of {len(found) - len(done)} more were pruned meanwhile"
    return Check("replay", len(done), "completions sampled again", faults, note)


def _at_hand(books: Books, run: Path) -> set[int]:
    """Versions of the weights that need no training: of the beginning and of checkpoints."""
    steps = [int(path.name.removeprefix("step_")) for path in checkpoints_of(run / "checkpoints")]
    return {books.begin["step"], *steps}
