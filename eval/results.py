"""Turn verdicts into numbers: ``results.json`` and its table for the terminal."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from eval.evaluation_folder import (
    LOSSES,
    RESULTS,
    SCORES,
    Row,
    read_json,
    read_lines,
    write_atomically,
)
from eval.metrics import ProblemOutcomes, benchmark_metrics, headline_metric, shown_ks
from eval.score import (
    Recorded,
    agreement,
    outcomes_by_benchmark,
    status_counts,
)
from eval.statistics import Estimate, macro_average
from rlvr.install_hints import installed_versions

_DIGITS = 6


def write_results(recorded: Recorded, rows: Sequence[Row], ks: Sequence[int] | None = None) -> Row:
    """Compute all metrics of graded samples and write ``results.json``.

    Args:
        recorded: The evaluation.
        rows: Verdicts of :func:`eval.score.score`.
        ks: The values of k for pass@k and maj@k; None is all.

    Raises:
        ValueError: A k is larger than the number of samples of a benchmark.
    """
    outcomes = outcomes_by_benchmark(recorded.plan, recorded.problems, rows)
    losses = read_lines(recorded.folder / LOSSES, ended=True).objects
    benchmarks: dict[str, Row] = {}
    heads: list[tuple[str, Estimate]] = []
    for name, problems in outcomes.items():
        try:
            summary = benchmark_metrics(problems, name, ks)
        except ValueError as error:
            raise ValueError(
                f"{name}: {error}; draw more samples (--n), or use a smaller k"
            ) from None
        heads.append(headline_metric(summary))
        mine = [row for row in rows if row["benchmark"] == name]
        benchmarks[name] = {
            "title": recorded.plan["benchmarks"][name]["title"],
            "headline": heads[-1][0],
            **summary,
            "by_level": _grouped(problems, "level", name),
            "by_subject": _grouped(problems, "subject", name),
            "task_loss": _task_loss([row for row in losses if row["benchmark"] == name], name),
            "grader_statuses": status_counts(mine),
            "graders": agreement(mine),
        }
    version = installed_versions(("rlvr",)).get("rlvr", "unknown")
    results = {
        "manifest": {**recorded.plan, "grader": rows[0]["grader"], "scored_with": version},
        "average": {
            "of": {name: label for name, (label, _) in zip(benchmarks, heads, strict=True)},
            "value": macro_average([estimate for _, estimate in heads]),
        },
        "benchmarks": benchmarks,
    }
    plain = _plain(results)
    write_atomically(recorded.folder / RESULTS, _dump(plain))
    return plain


def read_results(folder: Path) -> Row:
    """Read the results of a scored evaluation.

    Raises:
        ValueError: The folder is not an evaluation, or it is not scored yet.
    """
    if not (folder / RESULTS).is_file() and (folder / SCORES).parent.is_dir():
        raise ValueError(
            f"{str(folder)!r} contains no {RESULTS}; run: rlvr score {quote(str(folder))}"
        )
    return read_json(folder / RESULTS, "results")


def _grouped(problems: Sequence[ProblemOutcomes], attribute: str, name: str) -> Row | None:
    """The headline metric by level or subject; None if the benchmark has none."""
    groups: dict[str, list[ProblemOutcomes]] = {}
    for problem in problems:
        label = getattr(problem, attribute)
        if label is not None:
            groups.setdefault(label, []).append(problem)
    if not groups:
        return None
    return {
        label: {
            "problems": len(groups[label]),
            "value": headline_metric(benchmark_metrics(groups[label], f"{name}/{label}", [1]))[1]
            if groups[label][0].sampled
            else headline_metric(benchmark_metrics(groups[label], f"{name}/{label}"))[1],
        }
        for label in sorted(groups)
    }


def _task_loss(rows: Sequence[Row], name: str) -> Row | None:
    """Bits per byte and per token of the reference answers: ratios of sums, with an error."""
    if not rows:
        return None
    bits, sizes = (np.array([row[key] for row in rows], dtype=float) for key in ("bits", "bytes"))
    ratio = bits.sum() / sizes.sum()
    # The linearised error, over problems, of a ratio of sums.
    residual = (bits - ratio * sizes) / sizes.mean()
    return {
        "bits_per_byte": float(ratio),
        "se": float(residual.std() / np.sqrt(len(rows))),
        "bits_per_token": float(bits.sum() / sum(row["tokens"] for row in rows)),
    }


def _plain(value: Any) -> Any:  # noqa: ANN401
    """JSON values: estimates become mappings, keys become text, None is dropped, numbers are
    rounded."""
    if isinstance(value, Estimate):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return round(value, _DIGITS) if isinstance(value, float) else value


def _dump(value: Row) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def results_table(results: Row, title: str = "") -> Table:
    """The table for the terminal: one line per benchmark, without empty columns."""
    rows = [
        _cells(name, item, results["manifest"]["benchmarks"].get(name, {}))
        for name, item in results["benchmarks"].items()
    ]
    average = results["average"]["value"]
    last = ["average", "", "", percent(average), interval(average)]
    heads = ["benchmark", "problems", "metric", "% ± se", "95 %", "greedy", "pass@k", "maj@k"]
    heads += ["no answer", "cut", "tokens", "bits/byte"]
    kept = [column for column in range(len(heads)) if any(row[column] for row in rows)]
    table = plain_table(title, [heads[column] for column in kept], left=1)
    for row in rows:
        table.add_row(*(row[column] for column in kept))
    table.add_section()
    table.add_row(*(last[column] for column in kept if column < len(last)))
    table.caption = _caption(results)
    return table


def plain_table(title: str, heads: Sequence[str], left: int) -> Table:
    """A table whose cells are never cut; the first ``left`` columns are left-aligned."""
    table = Table(
        title=title or None,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number < left else "right", no_wrap=True)
    return table


def _cells(name: str, item: Row, planned: Row) -> list[str]:
    chosen = item["avg"] if "avg" in item else item["greedy"]
    partial = planned.get("of", item["problems"]) != item["problems"]
    return [
        name,
        f"{item['problems']} of {planned['of']}" if partial else str(item["problems"]),
        item["headline"],
        percent(chosen),
        interval(chosen),
        percent(item["greedy"]) if "greedy" in item and "avg" in item else "",
        _by_k(item.get("pass", {})),
        _by_k(item.get("maj", {})),
        f"{100 * item['no_answer']:.1f}",
        f"{100 * item['truncated']:.1f}",
        f"{item['tokens_mean']:.0f}",
        f"{item['task_loss']['bits_per_byte']:.3f}" if "task_loss" in item else "",
    ]


def percent(estimate: Row) -> str:
    """``12.3 ± 1.4``: percent with the standard error."""
    error = f" ± {100 * estimate['se']:.1f}" if "se" in estimate else ""
    return f"{100 * estimate['value']:.1f}{error}"


def interval(estimate: Row) -> str:
    """``9.6 to 15.1``; Wilson's interval is marked with w."""
    mark = " w" if estimate["interval"] == "wilson" else ""
    return f"{100 * estimate['low']:.1f} to {100 * estimate['high']:.1f}{mark}"


def _by_k(values: Row) -> str:
    """The largest k above 1 that tables show."""
    shown = [k for k in shown_ks(max((int(k) for k in values), default=0)) if str(k) in values]
    return f"{100 * values[str(shown[-1])]['value']:.1f} @{shown[-1]}" if shown[1:] else ""


def _caption(results: Row) -> str:
    manifest = results["manifest"]
    parts = [
        "Percent ± standard error over problems; interval by bootstrap over problems (w: Wilson).",
        f"Protocol {manifest['protocol']}, grader {manifest['grader']}, seed {manifest['seed']}.",
    ]
    if manifest.get("limit") or manifest.get("only"):
        parts.append("A trial on part of the problems: not comparable with published scores.")
    return " ".join(parts)
