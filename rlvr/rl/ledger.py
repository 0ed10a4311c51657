"""What reinforcement learning writes into the run's ledger (:mod:`rlvr.runs.ledger`).

When a run begins: where its draws begin, its weights, its engine. After each step: every prompt
that was drawn for it with its fate, every completion that was sampled for it, later fates of
prompts that had been carried over, the weights, and the sums. docs/audit.md lists the columns.

Nothing here depends on the time of day or on chance, so the ledger of a run that was killed and
resumed is that of an undisturbed one, line for line, where the weights are.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import fsum
from typing import Any

import torch

from reward import Grade
from rlvr.files import Row
from rlvr.policy.fingerprint import fingerprint
from rlvr.rl.collect import Rollout, has_signal
from rlvr.rl.run import Run
from rlvr.rollout.sampling import sample_seed
from rlvr.runs.collectives import on_rank_zero
from rlvr.runs.ledger import (
    FORMAT,
    LEDGER,
    Fate,
    Ledger,
    LedgerRows,
    Loss,
    certificate_hash,
    chained,
    logprob_hash,
    read_ledger,
    token_hash,
)
from rlvr.runs.run_folder import read_lineage, versions
from rlvr.runs.scoring import ScoredCompletion, scored_from_state
from rlvr.types import Batch

Scored = list[ScoredCompletion]


def open_ledger(run: Run) -> None:
    """Begin the run's ledger, or go on with it; collective.

    Raises:
        ValueError: The weights are not those of the step that the run goes on from, or ranks hold
            different ones.
    """
    if run.recipe.log.ledger == "none":
        return
    trained, frozen = _same_on_all(run), _same_on_all(run, trained=False)
    on_rank_zero(run.ranks, lambda: _open(run, trained, frozen))


def record_ledger(run: Run, rollout: Rollout, batch: Batch, metrics: Mapping[str, float]) -> None:
    """Write a finished step into the ledger; collective.

    Args:
        run: Its ``step`` is the one.
        rollout: What was sampled for it.
        batch: What was trained on, in the order of the rollout's groups.
        metrics: The step's, which say how many updates were not taken.
    """
    if run.recipe.log.ledger == "none":
        return
    trained = _same_on_all(run)
    if run.ledger is None:
        return
    drawn = list(_drawn_rows(run, rollout, batch))
    weights = _weights_row(run, trained)
    run.ledger.append(run.step, [*drawn, weights, _step_row(run, rollout, drawn, metrics)])


def _same_on_all(run: Run, *, trained: bool = True) -> str:
    """The fingerprint of the policy, the same on all ranks.

    Raises:
        ValueError: A rank holds other weights.
    """
    found = run.ranks.gather(fingerprint(run.policy, trained=trained))
    odd = [rank for rank, own in enumerate(found) if own != found[0]]
    if odd:
        raise ValueError(
            f"after step {run.step} processes {odd} hold other weights than process 0: their "
            "updates or what they loaded differ; resume from the last checkpoint, and if it "
            "happens again look for a faulty device (rlvr doctor)"
        )
    return found[0]


def _open(run: Run, trained: str, frozen: str) -> None:
    run.ledger = Ledger(run.folder / LEDGER)
    rows = read_ledger(run.folder) if run.ledger.row else LedgerRows(())
    known = rows.weights.get(run.step)
    if known is None:
        run.ledger.restart()
        rows = LedgerRows(())
    elif known["fingerprint"] != trained:
        raise ValueError(
            f"the weights that were loaded are not those of step {run.step} in "
            f"{str(run.folder / LEDGER)!r}: their fingerprint is {trained[:16]} and was "
            f"{known['fingerprint'][:16]}; the checkpoint was altered or is of another run: "
            "resume from another one, or branch from this one with --from"
        )
    else:
        run.ledger.chain = known["chain"]
    engine = _engine_row(run, frozen)
    before = rows.engine(run.step + 1)
    if known is None:
        run.ledger.append(run.step, [_begin_row(run), _weights_row(run, trained), engine])
    elif before is None or {name: before.get(name) for name in engine} != engine:
        run.ledger.append(run.step, [engine])


def _begin_row(run: Run) -> Row:
    """Where draws begin, and what is there of them already."""
    state = run.rollouts_state
    ahead = [group for rollout in state.get("queue", []) for group in rollout["sampled"]]
    waiting = {
        group[0]["completion"]["draw"]: group
        for groups in (
            state.get("carry_over", []),
            *(rollout["carried"] + rollout["stale"] for rollout in state.get("queue", [])),
        )
        for group in groups
    }
    early = {group[0]["completion"]["draw"] for group in ahead}
    lineage = read_lineage(run.folder)
    return {
        "kind": "begin",
        "format": FORMAT,
        "seed": run.recipe.seed,
        "loaded": len(run.prompts) + sum(run.refused.values()),
        "refused": dict(sorted(run.refused.items())),
        "data_digest": run.data_digest,
        "sampler": run.sampler.state_dict(),
        "first_draw": run.sampler.drawn - len(ahead),
        "carried": [
            _carried(group) for draw, group in sorted(waiting.items()) if draw not in early
        ],
        "dropped": sorted(run.dropped),
        "updates": run.learner.updates,
        "parent": None if lineage is None else {k: lineage[k] for k in _LINEAGE},
    }


_LINEAGE = ("folder", "step", "digest")


def _carried(group: Sequence[Mapping[str, Any]]) -> Row:
    first = group[0]["completion"]
    lengths = [scored_from_state(item).completion.length for item in group]
    names = ("draw", "group_id", "problem_id", "policy_version")
    draw, label, problem, version = (first[name] for name in names)
    return {
        "draw": draw,
        "group": label,
        "problem": problem,
        "version": version,
        "lengths": lengths,
    }


def _engine_row(run: Run, frozen: str) -> Row:
    """What completions come from, besides the trained weights, and what may change at a resume."""
    recipe, device = run.recipe, run.policy.device
    rollout = recipe.rollout
    return {
        "kind": "engine",
        "engine": rollout.engine.model_dump(mode="json"),
        "sampling": rollout.sampling.model_dump(mode="json"),
        "samples_per_prompt": rollout.samples_per_prompt,
        **(
            {}
            if recipe.environment is None
            else {"environment": recipe.environment.model_dump(mode="json")}
        ),
        "seed": recipe.seed,
        "precision": recipe.model.precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "processes": run.ranks.count,
        "frozen": frozen,
        "versions": versions(),
    }


def _weights_row(run: Run, trained: str) -> Row:
    assert run.ledger is not None
    run.ledger.chain = chained(run.ledger.chain, trained)
    return {
        "kind": "weights",
        "version": run.step,
        "fingerprint": trained,
        "chain": run.ledger.chain,
    }


def _drawn_rows(run: Run, rollout: Rollout, batch: Batch) -> Iterator[Row]:
    """A row for each prompt drawn, its completions behind it, and fates of earlier ones."""
    trained = _trained(run, rollout, batch)
    sizes = rollout.round_sizes or (len(rollout.sampled),)
    in_round = [number for number, size in enumerate(sizes, 1) for _ in range(size)]
    for number, group in zip(in_round, rollout.sampled, strict=True):
        yield _prompt_row(run, rollout, group, number, trained)
        for item in group:
            yield _completion_row(run, item)
    for group in (*rollout.carried, *rollout.stale):
        draw = group[0].completion.draw
        if draw in rollout.held:
            continue  # waits on
        stale = any(group is old for old in rollout.stale)
        fate = {"fate": "stale"} if stale else trained.get(draw, {"fate": "surplus"})
        lengths = [item.completion.length for item in group]
        yield {"kind": "fate", **_names(group), "lengths": lengths, **fate}


def _names(group: Scored) -> Row:
    first = group[0].completion
    return {"draw": first.draw, "group": first.group_id, "problem": first.problem_id}


def _prompt_row(
    run: Run, rollout: Rollout, group: Scored, number: int, trained: Mapping[int, Row]
) -> Row:
    first = group[0].completion
    place = run.places[first.problem_id]
    grader = run.prompts[place].problem.grader
    return {
        "kind": "prompt",
        **_names(group),
        "index": place,
        "epoch": first.draw // len(run.prompts),
        "round": number,
        "version": first.policy_version,
        "prompt_hash": token_hash(first.prompt_ids),
        "prompt_tokens": len(first.prompt_ids),
        **({} if grader == "rlvr" else {"grader": grader}),
        **(trained.get(first.draw) or _set_aside(run, rollout, group)),
    }


def _set_aside(run: Run, rollout: Rollout, group: Scored) -> Row:
    settings = run.recipe.rollout
    fate: Fate = "carried" if group[0].completion.draw in rollout.held else "surplus"
    if has_signal(group, settings):
        return {"fate": fate}
    rule = "zero_variance" if settings.accuracy_range is None else "accuracy_range"
    return {"fate": "filtered", "rule": rule}


def _trained(run: Run, rollout: Rollout, batch: Batch) -> dict[int, Row]:
    """By draw: the update that learnt from each group of a step, and its completions' tokens."""
    losses, groups = _losses(run, batch), rollout.groups
    updates = min(run.recipe.learner.updates_per_rollout, len(groups))
    found, row = {}, 0
    for place, group in enumerate(groups):
        own = losses[row : row + len(group)]
        row += len(group)
        update = run.learner.updates - updates + update_of(place, len(groups), updates)
        found[group[0].completion.draw] = {"fate": "trained", "update": update, "loss": own}
    return found


def update_of(place: int, groups: int, updates: int) -> int:
    """Which of a rollout's updates, from 0, learns from the group at a place.

    The learner gives update u the groups from ``groups * u // updates`` on.
    """
    return next(u for u in range(updates) if place < groups * (u + 1) // updates)


def _losses(run: Run, batch: Batch) -> list[Loss]:
    """What became of the tokens of each completion of the batch."""
    advantages_BT = run.learner.advantages_BT
    assert advantages_BT is not None, "a step was trained"
    in_loss = set(batch.rows_with_tokens)
    ran = set(run.learner.rows_to_run(replace(batch, advantages_BT=advantages_BT)))
    return [
        "trained" if row in ran else "skipped" if row in in_loss else "masked"
        for row in range(len(batch))
    ]


def completion_id(item: ScoredCompletion) -> str:
    """``STEP/POSITION/SAMPLE``, unique in a run."""
    return f"{item.completion.group_id}/{item.completion.sample_index}"


def _completion_row(run: Run, item: ScoredCompletion) -> Row:
    completion, step = item.completion, int(item.completion.group_id.partition("/")[0])
    seed = sample_seed(run.recipe.seed, step, completion.problem_id, completion.sample_index)
    row = {
        "kind": "completion",
        "id": completion_id(item),
        "tokens": completion.length,
        "ids_hash": token_hash(completion.token_ids),
        "logprobs_hash": logprob_hash(completion.logprobs),
        "logprob_sum": fsum(completion.logprobs),
        "seed": f"{seed:016x}",
        "finish": completion.finish_reason,
        "reward": item.reward,
        "verdict": None if item.grade is None else verdict(item.grade),
    }
    if run.recipe.log.ledger == "tokens":
        row |= {"ids": list(completion.token_ids), "logprobs": list(completion.logprobs)}
    return row


def verdict(grade: Grade) -> Row:
    """What is kept of a verdict: whether the answer is right, and what that rests on.

    ``certificate`` is a hash over the answer that was read from the response, the kind of the
    reference, the rule that decided, the certainty and the score: whoever grades the response again
    must come to the same.
    """
    kept = {name: getattr(grade, name) for name in ("correct", "path", "certainty", "status")}
    return {**kept, "certificate": certificate(grade)}


def certificate(grade: Grade) -> str:
    """The hash of what a verdict rests on; its ``reason``, which is worded for people, is not."""
    names = ("correct", "extracted", "kind", "path", "certainty", "status", "score")
    return certificate_hash([getattr(grade, name) for name in names])


def _step_row(
    run: Run, rollout: Rollout, drawn: Sequence[Row], metrics: Mapping[str, float]
) -> Row:
    """The sums of a step, of its prompts and of their tokens by fate."""
    prompts: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    lengths = _lengths(rollout)
    for row in drawn:
        if row["kind"] == "completion":
            tokens["generated"] += row["tokens"]
            continue
        prompts["drawn"] += row["kind"] == "prompt"
        prompts[row["fate"]] += 1
        fates = row.get("loss", [row["fate"]] * len(lengths[row["draw"]]))
        for fate, length in zip(fates, lengths[row["draw"]], strict=True):
            tokens[fate] += length
    return {
        "kind": "step",
        "rounds": rollout.rounds,
        "prompts": dict(sorted(prompts.items())),
        "tokens": dict(sorted(tokens.items())),
        "waiting": len(rollout.held),
        "updates": run.learner.updates,
        "skipped_updates": int(metrics["learner/skipped_updates"]),
        "held_updates": run.learner.held_updates,
    }


def _lengths(rollout: Rollout) -> dict[int, list[int]]:
    """Tokens of each completion, by draw."""
    groups = (*rollout.sampled, *rollout.carried, *rollout.stale)
    return {g[0].completion.draw: [item.completion.length for item in g] for g in groups}
