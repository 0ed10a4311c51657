"""Sampling a plan: one engine, everything in flight at once, every sample on disk as it finishes.

The engine gets all samples of a round in one call, longest first, and fills a place as soon as one
is free. Each sample is a request of its own, so that it is written the moment it is done. Killed at
any time, the same command samples what is missing: seeds are fixed by the plan, and the final file
is put into canonical order, so it comes out the same up to what another batch rounds otherwise.

With several processes each takes every n-th sample and writes a file of its own.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval.files import (
    LOG,
    PARTS,
    SAMPLES,
    Appender,
    Key,
    Row,
    key_of,
    line,
    read_lines,
    write_lines,
)
from eval.plan import Job, Plan
from rlvr.ranks import Ranks
from rlvr.rollout import Engine, Sample

Show = Callable[[int, int], None]
"""Told (samples there are, samples there will be)."""


def missing_jobs(plan: Plan, folder: Path) -> list[Job]:
    """The samples that are not on disk yet, in canonical order."""
    found = finished_rows(folder)
    return [job for job in plan.jobs if job.key not in found]


def finished_rows(folder: Path) -> dict[Key, Row]:
    """Every whole sample on disk; a line cut by a kill is as if it had not been written."""
    paths = [folder / SAMPLES, *sorted((folder / PARTS).glob("*.jsonl"))]
    return {key_of(row): row for path in paths for row in read_lines(path).rows}


def sample_missing(
    plan: Plan,
    jobs: Sequence[Job],
    engine: Engine,
    tokenizer: Any,  # noqa: ANN401
    folder: Path,
    ranks: Ranks,
    show: Show | None = None,
) -> None:
    """Draw ``jobs`` (this process's share of them) and append each as it finishes.

    Args:
        plan: What they belong to.
        jobs: What is missing.
        engine: Synced with the model's weights.
        tokenizer: Turns token ids into text, once.
        folder: The evaluation's folder.
        ranks: The processes that share the work.
        show: Told about progress.
    """
    began, tokens, count, total = time.perf_counter(), 0, 0, len(plan.jobs)
    with Appender(folder / PARTS / f"rank_{ranks.rank:04d}.jsonl") as part:
        for sampling, members in plan.rounds(jobs):
            mine = members[ranks.rank :: ranks.count]

            def finished(index: int, samples: list[Sample], mine: list[Job] = mine) -> None:
                nonlocal tokens, count
                (sample,) = samples
                part.add(sample_row(mine[index], sample, tokenizer))
                tokens, count = tokens + len(sample.token_ids), count + 1
                if show is not None:
                    show(total - len(jobs) + count, total)

            requests = [job.request(plan.settings.seed) for job in mine]
            if requests:
                engine.generate(requests, sampling, None, finished)
    seconds = time.perf_counter() - began
    _note(folder, {"rank": ranks.rank, "samples": count, "tokens": tokens, "seconds": seconds})


def sample_row(job: Job, sample: Sample, tokenizer: Any) -> Row:  # noqa: ANN401
    """A sample as it is kept: the text without special tokens, its length with the end token."""
    benchmark, problem, greedy, index = job.key
    return {
        "benchmark": benchmark,
        "problem": problem,
        "greedy": greedy,
        "sample": index,
        "response": tokenizer.decode(list(sample.token_ids), skip_special_tokens=True),
        "tokens": len(sample.token_ids),
        "finish_reason": sample.finish_reason,
    }


def gather_samples(plan: Plan, folder: Path) -> None:
    """Put all samples into ``samples.jsonl`` in canonical order; the parts go."""
    found = finished_rows(folder)
    lacking = [job.key for job in plan.jobs if job.key not in found]
    assert not lacking, f"{len(lacking)} samples were not drawn, the first {lacking[0]}"
    write_lines(folder / SAMPLES, (found[job.key] for job in plan.jobs))
    for part in (folder / PARTS).glob("*.jsonl"):
        part.unlink()
    if (folder / PARTS).is_dir():
        (folder / PARTS).rmdir()


def _note(folder: Path, row: Row) -> None:
    rounded = {name: round(v, 3) if isinstance(v, float) else v for name, v in row.items()}
    with (folder / LOG).open("a", encoding="utf-8") as file:
        file.write(line({"time": round(time.time(), 3), **rounded}))
