"""Sample a plan: one engine, all samples in flight at once, each written as it finishes.

The engine gets all samples of a round in one call, longest first, and fills a slot as soon as it is
free. Each sample is a separate request, so that it is written as soon as it is finished. After a
kill, the same command draws the missing samples: the plan fixes the seeds and the final file is
sorted into canonical order, so it is the same up to the rounding of different batches.

Each of n processes draws every n-th sample and writes a separate file.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval.evaluation_folder import (
    LOG,
    PARTS,
    SAMPLES,
    Appender,
    Key,
    Row,
    append_line,
    key_of,
    read_lines,
    write_lines,
)
from eval.plan import EvaluationPlan, PlannedSample
from rlvr.data.decoding import ResponseDecoder
from rlvr.ranks import Ranks
from rlvr.rollout.engine import Engine, Sample

Show = Callable[[int, int], None]
"""Called with (finished samples, all samples)."""


def missing_samples(plan: EvaluationPlan, folder: Path) -> list[PlannedSample]:
    """The samples that are not yet on disk, in canonical order."""
    found = finished_rows(folder)
    return [item for item in plan.planned if item.key not in found]


def finished_rows(folder: Path) -> dict[Key, Row]:
    """Every complete sample on disk; a last line that was cut off by a kill is ignored."""
    paths = [folder / SAMPLES, *sorted((folder / PARTS).glob("*.jsonl"))]
    return {key_of(row): row for path in paths for row in read_lines(path, ended=True).objects}


def sample_missing(
    plan: EvaluationPlan,
    planned: Sequence[PlannedSample],
    engine: Engine,
    tokenizer: Any,  # noqa: ANN401
    folder: Path,
    ranks: Ranks,
    show: Show | None = None,
) -> None:
    """Draw this process's share of ``planned`` and append each sample as it finishes.

    Args:
        plan: The plan of the evaluation.
        planned: The missing samples.
        engine: An engine that was synced with the model's weights.
        tokenizer: Turns token ids into text, once.
        folder: The evaluation's folder.
        ranks: The processes that share the work.
        show: Called with the progress.
    """
    began, tokens, count, total = time.perf_counter(), 0, 0, len(plan.planned)
    decode = ResponseDecoder(tokenizer)
    with Appender(folder / PARTS / f"rank_{ranks.rank:04d}.jsonl") as part:
        for sampling, members in plan.rounds(planned):
            mine = members[ranks.rank :: ranks.count]

            def finished(
                index: int, samples: list[Sample], mine: list[PlannedSample] = mine
            ) -> None:
                nonlocal tokens, count
                (sample,) = samples
                part.add(sample_row(mine[index], sample, decode))
                tokens, count = tokens + len(sample.token_ids), count + 1
                if show is not None:
                    show(total - len(planned) + count, total)

            requests = [item.request(plan.settings.seed) for item in mine]
            if requests:
                engine.generate(requests, sampling, None, finished)
    seconds = time.perf_counter() - began
    _note(folder, {"rank": ranks.rank, "samples": count, "tokens": tokens, "seconds": seconds})


def sample_row(item: PlannedSample, sample: Sample, decode: ResponseDecoder) -> Row:
    """A sample as stored: the text without the end token, the length with it."""
    benchmark, problem, greedy, index = item.key
    return {
        "benchmark": benchmark,
        "problem": problem,
        "greedy": greedy,
        "sample": index,
        "response": decode(sample.token_ids, finished=sample.finish_reason == "stop"),
        "tokens": len(sample.token_ids),
        "finish_reason": sample.finish_reason,
    }


def gather_samples(plan: EvaluationPlan, folder: Path) -> None:
    """Write all samples to ``samples.jsonl`` in canonical order and delete the parts."""
    found = finished_rows(folder)
    lacking = [item.key for item in plan.planned if item.key not in found]
    assert not lacking, f"{len(lacking)} samples were not drawn, the first is {lacking[0]}"
    write_lines(folder / SAMPLES, (found[item.key] for item in plan.planned))
    for part in (folder / PARTS).glob("*.jsonl"):
        part.unlink()
    if (folder / PARTS).is_dir():
        (folder / PARTS).rmdir()


def _note(folder: Path, row: Row) -> None:
    rounded = {name: round(v, 3) if isinstance(v, float) else v for name, v in row.items()}
    append_line(folder / LOG, {"time": round(time.time(), 3), **rounded})
