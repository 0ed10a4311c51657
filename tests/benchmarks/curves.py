r"""Curves of several runs over seeds, and a table of them.

    python -m tests.benchmarks.curves OUT.png NAME=RUN,RUN,... NAME=RUN,...

One panel for each metric, one colour for each arm; a thin line is a run, a thick one the mean over
the arm's runs that reached the step. The table holds what was evaluated: mean, least and most.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlvr.report.history import History, read_history

METRICS = {
    "reward/correct": "accuracy in training",
    "eval/held_out/accuracy": "held-out accuracy",
    "completion/length_mean": "tokens of a response",
    "policy/entropy": "entropy (nats)",
}
TABLE = "eval/held_out/accuracy"


def means(runs: Sequence[History], metric: str) -> list[tuple[int, float, float, float]]:
    """Step, mean, least and most over the runs that have the step."""
    columns = [dict(run.points(metric)) for run in runs]
    steps = sorted({step for column in columns for step in column})
    values = [[column[step] for column in columns if step in column] for step in steps]
    return [
        (step, sum(found) / len(found), min(found), max(found))
        for step, found in zip(steps, values, strict=True)
    ]


def draw(arms: Mapping[str, Sequence[History]], out: Path) -> None:
    """Write the picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(METRICS), figsize=(15, 3.6))
    for axis, (metric, label) in zip(axes, METRICS.items(), strict=True):
        for index, (name, runs) in enumerate(arms.items()):
            color = f"C{index}"
            for run in runs:
                axis.plot(*zip(*run.points(metric), strict=True), color=color, linewidth=0.6)
            steps, mean, *_ = zip(*means(runs, metric), strict=True)
            axis.plot(steps, mean, color=color, linewidth=2, label=name)
        axis.set_xlabel("step")
        axis.set_title(label, fontsize=10)
        axis.set_ylim(bottom=0)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the runs, write the picture, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("arms", nargs="+", help="NAME=RUN,RUN,...")
    options = parser.parse_args(arguments)
    arms = {}
    for arm in options.arms:
        name, _, folders = arm.partition("=")
        arms[name] = [read_history(Path(run) / "metrics.jsonl") for run in folders.split(",")]
    draw(arms, options.out)
    for name, runs in arms.items():
        print(f"{name}: {TABLE}, mean (least to most) of {len(runs)}")
        for step, mean, least, most in means(runs, TABLE):
            print(f"  {step:4d}  {mean:.3f}  ({least:.3f} to {most:.3f})")


if __name__ == "__main__":
    main()
