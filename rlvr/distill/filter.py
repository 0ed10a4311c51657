"""``rlvr distill filter``: grade all traces and keep those worth learning from.

Rejection sampling as the paper's authors ran it. A trace is dropped at the first of these checks
that it fails, and counted there:

    format      it does not end with an end token, or does not hold the closing think token exactly
    once fallback    the student wrote more than ``max_fallback`` of its tokens itself no_answer
    there is no answer (after the closing think token) wrong       the verifier does not accept the
    answer as equal to the reference

The shortest survivor of each problem is kept; a problem without survivors has no trace.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from reward import DEFAULT, VerifierPool
from reward.graders import graded_text, grader_by_name
from reward.thoughts import left_open
from rlvr.data.decoding import Pairs, ResponseDecoder, thought_markers
from rlvr.distill.generate import PARTS, PLAN, check_same, part_rows
from rlvr.distill.recipe import DistillRecipe, FilterSettings
from rlvr.distill.trace import Trace, write_traces
from rlvr.files import read_lines, write_atomically
from rlvr.policy.loading import load_tokenizer
from rlvr.progress import watching
from rlvr.rollout.sampling import sample_seed

TRACES, KEPT, SUMMARY = "traces.jsonl", "kept.jsonl", "filter.json"
REASONS = ("format", "fallback", "no_answer", "wrong")


@dataclass(frozen=True, slots=True)
class Sieve:
    """What the filter needs besides the traces.

    ``bound_fallback`` is false in the student arm, where the student wrote everything.
    """

    settings: FilterSettings
    think_close: int | None
    bound_fallback: bool
    seed: int
    tokenizer: Any


def run_filter(recipe: DistillRecipe, *, partial: bool = False) -> dict[str, Any]:
    """Filter the traces of a folder; write traces.jsonl, kept.jsonl and filter.json.

    Args:
        recipe: ``output`` and ``filter`` say what to do.
        partial: Filter the existing traces although some are missing.

    Raises:
        ValueError: There are no traces or some are missing; a trace to be graded has no reference
            answer.
    """
    grader_by_name(recipe.filter.grader)
    traces = gathered(recipe, partial=partial)
    tokenizer = load_tokenizer(recipe.student.model_settings)
    sieve = Sieve(
        recipe.filter,
        _think_close(recipe.filter.think_close, tokenizer),
        recipe.acceptance_rule.arm != "student",
        recipe.seed,
        tokenizer,
    )
    graded, kept, reasons = sift(traces, sieve)
    write_traces(recipe.output / TRACES, graded)
    write_traces(recipe.output / KEPT, kept)
    summary = filter_summary(graded, kept, reasons)
    write_atomically(recipe.output / SUMMARY, json.dumps(summary, indent=1) + "\n")
    return summary


def gathered(recipe: DistillRecipe, *, partial: bool = False) -> list[Trace]:
    """All traces of a folder, from all its parts, in canonical order.

    Raises:
        ValueError: There are none, or some are missing and ``partial`` is not set.
    """
    folder = recipe.output
    plan = read_lines(folder / PLAN, ended=True).objects
    if not plan:
        raise ValueError(f"{str(folder)!r} holds no traces; run rlvr distill generate first")
    check_same(folder, plan[0]["settings"], recipe.identity, "filter them with the same")
    found: dict[tuple[str, int], Trace] = {}
    for row in part_rows(folder):
        trace = Trace.model_validate_json(json.dumps(row))
        found.setdefault((trace.problem_id, trace.sample), trace)
    problems = plan[0]["problems"]
    wanted = [(problem, sample) for problem in problems for sample in range(recipe.samples)]
    missing = [key for key in wanted if key not in found]
    most = 1 + max((sample for _, sample in found), default=-1)
    if most > recipe.samples:
        raise ValueError(
            f"{str(folder)!r} holds {most} traces of a problem, and samples = {recipe.samples} "
            f"would drop some; filter with samples={most}"
        )
    if not found or (missing and not partial):
        raise ValueError(
            f"{len(missing)} of {len(wanted)} traces are missing from {str(folder / PARTS)!r}; "
            "generate them with --resume, or filter the existing ones with --partial"
        )
    return [found[key] for key in wanted if key in found]


def sift(
    traces: Sequence[Trace], sieve: Sieve
) -> tuple[list[Trace], list[Trace], list[str | None]]:
    """Grade and filter.

    Returns:
        All traces with their rewards; the traces kept; and the reason why each trace was dropped.
        None means that it passed every check, though another trace of its problem may have been
        preferred.

    Raises:
        ValueError: A trace to be graded has no reference answer.
    """
    reasons: list[str | None] = [_form_fault(trace, sieve) for trace in traces]
    graded = list(traces)
    if sieve.settings.correctness == "reference":
        graded = _graded(traces, reasons, sieve)
    survivors = [trace for trace, reason in zip(graded, reasons, strict=True) if reason is None]
    return graded, _picked(survivors, sieve), reasons


def _form_fault(trace: Trace, sieve: Sieve) -> str | None:
    closes = trace.token_ids.count(sieve.think_close) if sieve.think_close is not None else 1
    if closes != 1 or (sieve.settings.require_stop and trace.finish_reason != "stop"):
        return "format"
    if sieve.bound_fallback and trace.fallback_rate > sieve.settings.max_fallback:
        return "fallback"
    return None


def _graded(traces: Sequence[Trace], reasons: list[str | None], sieve: Sieve) -> list[Trace]:
    """Every trace with its reward; fills in ``reasons`` of traces that passed the checks of form.

    Traces that failed them are graded too, because how often an arm is right is worth knowing.
    """
    for trace in traces:
        if trace.answer is None or not trace.answer.strip():
            raise ValueError(
                f"trace {trace.id!r} has no reference answer to be graded against; add one to its "
                "problem, or set filter.correctness=none"
            )
    settings = sieve.settings
    thoughts = thought_markers(sieve.tokenizer, settings.thoughts)
    pairs = [(_response(trace, sieve, thoughts), trace.answer or "") for trace in traces]
    policy = replace(DEFAULT, thoughts=thoughts)
    with (
        watching("grading traces") as progress,
        VerifierPool(settings.workers, settings.timeout, settings.grader, policy) as pool,
    ):
        grades = pool.grade_many(pairs, progress)
    graded = []
    for index, (trace, verdict) in enumerate(zip(traces, grades, strict=True)):
        graded.append(trace.model_copy(update={"reward": float(verdict.correct)}))
        if reasons[index] is None and not verdict.correct:
            reasons[index] = "no_answer" if verdict.status == "no_answer" else "wrong"
    return graded


def _response(trace: Trace, sieve: Sieve, thoughts: Pairs) -> str:
    """The text from which the answer is read: the trace, or its part after the closing think
    token."""
    if sieve.think_close is None or sieve.think_close not in trace.token_ids:
        return graded_text(trace.text, left_open(trace.prompt, thoughts), sieve.settings.grader)
    last = len(trace.token_ids) - trace.token_ids[::-1].index(sieve.think_close)
    decode = ResponseDecoder(sieve.tokenizer)
    return decode(trace.token_ids[last:], finished=trace.finish_reason == "stop")


def _picked(survivors: Sequence[Trace], sieve: Sieve) -> list[Trace]:
    if sieve.settings.keep == "all":
        return list(survivors)
    by_problem: dict[str, list[Trace]] = {}
    for trace in survivors:
        by_problem.setdefault(trace.problem_id, []).append(trace)
    if sieve.settings.keep == "shortest":
        return [
            min(group, key=lambda t: (len(t.token_ids), t.sample)) for group in by_problem.values()
        ]
    return [
        group[
            np.random.Generator(np.random.Philox(key=_pick_seed(sieve.seed, problem))).integers(
                len(group)
            )
        ]
        for problem, group in by_problem.items()
    ]


def _pick_seed(seed: int, problem: str) -> int:
    # Columns of random numbers count from 0, so -1 gives the pick a separate stream.
    return sample_seed(seed, -1, problem, 0)


def filter_summary(
    traces: Sequence[Trace], kept: Sequence[Trace], reasons: Sequence[str | None]
) -> dict[str, Any]:
    """How many traces each check dropped, and statistics of the traces kept."""
    counts = Counter(reason for reason in reasons if reason is not None)
    lengths = [len(trace.token_ids) for trace in kept]
    rewards = [trace.reward for trace in traces if trace.reward is not None]
    return {
        "traces": len(traces),
        "problems": len({trace.problem_id for trace in traces}),
        "dropped": {name: counts.get(name, 0) for name in REASONS},
        "survivors": len(traces) - sum(counts.values()),
        "kept": len(kept),
        "problems_with_trace": len({trace.problem_id for trace in kept}),
        "accuracy": fmean(rewards) if rewards else None,
        "fallback_rate": _fallback_rate(traces),
        "kept_fallback_rate": _fallback_rate(kept),
        "kept_tokens_mean": fmean(lengths) if lengths else None,
        "replacement_characters": sum("\ufffd" in trace.text for trace in kept),
    }


def _fallback_rate(traces: Sequence[Trace]) -> float | None:
    tokens = sum(len(trace.writer) for trace in traces)
    return sum(trace.writer.count("s") for trace in traces) / tokens if tokens else None


def _think_close(token: str | None, tokenizer: Any) -> int | None:  # noqa: ANN401
    if token is None:
        return None
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    if token not in vocabulary:
        raise ValueError(
            f"filter.think_close = {token!r} is not a single token of the student; name one from "
            "its vocabulary, or null"
        )
    return vocabulary[token]
