"""The ledger of runs with a model: weights, verdicts, resumed runs and branches."""

import os

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from rlvr.files import read_lines, write_lines
from rlvr.learner.checkpoint import MANIFEST, _manifest, _write_json
from rlvr.policy.fingerprint import fingerprint
from rlvr.policy.loading import load_policy
from rlvr.policy.settings import ModelSettings
from rlvr.rl.audit import audit
from rlvr.rl.ledger import _same_on_all
from rlvr.rl.recipe import RLRecipe
from rlvr.rl.train import train
from rlvr.runs.ledger import LEDGER, link, read_ledger
from rlvr.runs.parent import Parent
from rlvr.settings import load_settings

SILENT = Console(file=open(os.devnull, "w"))  # noqa: SIM115
CHOOSES = ("rollout.oversample=3", "rollout.carry_over_steps=1", "rollout.accuracy_range=[0,1]")


@pytest.fixture
def run(recipe_values, tmp_path):
    """Train with overrides; the run's folder."""

    def run(name, *overrides, resume=False, parent=None):
        values = {**recipe_values, "output": str(tmp_path / name), "evaluation": {}}
        values["learner"] = {"lr": 1e-3}
        recipe = load_settings(RLRecipe, values, ("checkpoint.every=1", *overrides))
        train(recipe, resume=resume, console=SILENT, parent=parent)
        return recipe.output

    return run


def relinked(folder, rows):
    """Write altered rows with links that are right."""
    before = "0" * 16
    for row in rows:
        before = row["link"] = link(before, row)
    write_lines(folder / LEDGER, rows)


def with_another_wrong_answer(folder):
    """The faults where one wrong answer stands in the place of another, so the verdict holds."""
    kept = folder / "completions" / "step_000001.jsonl"
    before = kept.read_bytes()
    texts = list(read_lines(kept).objects)
    one = next(one for one in texts if one["response"].endswith("}") and not one["correct"])
    one["response"] = one["response"][:-1] + "7}"
    write_lines(kept, texts)
    faults = audit(folder).faults
    kept.write_bytes(before)
    return faults


def test_the_last_weights_are_the_models_and_a_turned_verdict_is_found(run):
    folder = run("run", *CHOOSES, "steps=2")
    ledger, found = read_ledger(folder), audit(folder)
    assert found.faults == []
    counts = {check.name: check.count for check in found.checks}
    assert counts["verdicts"] > 0
    assert counts["checkpoints"] == 2
    policy = load_policy(ModelSettings(path=str(folder / "model")))
    assert fingerprint(policy) == ledger.weights[2]["fingerprint"]
    assert ledger.weights[1]["fingerprint"] != ledger.weights[2]["fingerprint"]
    one = next(c for c in ledger.completions() if c.trained and c.sampled_for == 2)
    assert one == ledger.completion(one.id)
    assert (one.version, one.update, one.loss) == (1, 1, "trained")
    another = "another certificate than when it is graded again"
    assert any(another in fault for fault in with_another_wrong_answer(folder))
    # Whoever turns a verdict everywhere it stands cannot turn what the verifier says.
    kept = folder / "completions" / "step_000001.jsonl"
    texts = list(read_lines(kept).objects)
    texts[0]["correct"] = not texts[0]["correct"]
    write_lines(kept, texts)
    rows = list(read_lines(folder / LEDGER).objects)
    name = f"{texts[0]['group']}/{texts[0]['sample']}"
    row = next(row for row in rows if row.get("id") == name)
    row["verdict"]["correct"] = texts[0]["correct"]
    relinked(folder, rows)
    said = "right" if texts[0]["correct"] else "wrong"
    assert any(
        f"row {row['row']}: {name} is said to be {said}, and graded again" in fault
        for fault in audit(folder).faults
    )


@pytest.mark.slow
def test_other_weights_than_the_ledgers_are_not_gone_on_from(run):
    folder = run("run", "steps=1")
    checkpoint = folder / "checkpoints" / "step_000001"
    weights = load_file(checkpoint / "model" / "model.safetensors")
    name = min(weights)
    weights[name].view(-1)[0] += 1e-3
    save_file(weights, checkpoint / "model" / "model.safetensors", metadata={"format": "pt"})
    (checkpoint / MANIFEST).unlink()
    _write_json(checkpoint / MANIFEST, _manifest(checkpoint))
    with pytest.raises(ValueError, match="not those of step 1 in"):
        run("run", "steps=2", resume=True)


@pytest.mark.slow
def test_a_resumed_run_says_what_its_engine_is_from_then_on(run):
    folder = run("run", "steps=1")
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        run("run", "steps=2", resume=True)
    finally:
        torch.set_num_threads(before)
    ledger = read_ledger(folder)
    assert [row["threads"] for row in ledger.of("engine")] == [before, before + 1]
    assert [ledger.engine(step)["threads"] for step in (1, 2)] == [before, before + 1]
    assert audit(folder).faults == []


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["learner.lr=2e-3", "rollout.samples_per_prompt=3"])
def test_a_branch_has_books_of_its_own(run, changed):
    parent = run("parent", *CHOOSES, "steps=2")
    waiting = read_ledger(parent).of("step")[-1]["waiting"]
    assert waiting, "else nothing is taken over"
    folder = run("branch", *CHOOSES, "steps=4", changed, parent=Parent(parent, 2))
    ledger = read_ledger(folder)
    (begin,) = ledger.of("begin")
    taken, dropped = len(begin["carried"]), len(begin["dropped"])
    assert (taken, dropped) == ((waiting, 0) if "lr" in changed else (0, waiting))
    assert begin["parent"]["step"] == 2
    assert ledger.weights[2]["fingerprint"] == read_ledger(parent).weights[2]["fingerprint"]
    assert audit(folder, replay=2).faults == [], "its first weights are its parent's"


def test_no_ledger_where_none_is_wanted(run):
    folder = run("run", "steps=1", "log.ledger=none")
    assert not (folder / LEDGER).exists()
    with pytest.raises(ValueError, match=r"as log\.ledger is none"):
        audit(folder)


def test_a_rank_with_other_weights_is_named():
    class Two:
        def gather(self, own):
            return [own, "other"]

    from types import SimpleNamespace
    from unittest import mock

    run = SimpleNamespace(ranks=Two(), policy=None, step=3)
    with (
        mock.patch("rlvr.rl.ledger.fingerprint", return_value="own"),
        pytest.raises(ValueError, match=r"after step 3 processes \[1\] hold other weights"),
    ):
        _same_on_all(run)
