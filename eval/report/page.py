"""``write_report`` turns scored evaluations into one self-contained HTML page.

Several evaluations (the checkpoints of a run, or models to compare) share the page: each has a line
in the plots and a row in the heat map of problems.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.compare import Compared, comparison_rows
from eval.evaluation_folder import PAGE, Row
from eval.metrics import shown_ks
from eval.report.samples import choose_samples
from eval.results import interval, percent, read_results
from rlvr.page import embed, render, write_page

SCRIPTS = ("plots.js", "samples.js", "main.js")


def write_report(
    folders: Sequence[Path], out: Path | None = None, compared: Compared | None = None
) -> Path:
    """Write the page of scored evaluations.

    Args:
        folders: At least one folder, in the order in which they are shown.
        out: File to write; None is ``report.html`` in the first folder.
        compared: Tests of the others against the first, to be shown too.

    Raises:
        ValueError: A folder contains no scored evaluation, or ``out`` is a folder.
    """
    out = folders[0] / PAGE if out is None else out
    if out.is_dir():
        raise ValueError(f"{out} is a folder; name the HTML file to write, such as {out}/{PAGE}")
    results = [read_results(folder) for folder in folders]
    labels = _labels(folders, results)
    chosen = choose_samples(folders)
    title = labels[0] if len(labels) == 1 else f"{len(labels)} evaluations"
    summary = _summary(results, labels)
    page = {
        "title": title,
        "summary": summary,
        "notes": [*_notes(results, labels), *chosen.notes],
        "runs": labels,
        "table": [
            row for label, item in zip(labels, results, strict=True) for row in _table(label, item)
        ],
        "tests": [] if compared is None else comparison_rows(compared),
        "tests_notes": [] if compared is None else list(compared.notes),
        "manifests": [_manifest(item) for item in results],
        "benchmarks": _benchmarks(results),
        "problems": {name: _heat(name, chosen.values) for name in _names(results)},
        "files": chosen.index,
    }
    data = {"page": embed(page), **chosen.files}
    write_page(out, render("eval.report", SCRIPTS, title, summary, data))
    return out


def _labels(folders: Sequence[Path], results: Sequence[Row]) -> list[str]:
    names = [str(item["manifest"]["model"]["label"]) for item in results]
    if len(set(names)) < len(names):
        names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    return names


def _names(results: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for item in results for name in item["benchmarks"]))


def _summary(results: Sequence[Row], labels: Sequence[str]) -> str:
    manifest = results[0]["manifest"]
    shown = "; ".join(
        f"{label} {percent(item['average']['value'])} %"
        for label, item in zip(labels[:8], results[:8], strict=True)
    )
    count = len(results[0]["benchmarks"])
    return (
        f"Average over {count} benchmark{'s' if count > 1 else ''}, with standard error: {shown}. "
        f"Protocol {manifest['protocol']}, grader {manifest['grader']}."
    )


def _notes(results: Sequence[Row], labels: Sequence[str]) -> list[str]:
    notes = []
    for label, item in zip(labels, results, strict=True):
        manifest = item["manifest"]
        if manifest.get("limit") or manifest.get("only"):
            notes.append(
                f"{label}: a trial on part of the problems; it is not comparable with published "
                "scores."
            )
        notes += [f"{label}: {note}" for note in manifest["notes"]]
    return notes


def _table(label: str, results: Row) -> list[Row]:
    rows = []
    for item in results["benchmarks"].values():
        best = item["avg"] if "avg" in item else item["greedy"]
        last = str(max((int(k) for k in item.get("pass", {"1": 0})), default=1))
        rows.append(
            {
                "run": label,
                "benchmark": item["title"],
                "problems": item["problems"],
                "metric": item["headline"],
                "accuracy": percent(best),
                "interval": interval(best),
                "greedy": percent(item["greedy"]) if "greedy" in item else None,
                "pass": _at(item, "pass", last),
                "maj": _at(item, "maj", last),
                "no_answer": item["no_answer"],
                "truncated": item["truncated"],
                "tokens": item["tokens_mean"],
                "bits": item.get("task_loss", {}).get("bits_per_byte"),
                "disagreements": item["graders"]["disagreements"],
            }
        )
    return rows


def _at(item: Row, metric: str, k: str) -> str | None:
    found = item.get(metric, {}).get(k)
    return f"{percent(found)} @{k}" if found and k != "1" else None


def _manifest(results: Row) -> list[list[str]]:
    """What was evaluated and how, as pairs of name and text."""
    manifest = results["manifest"]
    model = manifest["model"]
    facts = [
        ["Model", str(model["path"])],
        ["Weights", f"{model['parameters']:,} parameters, sha256 {model['weights_sha256'][:16]}"],
        ["Engine", f"{manifest['engine']}, {model['precision']}"],
        [
            "Protocol",
            f"{manifest['protocol']}; grader {manifest['grader']}; truncated completions: "
            f"{manifest['truncated']}",
        ],
        ["Seed", str(manifest["seed"])],
        ["Versions", ", ".join(f"{name} {text}" for name, text in manifest["versions"].items())],
    ]
    for name, item in manifest["benchmarks"].items():
        drawn = f"temperature {item['temperature']:g}, top-p {item['top_p']:g}"
        facts.append(
            [
                name,
                f"{item['data']} (fingerprint {item['data_fingerprint']}), {item['problems']} of "
                f"{item['of']} problems, {item['samples']} samples, {drawn}, up to "
                f"{item['max_tokens']} tokens, template {item['template_sha256']}",
            ]
        )
    return facts


def _benchmarks(results: Sequence[Row]) -> dict[str, Any]:
    """Data of the plots by benchmark; one entry per run, None if the run lacks the benchmark."""
    found: dict[str, Any] = {}
    for name in _names(results):
        items = [item["benchmarks"].get(name) for item in results]
        found[name] = {
            "title": next(item["title"] for item in items if item),
            "pass": [_curve(item, "pass") for item in items],
            "maj": [_curve(item, "maj") for item in items],
            "level": _groups(items, "by_level"),
            "subject": _groups(items, "by_subject"),
        }
    return found


def _curve(item: Row | None, metric: str) -> list[list[float]] | None:
    values = (item or {}).get(metric, {})
    ks = sorted(int(k) for k in values)
    kept = set(shown_ks(ks[-1])) if len(ks) > 64 else set(ks)
    shown = ("value", "low", "high")
    points = [[k, *(values[str(k)][key] for key in shown)] for k in ks if k in kept]
    return points if len(points) > 1 else None


def _groups(items: Sequence[Row | None], key: str) -> list[Row]:
    names = sorted({label for item in items if item for label in item.get(key, {})})
    return [
        {
            "label": label,
            "values": [(item or {}).get(key, {}).get(label) for item in items],
        }
        for label in names
    ]


def _heat(name: str, values: Sequence[dict[tuple[str, str], float]]) -> Row:
    """Share of right samples of every problem in every run; None if the run lacks the problem."""
    ids = list(dict.fromkeys(problem for run in values for bench, problem in run if bench == name))
    return {
        "ids": ids,
        "rows": [
            [None if (name, one) not in run else round(run[name, one], 4) for one in ids]
            for run in values
        ],
    }
