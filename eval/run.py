"""``rlvr eval``: load, plan, sample what is missing, score, report. The same command resumes.

evaluate(EvalSettings(benchmarks=("math500",)), find_targets(ModelSettings(path="...")), out)
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console

from eval.files import (
    LOSSES,
    PARTS,
    PLAN,
    PROBLEMS,
    Row,
    differences,
    line,
    read_json,
    write_atomically,
    write_lines,
)
from eval.generate import gather_samples, missing_jobs, sample_missing
from eval.models import Target, tokenizer_settings, weights_sha256
from eval.plan import EvalSettings, Plan, make_plan, problem_rows, versions
from eval.report import write_report
from eval.results import results_table, write_results
from eval.score import read_recorded, score
from eval.task_loss import task_losses
from rlvr.policy import Policy, load_tokenizer, stop_token_ids
from rlvr.progress import progress_bar
from rlvr.ranks import Ranks
from rlvr.rollout import Engine, build_engine

# What may differ between the command that began an evaluation and the one that goes on with it.
_MAY_CHANGE = ("path", "label")


def evaluate(
    settings: EvalSettings,
    targets: Sequence[Target],
    out: Path,
    *,
    ks: Sequence[int] | None = None,
    console: Console | None = None,
) -> list[Path]:
    """Evaluate one or several sets of weights with one engine; returns their folders.

    Args:
        settings: What to do.
        targets: The weights; several go into folders of their own below ``out``.
        out: Folder. An evaluation that is there and was made with the same settings is gone on
            with; one of other settings is refused.
        ks: The k of pass@k that results give; None is all.
        console: Where progress and tables go.

    Raises:
        ValueError: Something cannot be done; the message says why and what to change.
    """
    console = console or Console()
    with _processes() as ranks:
        speak = console if ranks.first else Console(quiet=True)
        folders = [out if len(targets) == 1 else out / target.label for target in targets]
        sweep = _Sweep(settings, ranks, speak, ks)
        try:
            for target, folder in zip(targets, folders, strict=True):
                sweep.sample(target, folder)
        finally:
            sweep.close()
        if ranks.first:
            for folder in folders:
                rescore(folder, settings, ks=ks, console=speak)
            if len(folders) > 1:
                speak.print(f"report: {write_report(folders, out / 'report.html')}", soft_wrap=True)
        ranks.barrier()
    return folders


def rescore(
    folder: Path,
    settings: EvalSettings | None = None,
    *,
    grader: str | None = None,
    ks: Sequence[int] | None = None,
    console: Console | None = None,
) -> Row:
    """Grade a finished evaluation, write results and page, show the table.

    Raises:
        ValueError: The folder holds no finished evaluation.
    """
    console, settings = console or Console(), settings or EvalSettings()
    recorded = read_recorded(folder)
    check_ks(recorded.plan, ks)
    with progress_bar(console) as bar:
        rows = score(
            recorded,
            grader or settings.grader,
            workers=settings.workers,
            timeout=settings.timeout,
            show=bar.show,
        )
    results = write_results(recorded, rows, ks)
    console.print(results_table(results, recorded.plan["model"]["label"]))
    console.print(f"report: {write_report([folder])}", soft_wrap=True, highlight=False)
    return results


def check_ks(plan: Row, ks: Sequence[int] | None) -> None:
    """See that every k can be had, before anything costs time.

    Raises:
        ValueError: One is above a benchmark's number of samples.
    """
    for name, item in plan["benchmarks"].items():
        for k in ks or ():
            if k > item["samples"]:
                raise ValueError(
                    f"pass@{k} of {name} needs at least {k} samples of a problem, but n is "
                    f"{item['samples']} there; set --n {k} (and a temperature above 0) or ask for "
                    "a smaller k"
                )


class _Sweep:
    """One engine for all targets: the first builds it, the others put their weights into it."""

    def __init__(
        self, settings: EvalSettings, ranks: Ranks, console: Console, ks: Sequence[int] | None
    ) -> None:
        self.settings, self.ranks, self.console, self.ks = settings, ranks, console, ks
        self.policy: Policy | None = None
        self.engine: Engine | None = None
        self.synced: Target | None = None

    def close(self) -> None:
        """End the engine."""
        if self.engine is not None:
            self.engine.close()

    def sample(self, target: Target, folder: Path) -> None:
        """Draw what is missing of one target's samples."""
        policy = self._load(target)
        tokenizer = load_tokenizer(tokenizer_settings(target))
        plan = make_plan(
            self.settings, tokenizer, stop_token_ids(policy, tokenizer), policy.context_length
        )
        _check_embeddings(plan, policy)
        check_ks(plan.describe(), self.ks)
        if self.ranks.first:
            prepare_folder(folder, describe(plan, target, policy))
            write_lines(folder / PROBLEMS, problem_rows(plan))
            if self.settings.task_loss and not (folder / LOSSES).is_file():
                write_lines(folder / LOSSES, task_losses(plan, policy, tokenizer))
        self.ranks.barrier()
        jobs = missing_jobs(plan, folder)
        self.ranks.barrier()  # nobody may write before all have seen what is missing
        if jobs:
            with progress_bar(self.console) as bar:
                bar.show(
                    f"starting {self.settings.engine.name}",
                    len(plan.jobs) - len(jobs),
                    len(plan.jobs),
                )
                engine = self._engine(plan, policy, target)
                sample_missing(
                    plan,
                    jobs,
                    engine,
                    tokenizer,
                    folder,
                    self.ranks,
                    lambda done, total: bar.show(f"sampling {target.label}", done, total),
                )
        self.ranks.barrier()
        if self.ranks.first and (jobs or (folder / PARTS).is_dir()):
            gather_samples(plan, folder)

    def _load(self, target: Target) -> Policy:
        loaded = target.load(_device(self.ranks))
        if self.policy is None:
            self.policy = loaded
        else:
            self.policy.load_state_dict(loaded.state_dict())
        return self.policy

    def _engine(self, plan: Plan, policy: Policy, target: Target) -> Engine:
        if self.engine is None:
            settings = self.settings.engine
            self.engine = build_engine(settings, policy, plan.stop_ids, plan.longest)
        self.engine.sync(policy, target.step or 0)
        return self.engine


def describe(plan: Plan, target: Target, policy: Policy) -> Row:
    """What ``plan.json`` holds: everything that samples depend on."""
    return {
        "format": 1,
        "model": {
            "label": target.label,
            "path": str(target.saved or target.settings.path),
            "revision": target.settings.revision,
            "step": target.step,
            "parameters": sum(item.numel() for item in policy.parameters()),
            "weights_sha256": weights_sha256(policy),
            "precision": target.settings.precision,
        },
        "engine": plan.settings.engine.name,
        "task_loss": plan.settings.task_loss,
        "versions": versions(),
        **plan.describe(),
        "notes": list(plan.notes),
    }


def prepare_folder(folder: Path, description: Row) -> None:
    """See that the folder is this evaluation's own, and write its plan.

    Raises:
        ValueError: It holds another evaluation (the differences are named) or other files.
    """
    if (folder / PLAN).is_file():
        found = list(
            differences(
                _comparable(read_json(folder / PLAN, "what was sampled")), _comparable(description)
            )
        )
        if found:
            shown = "; ".join(found[:4]) + ("; ..." if found[4:] else "")
            raise ValueError(
                f"{str(folder)!r} holds an evaluation made with other settings: {shown}; choose "
                "another --out, or the same settings"
            )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"{str(folder)!r} holds other files and no evaluation; choose another --out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / PLAN, line(description))


def _comparable(plan: Row) -> Row:
    """The plan without what may change: where the weights lie, and who judges."""
    model = {name: value for name, value in plan["model"].items() if name not in _MAY_CHANGE}
    kept = {name: value for name, value in plan.items() if name not in ("grader", "notes")}
    return {**kept, "model": model}


def _check_embeddings(plan: Plan, policy: Policy) -> None:
    words = policy.causal_lm.get_input_embeddings().num_embeddings
    for task in plan.tasks:
        for problem, ids in zip(task.problems, task.prompts, strict=True):
            if max(ids) >= words:
                raise ValueError(
                    f"{task.name}: problem {problem.id!r} holds token {max(ids)}, but the model "
                    f"has {words} embeddings; set model.tokenizer to the model's own tokenizer"
                )


def _device(ranks: Ranks) -> torch.device | None:
    """Each process its own GPU, where there are several."""
    if ranks.count == 1 or not torch.cuda.is_available():
        return None
    return torch.device("cuda", ranks.local_rank % torch.cuda.device_count())


@contextmanager
def _processes() -> Iterator[Ranks]:
    """Join the processes of a launcher, where there is one, for as long as the work lasts."""
    import torch.distributed as dist

    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield Ranks()
        return
    dist.init_process_group("gloo")
    try:
        # Generation takes hours, and those who are through wait for the others.
        yield Ranks(timeout_s=7 * 24 * 3600.0)
    finally:
        dist.destroy_process_group()
