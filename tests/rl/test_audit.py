"""Closed books: they close whatever the settings and wherever a run is killed, and no fault in a
ledger escapes ``rlvr audit``."""

import importlib
import json
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlvr.files import line, read_lines, write_lines
from rlvr.rl.audit import audit
from rlvr.rl.ledger import update_of
from rlvr.runs.ledger import LEDGER, chained, link, read_ledger
from tests.command import call
from tests.rl.fake_runs import PLACES, Killed, go, recipe_of


@st.composite
def runs(draw):
    """Settings of a run, and where it is killed."""
    prompts, steps = draw(st.integers(1, 5)), draw(st.integers(2, 7))
    rounds, oversample = draw(st.integers(0, 3)), draw(st.sampled_from([1.0, 1.5, 2.0, 4.0]))
    chooses = rounds > 0 or oversample > 1
    ranges = [None, (0.0, 0.5), (0.4, 0.6), (0.9, 1.0)] if chooses else [None]
    places = st.tuples(st.integers(1, steps), st.sampled_from(PLACES))
    return {
        "steps": steps,
        "size": draw(st.integers(1, 25)),
        "every": draw(st.integers(1, 3)),
        "updates": draw(st.integers(1, min(2, prompts))),
        "truncated": draw(st.sampled_from(["keep", "mask"])),
        "seed": draw(st.integers(0, 2**64 - 1)),
        "ledger": draw(st.sampled_from(["hashes", "tokens"])),
        "rollout_prompts_per_step": prompts,
        "rollout_samples_per_prompt": draw(st.integers(2, 3)),
        "rollout_dynamic_sampling_rounds": rounds,
        "rollout_oversample": oversample,
        "rollout_accuracy_range": draw(st.sampled_from(ranges)),
        "rollout_carry_over_steps": draw(st.integers(0, 2)) if oversample > 1 else 0,
        "rollout_max_staleness": draw(st.sampled_from([0, 1, 2])),
    }, draw(st.lists(places, max_size=3))


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(runs())
def test_books_close_at_every_kill_and_at_the_end(tmp_path_factory, drawn):
    values, kills = drawn
    folder = tmp_path_factory.mktemp("run") / "run"
    recipe = recipe_of(folder, **values)
    for kill in kills:
        try:
            go(recipe, kill)
        except Killed:
            if read_ledger(folder).rows:
                assert audit(folder).faults == []
    go(recipe)
    found = audit(folder)
    assert found.faults == []
    # docs/audit.md: fewer groups wait than a step takes, and they come first in the next.
    assert not [row for row in read_ledger(folder).of("prompt", "fate") if row["fate"] == "stale"]
    assert {check.name: check.count for check in found.checks}["metrics"] == values["steps"]
    if values["rollout_max_staleness"] < 2:  # with more, timing decides which weights a rollout has
        go(recipe_of(folder.with_name("whole"), **values))
        assert (folder / LEDGER).read_bytes() == (folder.with_name("whole") / LEDGER).read_bytes()


@pytest.mark.parametrize("place", ["find_fault", "load_state", "read_metrics", "read_ledger"])
def test_a_run_may_go_on_while_it_is_audited(tmp_path, monkeypatch, place):
    """It takes six more steps, prunes and saves, each time before another file is read."""
    module = "rlvr.rl.audit"
    read, before = getattr(importlib.import_module(module), place), []
    go(recipe_of(tmp_path / "run", steps=4))

    def goes_on(*given):
        if not before:
            before.append(4)
            go(recipe_of(tmp_path / "run", steps=10))
        return read(*given)

    monkeypatch.setattr(f"{module}.{place}", goes_on)
    found = audit(tmp_path / "run")
    assert before
    assert found.faults == []
    assert found.notes == ()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with filtered, surplus, carried and stale prompts, and tokens."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    recipe = recipe_of(
        folder,
        steps=12,
        ledger="tokens",
        rollout_oversample=3.0,
        rollout_dynamic_sampling_rounds=1,
        rollout_carry_over_steps=1,
    )
    go(recipe)
    fates = {row["fate"] for row in read_ledger(folder).of("prompt", "fate")}
    assert fates >= {"trained", "filtered", "surplus", "carried"}
    assert audit(folder).closed
    return folder


@pytest.fixture
def rows(finished, tmp_path):
    """The rows of a copy, and what audits them."""
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    return Tampered(folder)


class Tampered:
    """A ledger to be altered; ``relink`` makes its numbers and links good again."""

    def __init__(self, folder: Path):
        self.folder, self.rows = folder, list(read_lines(folder / LEDGER).objects)

    def place(self, kind, **has):
        return next(
            place
            for place, row in enumerate(self.rows)
            if row["kind"] == kind and all(row[name] == value for name, value in has.items())
        )

    def relink(self):
        before = "0" * 16
        for number, row in enumerate(self.rows, 1):
            row["row"] = number
            before = row["link"] = link(before, row)

    def faults(self):
        write_lines(self.folder / LEDGER, self.rows)
        return audit(self.folder).faults


def test_a_deleted_row_is_missing(rows):
    row = rows.rows.pop(rows.place("completion", step=3))
    assert f"links: missing: row {row['row']}" in rows.faults()


def test_an_altered_row_is_named(rows):
    row = rows.rows[rows.place("completion", step=3)]
    row["reward"] += 0.25
    assert f"links: row {row['row']} (completion, step 3) is not what was written" in rows.faults()


def test_a_duplicated_row_is_named(rows):
    place = rows.place("completion", step=3)
    rows.rows.insert(place, dict(rows.rows[place]))
    assert f"links: row {rows.rows[place]['row']} stands 2 times" in rows.faults()


def test_swapped_rows_are_named(rows):
    place = rows.place("completion", step=3)
    rows.rows[place], rows.rows[place + 1] = rows.rows[place + 1], rows.rows[place]
    first, second = (rows.rows[place + n]["row"] for n in (1, 0))
    assert f"links: row {first} stands behind row {second}" in rows.faults()


def test_a_ledger_that_ends_too_early_lacks_steps_of_the_metrics(rows):
    rows.rows = [row for row in rows.rows if row["step"] < 12]
    faults = rows.faults()
    assert "metrics: step 12 is in metrics.jsonl and not in the ledger" in faults
    assert any("or the row is gone" in fault for fault in faults)


# From here on whoever tampers also makes new numbers and links for all rows.


def test_the_fingerprint_of_a_version(rows):
    row = rows.rows[rows.place("weights", version=4)]
    row["fingerprint"] = "0" * 64
    rows.relink()
    assert any(
        fault.startswith(f"weights: row {row['row']}: version 4 does not follow")
        for fault in rows.faults()
    )


def test_a_whole_new_chain_is_not_that_of_the_checkpoints(rows):
    chain = ""
    rows.rows[rows.place("weights", version=4)]["fingerprint"] = "0" * 64
    for row in rows.rows:
        if row["kind"] == "weights":
            chain = row["chain"] = chained(chain, row["fingerprint"])
    rows.relink()
    assert any("had another link" in fault for fault in rows.faults())


def test_a_version_left_out(rows):
    rows.rows.pop(rows.place("weights", version=4))
    rows.relink()
    assert any("missing 4" in fault for fault in rows.faults())


def test_a_draw_left_out_with_its_completions(rows):
    place = rows.place("prompt", step=3, fate="filtered")
    draw = rows.rows[place]["draw"]
    del rows.rows[place : place + 3]
    rows.relink()
    faults = rows.faults()
    assert f"draws: draw {draw} has no row" in faults
    assert any(fault.startswith("sums: ") for fault in faults)


def test_another_problem_than_the_sampler_gives(rows):
    one, other = (rows.rows[rows.place("prompt", draw=draw)] for draw in (1, 2))
    for name in ("problem", "index"):
        one[name], other[name] = other[name], one[name]
    rows.relink()
    assert any("and the sampler gives" in fault for fault in rows.faults())


def test_a_problem_twice_in_an_epoch(rows):
    one, other = (rows.rows[rows.place("prompt", draw=draw)] for draw in (1, 2))
    other["problem"], other["index"] = one["problem"], one["index"]
    rows.relink()
    assert any("was drawn in epoch 0 before, as draw 1" in fault for fault in rows.faults())


def test_a_second_fate(rows):
    row = rows.rows[rows.place("fate", fate="trained")]
    rows.rows.insert(rows.rows.index(row), dict(row))
    rows.relink()
    assert any(f"draw {row['draw']} has 2 final fates" in fault for fault in rows.faults())


def test_a_fate_that_never_came(rows):
    row = rows.rows.pop(rows.place("fate", fate="trained"))
    rows.relink()
    assert any("waiting" in fault for fault in rows.faults()), row


def test_an_older_version_than_may_be(rows):
    row = rows.rows[rows.place("prompt", step=5)]
    row["version"] = 2
    rows.relink()
    assert any("sampled for step 5 with version 2" in fault for fault in rows.faults())


def test_a_verdict_or_reward_that_was_turned(rows):
    row = rows.rows[rows.place("completion", step=3)]
    row["verdict"]["correct"] = not row["verdict"]["correct"]
    rows.relink()
    assert any(fault.startswith("metrics: step 3: reward/correct") for fault in rows.faults())


def test_a_token_that_was_changed(rows):
    row = rows.rows[rows.place("completion", step=3)]
    row["ids"][0] += 1
    rows.relink()
    assert f"hashes: row {row['row']}: the token ids of {row['id']} have another hash" in (
        rows.faults()
    )


def test_a_seed_of_another_place(rows):
    one, other = (rows.rows[rows.place("completion", step=step)] for step in (3, 4))
    one["seed"] = other["seed"]
    rows.relink()
    assert any(f"row {one['row']}: the seed is" in fault for fault in rows.faults())


def test_updates_that_are_not_the_steps_own(rows):
    row = rows.rows[rows.place("prompt", step=3, fate="trained")]
    row["update"] += 1
    rows.relink()
    assert any("take part in" in fault for fault in rows.faults())


def test_every_single_change_of_a_value_is_found(finished, tmp_path):
    """Random numbers, words and rows, changed one at a time."""
    rows = Tampered(finished)
    draw = random.Random(0)
    for _ in range(60):
        copy = json.loads("[" + ",".join(line(row) for row in rows.rows) + "]")
        row = draw.choice(copy)
        name = draw.choice([name for name in row if name not in ("link", "row")])
        row[name] = {"changed": row[name]}
        before = copy[row["row"] - 2]["link"] if row["row"] > 1 else "0" * 16
        assert link(before, row) != row["link"], name


def test_rows_that_are_not_as_they_should_be_are_faults_and_no_crash(rows):
    for row in rows.rows:
        if row["step"] == 3 and row["kind"] == "prompt":
            del row["version"]
    rows.relink()
    assert any("rows lack what they should hold" in fault for fault in rows.faults())


@pytest.mark.parametrize(("groups", "updates"), [(5, 2), (6, 3), (7, 7), (1, 1), (8, 3)])
def test_groups_go_to_the_updates_that_the_learner_gives_them(groups, updates):
    """Against :meth:`Learner._steps`."""
    from types import SimpleNamespace

    import torch

    from rlvr.learner.learner import Learner

    learner = SimpleNamespace(settings=SimpleNamespace(updates_per_rollout=updates))
    batch = SimpleNamespace(
        group_index_B=torch.arange(groups).repeat_interleave(2), select=lambda rows: rows
    )
    for update, rows in enumerate(Learner._steps(learner, batch)):
        assert {update_of(row // 2, groups, updates) for row in rows} == {update}


def test_the_command_says_what_it_checked_and_ends_with_a_code(rows):
    done = call("audit", rows.folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "the books are closed"
    assert "steps, in order" in done.stdout
    rows.rows[rows.place("completion", step=3)]["reward"] = 9.0
    rows.faults()
    done = call("audit", rows.folder, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["closed"] is False
    done = call("audit", rows.folder.parent)
    assert done.returncode == 2
    assert "is not a run (it has no recipe.yaml); it contains the runs run" in done.stderr
