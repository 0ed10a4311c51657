"""The figures of a benchmark as JSON and as tables."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rlvr.files import write_atomically

_LABELS = {
    "start_seconds": "start s",
    "sync_seconds": "sync s",
    "seconds": "s",
    "seconds_least": "least",
    "seconds_most": "most",
    "tokens_per_second": "tokens/s",
    "of_raw_vllm": "of raw vLLM",
    "completion_tokens": "tokens",
    "padding_of_a_padded_batch": "padded",
    "pad_fraction": "padding",
    "completion_tokens_per_second": "tokens/s",
    "share_of_matmul": "of matmul",
    "rss_gib": "GiB",
}


def write_json(found: dict[str, Any], path: Path) -> None:
    """Write the figures atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(found, indent=1) + "\n")


def render(found: dict[str, Any], console: Console) -> None:
    """Print every part that was measured."""
    ceilings = found["ceilings"]
    console.print(
        f"machine: matrix products {ceilings['matmul_flops'] / 1e9:.1f} GFLOP/s, copying "
        f"{ceilings['copy_bytes'] / 2**30:.1f} GiB/s"
        + _given(", LLM.generate {:.1f} tokens/s", ceilings["vllm_tokens"]),
        highlight=False,
    )
    if "generation" in found:
        _show(console, "generation", [{"engine": found["engine"], **found["generation"]}])
    if "updates" in found:
        _show(console, "update", found["updates"])
    if "run" in found:
        _show_run(console, found["run"])


def _show(console: Console, title: str, rows: Sequence[dict[str, Any]]) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name, value in rows[0].items():
        table.add_column(_LABELS.get(name, name), justify="left" if _text(value) else "right")
    for row in rows:
        table.add_row(*(value if _text(value) else f"{value:.4g}" for value in row.values()))
    console.print(table)


def _show_run(console: Console, run: dict[str, Any]) -> None:
    whole = run["step_seconds"]
    table = Table(title="a training step", title_justify="left", box=None, pad_edge=False)
    for name in ("phase", "seconds", "of the step", "of the ceiling"):
        table.add_column(name, justify="left" if name == "phase" else "right")
    for phase, seconds in run["phases"].items():
        share = run.get("shares", {}).get(phase)
        table.add_row(
            phase,
            f"{seconds:.3f}",
            f"{seconds / whole:.1%}",
            "" if share is None else f"{share:.2f}",
        )
    table.add_row(
        "step",
        f"{whole:.3f}",
        f"{run['step_seconds_least']:.2f} to {run['step_seconds_most']:.2f} s",
        "",
    )
    console.print(table)
    console.print(
        f"start {run['start_seconds']:.1f} s"
        + _given(", evaluation {:.1f} s", run["evaluate_seconds"])
        + _given(", checkpoint {:.1f} s", run["checkpoint_seconds"])
        + _given(", {:.1f} tokens per completion", run["completion_length"])
        + _given(", padding {:.1%}", run["pad_fraction"])
        + f", neither generation nor update {run['neither_generation_nor_update']:.1%}"
        + f", peak memory {run['peak_gib']:.2f} GiB",
        highlight=False,
    )


def _given(text: str, value: float | None) -> str:
    return "" if value is None else text.format(value)


def _text(value: object) -> bool:
    return isinstance(value, str)
