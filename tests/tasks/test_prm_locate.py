"""First-error location from files: what is found, what is drawn by chance, what is refused."""

import json
import random

import pytest
import torch
from typer.testing import CliRunner

from rlvr.cli import app
from rlvr.data.solutions import load_solutions, step_labels
from rlvr.reward_models.steps import step_starts
from rlvr.tasks.tools import locate as locating
from rlvr.tasks.tools.locate import locate, locate_table
from rlvr.tasks.tools.score import ScoredResponse, Scoring, score_solutions
from tests.command import refused


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def solutions(count=40, seed=0):
    """Every second one with an error, the word "no", at a random place."""
    generator, rows = random.Random(seed), []
    for number in range(count):
        steps = [generator.choice(["ok", "so", "add it"]) for _ in range(generator.randint(2, 5))]
        label = generator.randrange(len(steps)) if number % 2 else -1
        if label >= 0:
            steps[label] = "no"
        rows.append({"id": str(number), "problem": "<bos>1+1=", "steps": steps, "label": label})
    return rows


def oracle(rewards):
    """Stands for a model: step rewards by the step's text."""

    def scored(items, how):
        return [
            ScoredResponse(
                item.response, (), tuple(rewards(step) for step in item.response.row["steps"]), ()
            )
            for item in items
        ]

    return scored


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "solutions.jsonl", solutions())


HOW = Scoring("model", "reference")


def test_a_model_that_knows_the_error_is_perfect_on_the_other_half(path, monkeypatch):
    monkeypatch.setattr(locating, "score_solutions", oracle(lambda s: -9.0 if s == "no" else 1.0))
    for values in ("cumulative", "diff"):
        found = locate([path], HOW, values=values)
        assert found["measured"] == {"erroneous": 1.0, "correct": 1.0, "f1": 1.0}
        assert found["solutions"] == {"tuned_on": 20, "measured": 20}
        assert found["lowest"]["hits"] == 1.0
        assert 0.2 <= found["lowest"]["chance"] <= 0.5
    assert "F1" in locate_table(found)


def test_a_model_that_knows_nothing_is_no_better_than_chance(tmp_path, monkeypatch):
    """The threshold is chosen on noise, so what it reaches there is not what it is worth."""
    path = write(tmp_path / "many.jsonl", solutions(400, seed=3))
    noise = random.Random(0)
    monkeypatch.setattr(locating, "score_solutions", oracle(lambda s: noise.gauss(0, 1)))
    found = locate([path], HOW, coefficient=1.0)
    assert found["measured"]["f1"] < 0.55
    assert found["lowest"]["hits"] == pytest.approx(found["lowest"]["chance"], abs=0.12)


def test_halves_share_no_solution_and_follow_the_seed(path):
    given = load_solutions([path], step_starts)
    one, two = locating._halves(given, 0)
    names = [{item.response.problem for item in half} for half in (one, two)]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 40
    assert [sum(item.first_error >= 0 for item in half) for half in (one, two)] == [10, 10]
    again, _ = locating._halves(given, 1)
    assert {item.response.problem for item in again} != names[0]


def test_steps_are_tokenised_once_and_part_the_solution(path, tiny_folder):
    given = load_solutions([path], step_starts)
    scored = score_solutions(given, Scoring(str(tiny_folder), no_reference=True))
    for item, found in zip(given, scored, strict=True):
        steps = item.response.row["steps"]
        # A character is a token; a step's blank line belongs to it, the end token to the last.
        sizes = [len(step) + 2 for step in steps[:-1]] + [len(steps[-1]) + 1]
        ends = torch.tensor(sizes).cumsum(0).tolist()
        assert list(found.ends) == ends
        assert sum(found.steps) == pytest.approx(sum(found.tokens), abs=1e-3)


def test_the_verb_measures_a_file(path, tiny_folder, tmp_path):
    out = tmp_path / "found.json"
    arguments = ["--model", str(tiny_folder), "--no-reference", "--out", str(out)]
    done = CliRunner().invoke(app, ["prm", "locate", str(path), *arguments])
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    assert "first wrong step found" in done.output
    assert found["solutions"]["measured"] == 20
    done = CliRunner().invoke(app, ["prm", "locate", str(path), *arguments, "--tune", str(path)])
    assert json.loads(out.read_text())["solutions"] == {"tuned_on": 40, "measured": 40}


def test_labels_of_steps_and_first_errors_say_the_same(tmp_path):
    rows = [
        {"prompt": "q", "steps": ["a", "b", "c"], "label": 1},
        {"prompt": "q", "steps": ["a", "b"], "label": -1},
        {"prompt": "q", "steps": ["a", "b", "c"], "step_labels": [True, 0.2, None]},
        {"prompt": "q", "steps": ["a", "b"], "step_labels": [True, None]},
        {"prompt": "q", "response": "a\n\nb", "label": 0},
    ]
    found = load_solutions([write(tmp_path / "s.jsonl", rows)], step_starts)
    assert [step_labels(item) for item in found] == [
        (1.0, 0.0, None), (1.0, 1.0), (1.0, 0.2, None), (1.0, None), (0.0, None)
    ]  # fmt: skip
    assert [item.first_error for item in found] == [1, -1, 1, None, 0]


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"steps": "one"}, "steps = 'one' is not a list of texts"),
        ({"steps": []}, "is not a list of texts"),
        ({"steps": ["a", ""]}, "is not a list of texts"),
        ({"steps": ["a", "b"], "label": 2}, "label = 2 is not a step: use -1 if no step is wrong"),
        ({"steps": ["a"], "label": True}, "label = True is not a step"),
        ({"steps": ["a"], "label": "0"}, "label = '0' is not a step"),
        ({"steps": ["a", "b"], "step_labels": [1]}, "must be a list of 2"),
        ({"steps": ["a"], "step_labels": [3]}, "must be a list of 1"),
        ({"steps": ["a"]}, "there is no label"),
        ({"steps": ["a"], "step_labels": [None]}, "there is no label"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_with_its_remedy(tmp_path, row, part):
    path = write(tmp_path / "bad.jsonl", [{"prompt": "q", **row}])
    message = refused("prm", "locate", path, "--model", "m", "--no-reference")
    assert part in message
    assert "line 1" in message


def test_what_locate_cannot_do_is_said_in_one_line(tmp_path, path, tiny_folder):
    right = write(tmp_path / "right.jsonl", [r for r in solutions() if r["label"] < 0])
    model = ("--model", tiny_folder)
    assert "0 have one and 10 have none" in refused(
        "prm", "locate", right, *model, "--no-reference"
    )
    assert "needs its reference" in refused("prm", "locate", path, *model)
    assert "neither cumulative nor diff" in refused(
        "prm", "locate", path, *model, "--no-reference", "--values", "min"
    )
    empty = write(tmp_path / "empty.jsonl", [{"prompt": "q", "steps": ["a", "\u0000"], "label": 0}])
    assert "1 have one and 0 have none" in refused("prm", "locate", empty, *model, "--no-reference")
