"""Whether the completions that a run kept have the verdicts of its ledger, now as then.

Part of ``rlvr audit`` (:mod:`rlvr.rl.audit`): what stands in ``completions/`` is compared with the
ledger's rows, and a random sample of the answers is graded again.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import reward
from reward.graders import graded_text
from reward.thoughts import left_open
from rlvr.data.decoding import thought_markers
from rlvr.files import Row, read_lines
from rlvr.policy.loading import load_tokenizer
from rlvr.rl.books import Books, Check
from rlvr.rl.ledger import certificate
from rlvr.rl.recipe import RLRecipe
from rlvr.runs.scoring import policy_of

_GIVEN_UP = {"timeout", "crash", "error"}
"""States of a verdict that say something about the machine and not about the answer."""


def check_verdicts(books: Books, run: Path, recipe: RLRecipe, sample: int, seed: int) -> Check:
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
    faults = [fault for row, grade in compared for fault in _verdict_faults(row, grade)]
    return faults, len(chosen) - len(compared)


def _verdict_faults(row: Row, grade: reward.Grade) -> Iterator[str]:
    told = row["verdict"]
    if grade.correct != told["correct"]:
        yield (
            f"row {row['row']}: {row['id']} is said to be {_named(told['correct'])}, and "
            f"graded again it is {_named(grade.correct)} ({grade.reason})"
        )
    elif told.get("certificate", certificate(grade)) != certificate(grade):
        yield (
            f"row {row['row']}: the verdict on {row['id']} has another certificate than when it is "
            f"graded again: it was found by {told['path']} ({told['certainty'] or 'wrong'}), and "
            f"now by {grade.path} ({grade.certainty or 'wrong'})"
        )


def _named(correct: bool) -> str:
    return "right" if correct else "wrong"
