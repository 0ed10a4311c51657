"""Every causal LM family of transformers, as a tiny random model: how it is trained and generated.

    python -m tests.benchmarks.families                  # writes docs/model_families.md
    python -m tests.benchmarks.families llama mamba2     # prints these

Each family runs in a process of its own with a time limit, and its result is kept in ``--work``, so
that the command goes on where it was stopped.
"""

import argparse
import json
import multiprocessing
import re
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from rlvr.learner.learner import Learner
from rlvr.learner.settings import LearnerSettings
from rlvr.objective.objective import Objective
from rlvr.objective.policy_losses.reinforce import Reinforce
from rlvr.objective.reducers import TokenMean
from rlvr.policy.loading import load_policy
from rlvr.policy.model import Policy, packing_is_exact
from rlvr.policy.settings import LoraSettings, ModelSettings
from rlvr.rollout.transformers_engine import TransformersEngine
from rlvr.rollout.weight_sync import learner_logprobs, write_model
from rlvr.types import Batch
from tests.families import FAMILIES, largest_difference, write_family

PAGE = Path(__file__).parents[2] / "docs" / "model_families.md"
EXACT = 1e-3
"""Nats; a larger difference is no rounding."""

_SEQUENCE = list(range(3, 40))


def measure(family: str, folder: Path) -> dict[str, Any]:
    """What is said, and measured, of one family; ``refused`` or ``not built`` say why not."""
    found: dict[str, Any] = {"family": family}
    try:
        write_family(family, folder / "model")
    except Exception as error:  # whatever transformers says of a configuration that does not fit
        return found | {"not built": _first_line(error, folder)}
    try:
        policy, found["attention"] = _load(folder / "model")
        engine = TransformersEngine(policy, range(0, 86, 25))
    except ValueError as error:
        return found | {"refused": _first_line(error, folder)}
    found["kind"], found["mixed"] = engine.caching.kind, engine.caching.mixed
    found["difference"] = largest_difference(policy, engine)
    found["packed"] = packing_is_exact(policy)
    write_model(policy, folder / "saved", torch.float32)
    again, _ = _load(folder / "saved")
    found["saved"] = _apart(policy, again)
    found["lora"] = _lora(folder, found["attention"])
    found["moved"] = _update(policy)
    return found


def _load(folder: Path) -> tuple[Policy, str]:
    """With torch's attention, or plain attention where that is what the message says."""
    try:
        return load_policy(ModelSettings(path=str(folder))), "sdpa"
    except ValueError as error:
        if "set model.attention=eager" not in str(error):
            raise
    return load_policy(ModelSettings(path=str(folder), attention="eager")), "eager"


def _apart(one: Policy, two: Policy) -> float:
    pair = torch.tensor([learner_logprobs(policy, _SEQUENCE) for policy in (one, two)])
    return float((pair[0] - pair[1]).abs().max())


def _lora(folder: Path, attention: str) -> str:
    """``exact``, what has to be left out, or why it cannot be."""

    def load(**lora: Any) -> None:
        settings = ModelSettings(
            path=str(folder / "model"), attention=attention, lora=LoraSettings(rank=4, **lora)
        )
        load_policy(settings)

    left_out: list[str] = []
    targets: dict[str, Any] = {}
    while True:
        try:
            load(**targets)
            return f"exact without {', '.join(left_out)}" if left_out else "exact"
        except ValueError as error:
            message = _first_line(error, folder)
        told = re.search(r"leave out ([\w, ]+): set model.lora.target_modules=\[(.*)\]", message)
        if told is None:
            return message
        left_out.append(told[1])
        targets = {"target_modules": tuple(told[2].split(", "))}


def _update(policy: Policy) -> float:
    """How far an optimizer step moves log-probabilities, in nats; it must, and be finite."""
    prompts, completions = ((5, 6, 7), (9, 8)), ((10, 11, 12, 2), (13, 14, 2))
    mask = torch.zeros(2, 4)
    for row, ids in enumerate(completions):
        mask[row, : len(ids)] = 1
    batch = Batch(
        prompt_ids=prompts,
        completion_ids=completions,
        group_index_B=torch.arange(2),
        rewards_B=torch.ones(2),
        advantages_BT=mask,
        mask_BT=mask,
        rollout_logprobs_BT=mask * 0,
    )
    learner = Learner(policy, Objective(Reinforce(), (), TokenMean()), LearnerSettings(lr=1e-3))
    before = learner_logprobs(policy, _SEQUENCE)
    learner.update(batch)
    after = torch.tensor(learner_logprobs(policy, _SEQUENCE))
    assert torch.isfinite(after).all(), "the update gave a number that is not finite"
    moved = float((after - torch.tensor(before)).abs().max())
    assert moved > 0, "the update changed nothing"
    return moved


def _first_line(error: Exception, folder: Path) -> str:
    line = str(error).strip().partition("\n")[0] or type(error).__name__
    return line.replace(f"model {str(folder / 'model')!r} ", "").replace(str(folder), "FOLDER")


def _child(family: str, connection: Any) -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        try:
            connection.send(measure(family, Path(folder)))
        except Exception as error:  # a row of the table, not its end
            found = f"{type(error).__name__}: {_first_line(error, Path(folder))}"
            connection.send({"family": family, "failed": found})


def measure_apart(family: str, limit_s: float) -> dict[str, Any]:
    """:func:`measure` in a process of its own, which may crash or hang."""
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(target=_child, args=(family, theirs))
    process.start()
    theirs.close()
    try:
        if ours.poll(limit_s):
            result: dict[str, Any] = ours.recv()
            return result
        return {"family": family, "failed": f"no result within {limit_s:.0f} s"}
    except EOFError:
        return {"family": family, "failed": "the process died"}
    finally:
        process.kill()
        process.join()


_GENERATION = {"growing": "exact", "model": "exact, with the model's own cache", "none": "uncached"}


def row(found: dict[str, Any]) -> str:
    """A line of the table."""
    generation = _GENERATION[found["kind"]]
    if not found["mixed"]:
        generation += ", prompts of one length together"
    update = "packed" if found["packed"] else "padded"
    cells = [found["family"], found["attention"], generation, f"{found['difference']:.0e}", update]
    return f"| {' | '.join([*cells, found['lora']])} |"


_HEAD = """# Model families

All {count} causal LM families of transformers {version}, each as a tiny model with random weights
(`tests/families.py`); written by

    python -m tests.benchmarks.families

- **attention**: `model.attention`. `sdpa` is the default; where a family lacks it, a message says
  to set `eager`.
- **generation**: what the trial of the engine `transformers` chooses
  ([rollout engines](rollout.md#the-trial-at-the-start)). *Uncached* runs the whole sequence for
  every token.
- **difference**: largest difference in nats between the log-probabilities of samples of 40 tokens
  and the learner's.
- **update**: packed on one row, or padded ([the learner](learner.md)).
- **LoRA**: whether merged weights give what adapters on all linear layers give, or which layers a
  message says to leave out.

Every family of the first table was also saved, loaded again with the same numbers, and took an
optimizer step.
"""


def page(results: list[dict[str, Any]]) -> str:
    """The whole page."""
    trained = [row(found) for found in results if "kind" in found]
    refused = [_reason(found, "refused") for found in results if "refused" in found]
    left = [
        _reason(found, key) for found in results for key in ("not built", "failed") if key in found
    ]
    lines = [
        _HEAD.format(count=len(results), version=transformers.__version__),
        f"## Trained: {len(trained)}",
        "",
        "| family | attention | generation | difference | update | LoRA |",
        "|---|---|---|---|---|---|",
        *trained,
        "",
        f"## Refused in one line: {len(refused)}",
        "",
        "| family | message |",
        "|---|---|",
        *refused,
        "",
        f"## Not measured: {len(left)}",
        "",
        "No tiny configuration was found for these, or transformers itself fails.",
        "",
        "| family | reason |",
        "|---|---|",
        *left,
    ]
    return "\n".join(lines) + "\n"


def _reason(found: dict[str, Any], key: str) -> str:
    reason = textwrap.shorten(found[key].removeprefix(f"({found['family']}) "), 200)
    return f"| {found['family']} | {reason.replace('|', '/')} |"


def main() -> None:
    """Measure what is not measured yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("families", nargs="*", help="print these instead of writing the page")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "rlvr-families")
    parser.add_argument("--limit-s", type=float, default=120.0, help="seconds for a family")
    wanted = parser.parse_args()
    if wanted.families:
        for family in wanted.families:
            print(json.dumps(measure_apart(family, wanted.limit_s)))
        return
    wanted.work.mkdir(parents=True, exist_ok=True)
    results = []
    for family in FAMILIES:
        kept = wanted.work / f"{family}.json"
        if not kept.is_file():
            began = time.perf_counter()
            kept.write_text(json.dumps(measure_apart(family, wanted.limit_s)))
            print(f"{family}: {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
        results.append(json.loads(kept.read_text()))
    PAGE.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
