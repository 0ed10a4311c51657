"""``rlvr eval``: load, plan, draw missing samples, score, report. The same command resumes.

evaluate(EvalSettings(benchmarks=("math500",)), find_targets(ModelSettings(path="...")), out)
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from rich.console import Console

from eval.evaluation_folder import (
    LOCK,
    LOSSES,
    PARTS,
    PLAN,
    PROBLEMS,
    Row,
    differences,
    line,
    locked,
    read_json,
    remove_leftovers,
    write_atomically,
    write_lines,
)
from eval.generate import gather_samples, missing_samples, sample_missing
from eval.plan import EvaluationPlan, make_evaluation_plan, problem_rows, versions
from eval.report import write_report
from eval.results import results_table, write_results
from eval.score import read_recorded, score
from eval.settings import EvalSettings
from eval.targets import Target, tokenizer_settings, weights_sha256
from eval.task_loss import task_losses
from rlvr.policy.loading import load_tokenizer, model_notes, stop_token_ids
from rlvr.policy.model import Policy
from rlvr.policy.vocabulary import check_token_ids
from rlvr.progress import Bar, progress_bar
from rlvr.ranks import Ranks
from rlvr.rollout.build import build_engine
from rlvr.rollout.engine import Engine

# Settings that may differ between the command that started an evaluation and one that continues it.
_MAY_CHANGE = ("path", "label")


def evaluate(
    settings: EvalSettings,
    targets: Sequence[Target],
    out: Path,
    *,
    ks: Sequence[int] | None = None,
    console: Console | None = None,
) -> list[Path]:
    """Evaluate one or several sets of weights with one engine; return their folders.

    Args:
        settings: Settings of the evaluation.
        targets: The weights; several go into separate folders below ``out``.
        out: Folder. An existing evaluation with the same settings is continued; one with other
            settings is refused.
        ks: The values of k for pass@k in the results; None is all.
        console: Where progress and tables are printed.

    Raises:
        ValueError: The evaluation cannot be run; the message says why and what to change.
    """
    console = console or Console()
    with _processes() as ranks, ExitStack() as held:
        speak = console if ranks.first else Console(quiet=True)
        folders = [out if len(targets) == 1 else out / target.label for target in targets]
        sweep = _Sweep(settings, ranks, speak, ks, held)
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
    """Grade a finished evaluation, write results and page, print the table.

    Raises:
        ValueError: The folder does not contain a finished evaluation.
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
    """Check every k against the number of samples before anything takes time.

    Raises:
        ValueError: A k is larger than a benchmark's number of samples.
    """
    for name, item in plan["benchmarks"].items():
        for k in ks or ():
            if k > item["samples"]:
                raise ValueError(
                    f"pass@{k} of {name} needs at least {k} samples of a problem, but n is "
                    f"{item['samples']}; set --n {k} (and a temperature above 0) or use a smaller k"
                )


class _Sweep:
    """One engine for all targets: the first one builds it, the others load their weights into
    it."""

    def __init__(
        self,
        settings: EvalSettings,
        ranks: Ranks,
        console: Console,
        ks: Sequence[int] | None,
        held: ExitStack,
    ) -> None:
        self.settings, self.ranks, self.console, self.ks = settings, ranks, console, ks
        self.held = held  # the locks of the folders
        self.policy: Policy | None = None
        self.engine: Engine | None = None
        self.synced: Target | None = None

    def close(self) -> None:
        """End the engine."""
        if self.engine is not None:
            self.engine.close()

    def sample(self, target: Target, folder: Path) -> None:
        """Draw the missing samples of one target."""
        with progress_bar(self.console) as bar:
            self._sample(target, folder, bar)

    def _sample(self, target: Target, folder: Path, bar: Bar) -> None:
        bar.show(f"loading {target.label}")
        policy = self._load(target)
        tokenizer = load_tokenizer(tokenizer_settings(target))
        plan = make_evaluation_plan(
            self.settings, tokenizer, stop_token_ids(policy, tokenizer), policy.context_length
        )
        _check_embeddings(plan, policy)
        check_ks(plan.describe(), self.ks)
        if self.ranks.first:
            if folder.is_file():
                raise ValueError(f"--out {str(folder)!r} is a file; give a folder")
            self.held.enter_context(locked(folder / LOCK, f"evaluation {str(folder)!r}"))
            prepare_folder(folder, describe(plan, target, policy))
            write_lines(folder / PROBLEMS, problem_rows(plan))
            if self.settings.task_loss and not (folder / LOSSES).is_file():
                bar.show("log-probabilities of the answers")
                write_lines(folder / LOSSES, task_losses(plan, policy, tokenizer))
        self.ranks.barrier()
        planned = missing_samples(plan, folder)
        self.ranks.barrier()  # no process may write before all have seen what is missing
        if planned:
            done, total = len(plan.planned) - len(planned), len(plan.planned)
            bar.show(f"starting {self.settings.engine.name}", done, total)
            engine = self._engine(plan, policy, target)
            bar.show(f"sampling {target.label}", done, total)
            sample_missing(
                plan,
                planned,
                engine,
                tokenizer,
                folder,
                self.ranks,
                lambda done, total: bar.show(f"sampling {target.label}", done, total),
            )
        self.ranks.barrier()
        if self.ranks.first and (planned or (folder / PARTS).is_dir()):
            gather_samples(plan, folder)

    def _load(self, target: Target) -> Policy:
        for note in model_notes(target.settings) if self.ranks.first else []:
            self.console.print(note, highlight=False, markup=False, soft_wrap=True)
        loaded = target.load(_device(self.ranks))
        if self.policy is None:
            self.policy = loaded
        else:
            self.policy.load_state_dict(loaded.state_dict())
        return self.policy

    def _engine(self, plan: EvaluationPlan, policy: Policy, target: Target) -> Engine:
        if self.engine is None:
            settings = self.settings.engine
            self.engine = build_engine(settings, policy, plan.stop_ids, plan.longest)
        self.engine.sync(policy, target.step or 0)
        return self.engine


def describe(plan: EvaluationPlan, target: Target, policy: Policy) -> Row:
    """The content of ``plan.json``: everything on which samples depend."""
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
    """Check that the folder belongs to this evaluation, and write its plan.

    Raises:
        ValueError: It contains another evaluation (the message names the differences) or other
            files.
    """
    remove_leftovers(folder)
    if (folder / PLAN).is_file():
        found = list(
            differences(
                _comparable(read_json(folder / PLAN, "what was sampled")), _comparable(description)
            )
        )
        if found:
            shown = "; ".join(found[:4]) + ("; ..." if found[4:] else "")
            raise ValueError(
                f"{str(folder)!r} contains an evaluation made with other settings: {shown}; choose "
                "another --out, or use the same settings"
            )
        return
    if folder.exists() and any(path.name != LOCK for path in folder.iterdir()):
        raise ValueError(
            f"{str(folder)!r} contains other files and no evaluation; choose another --out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / PLAN, line(description))


def _comparable(plan: Row) -> Row:
    """The plan without what may change: the place of the weights and the grading."""
    model = {name: value for name, value in plan["model"].items() if name not in _MAY_CHANGE}
    kept = {name: value for name, value in plan.items() if name not in ("grader", "notes")}
    return {**kept, "model": model}


def _check_embeddings(plan: EvaluationPlan, policy: Policy) -> None:
    for benchmark in plan.benchmarks:
        named = zip(benchmark.problems, benchmark.prompts, strict=True)
        check_token_ids(policy, ((f"{benchmark.name}: problem {p.id!r}", ids) for p, ids in named))


def _device(ranks: Ranks) -> torch.device | None:
    """The device of this process: each process has its own GPU if there are several."""
    if ranks.count == 1 or not torch.cuda.is_available():
        return None
    return torch.device("cuda", ranks.local_rank % torch.cuda.device_count())


@contextmanager
def _processes() -> Iterator[Ranks]:
    """Join the processes of a launcher, if there is one, while the work lasts."""
    import torch.distributed as dist

    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield Ranks()
        return
    dist.init_process_group("gloo")
    try:
        # Generation takes hours, and processes that have finished wait for the others.
        yield Ranks(timeout_s=7 * 24 * 3600.0)
    finally:
        dist.destroy_process_group()
