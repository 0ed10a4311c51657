"""Books that stay closed over SIGKILL: runs are killed at random, and audited after every kill.

    python -m tests.benchmarks.books --kills 100 --out build/books

Runs with refills, surplus, filters and groups that are carried over, synchronous and one and two
versions stale, in one process and in two that train together, are started, killed at random moments
and resumed, until one comes to its end. After each kill the ledger is audited as it was left;
after the end it is audited with verdicts and compared with the ledger of an undisturbed run, which
it must equal byte for byte where timing decides nothing (staleness below 2).

How runs are killed is that of ``tests/benchmarks/kills.py``. OUT/results.jsonl has a line for every
run that came to its end; the same command goes on from there.
"""

import argparse
import contextlib
import importlib
import json
import os
import random
import shutil
import socket
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import reward
from reward.grading import check_gold
from reward.pool import Asked, VerifierPool
from reward.worker import _die_with_parent
from rlvr.policy.loading import load_policy
from rlvr.policy.settings import ModelSettings
from rlvr.rl.audit import audit
from rlvr.runs.ledger import LEDGER, read_ledger
from tests.benchmarks.kills import (
    _LENGTH,
    MOST_KILLS,
    Case,
    Kill,
    _folder_name,
    _train,
    _written,
    attempt,
    cases,
    record_kills,
    undisturbed,
)
from tests.training import small_recipe

TIMED = "two versions stale"
"""The case in which it depends on timing which weights a rollout gets."""


def book_cases(data: Path) -> list[Case]:
    """Runs whose prompts take every path, with the model in ``data``."""
    cases(data)  # writes the model
    # What each attempt would import by itself.
    load_policy(ModelSettings(path=str(data / "model")))
    with contextlib.suppress(ImportError):
        importlib.import_module("deepspeed")
    rl = small_recipe(str(data / "model"), "")
    rl["reward"] = {"functions": [{"function": "accuracy"}, _LENGTH]}
    rl["evaluation"] = {}
    chosen = {
        "prompts_per_step": 3,
        "dynamic_sampling_rounds": 1,
        "oversample": 2.5,
        "carry_over_steps": 1,
    }
    rollout = {**rl["rollout"], **chosen}
    sync = {**rl, "rollout": rollout}
    stale = [
        {**rl, "rollout": {**rollout, "max_staleness": k, "engine": {"name": "vllm"}}}
        for k in (1, 2)
    ]
    runs = [partial(_graded_here, partial(_train, values)) for values in (sync, *stale)]
    return [
        Case("in turn", runs[0]),
        Case("one version stale", runs[1]),
        Case(TIMED, runs[2]),
        Case("two processes", partial(_in_two, runs[0])),
        Case("two processes, one version stale", partial(_in_two, runs[1])),
    ]


class _PoolOfThisProcess(VerifierPool):
    """Grades here, where the grader is loaded already: an attempt starts no other process."""

    def start(self) -> "VerifierPool":
        return self

    def close(self) -> None:
        pass

    def grade_many(self, pairs: Sequence[Asked], *_: object) -> list[reward.Grade]:
        policy = self._settings.policy
        return [reward.grade(response, gold, policy) for response, gold, *_ in pairs]

    def check_golds(self, golds: Sequence[str], *_: object) -> list[tuple[int, str]]:
        found = [(index, check_gold(gold)) for index, gold in enumerate(golds)]
        return [(index, reason) for index, reason in found if reason is not None]


def _graded_here(work: Callable[[Path], None], folder: Path) -> None:
    """Do the work without a verifier process."""
    with mock.patch("tests.benchmarks.kills.VerifierPool", _PoolOfThisProcess):
        work(folder)


def _in_two(work: Callable[[Path], None], folder: Path) -> None:
    """Do the work in this process and in one that it forks, as ranks 0 and 1 of a job."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    parent, child = os.getpid(), os.fork()
    rank = str(int(child == 0))
    os.environ.update(meeting | {"RANK": rank, "LOCAL_RANK": rank})
    if child == 0:
        _die_with_parent(parent)
        work(folder)
        os._exit(0)
    work(folder)
    _, status = os.waitpid(child, 0)
    assert status == 0, "the second process failed"


def run_with_audits(case: Case, number: int, seed: int, out: Path) -> dict[str, Any]:
    """One run, killed at random and audited after each kill; its line of results."""
    _, seconds = undisturbed(case, out)
    generator = random.Random(f"{seed}/{case.name}/{number}")
    folder = out / "runs" / f"{_folder_name(case)}-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    log, kills, audits, how = folder.with_suffix(".log"), 0, 0, "killed"
    faults: list[str] = []
    while how == "killed" and not faults:
        kill = Kill(generator.randint(1, 5), generator.random() / 3)
        if generator.random() < 1 / 3:
            kill = Kill(0, generator.random() * seconds / 2)
        how, _ = attempt(case, folder, log, kill if kills < MOST_KILLS else None)
        kills += how == "killed"
        if _written(folder) and (folder / LEDGER).is_file() and read_ledger(folder).rows:
            faults += audit(folder, sample=0).faults
            audits += 1
    if how != "ended" and not faults:
        faults = [f"{how}; see {log}"]
    if not faults:
        faults = _faults_at_the_end(case, folder, out)
    fates = Counter(row["fate"] for row in read_ledger(folder).of("prompt", "fate"))
    if not faults:
        shutil.rmtree(folder)
        log.unlink()
    return {
        "case": case.name,
        "number": number,
        "kills": kills,
        "audits": audits,
        "fates": dict(sorted(fates.items())),
        "faults": faults,
    }


def _faults_at_the_end(case: Case, folder: Path, out: Path) -> list[str]:
    whole = out / "undisturbed" / _folder_name(case) / LEDGER
    faults = _audited_in_a_fork(folder)
    if not faults and case.name != TIMED and whole.read_bytes() != (folder / LEDGER).read_bytes():
        return ["the ledger is not that of the undisturbed run"]
    return faults


def _audited_in_a_fork(folder: Path) -> list[str]:
    """The faults of an audit with verdicts, of which nothing stays in this process."""
    found = folder.with_suffix(".audit")
    parent, child = os.getpid(), os.fork()
    if child == 0:
        _die_with_parent(parent)
        try:
            with mock.patch("reward.VerifierPool", _PoolOfThisProcess):
                found.write_text(json.dumps(audit(folder, sample=100).faults))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    if not found.is_file():
        return ["the audit of the whole run failed"]
    faults: list[str] = json.loads(found.read_text())
    found.unlink()
    return faults


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: a line for every case, and what was wrong."""
    yield "| case | runs | kills | audits | prompts by fate | runs with faults |"
    yield "|---|---|---|---|---|---|"
    for name in [*dict.fromkeys(row["case"] for row in rows), "all"]:
        own = [row for row in rows if name in (row["case"], "all")]
        kills, audits = (sum(row[key] for row in own) for key in ("kills", "audits"))
        fates: Counter[str] = sum((Counter(row["fates"]) for row in own), Counter())
        told = ", ".join(f"{fate} {count}" for fate, count in sorted(fates.items()))
        bad = sum(bool(row["faults"]) for row in own)
        yield f"| {name} | {len(own)} | {kills} | {audits} | {told} | {bad} |"
    for row in rows:
        if row["faults"]:
            yield f"{row['case']} {row['number']}: {'; '.join(row['faults'][:6])}"


def main() -> None:
    """Kill until ``--kills`` kills are recorded."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/books"))
    parser.add_argument("--case", action="append", help="only this one; may be repeated")
    given = parser.parse_args()
    out = given.out.absolute()
    torch.set_num_threads(1)  # a fork hangs in the threads that its parent had
    (out / "data").mkdir(parents=True, exist_ok=True)
    chosen = [c for c in book_cases(out / "data") if not given.case or c.name in given.case]
    if not chosen:
        raise SystemExit(f"--case: the cases are {[c.name for c in book_cases(out / 'data')]}")
    rows = record_kills(
        chosen,
        given.kills,
        out,
        lambda case, number: run_with_audits(case, number, given.seed, out),
    )
    print("\n".join(table(rows)))
    sys.exit(any(row["faults"] for row in rows))


if __name__ == "__main__":
    main()
