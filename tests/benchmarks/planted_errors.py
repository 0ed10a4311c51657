"""Where does a process reward fall, when the labels have seen errors in worked steps?

    python -m tests.benchmarks.planted_errors OUT --seeds 0,1,2

The quickstart's model guesses; its wrong answers are short, so outcome labels tell guesses from
worked answers and say nothing about a wrong column sum (tests/benchmarks/implicit_prm.py plants
errors there, and blame does not find them). Here the generator always writes the work and slips: it
imitates worked answers in which each column sum has a wrong digit with probability --slip, and the
box copies it. For every seed: a generator from scratch, its samples, labels of whole answers alone,
a reward model by cross-entropy and one by DPO, from that one a second stage on labels of steps, and
the share of held-out answers in which the lowest of the four step rewards is the erroneous step:

    own       the generator's own wrong answers with exactly one wrong column
    alone     a right answer, one column sum's digit replaced
    carried   and the box's digit with it, which is how the generator errs
    carry     a right answer, the carry of one column sum flipped: an error it never makes

and first-error location over all held-out worked answers, as rlvr prm locate measures it.
Everything is written to OUT/summary.json.
"""

import argparse
import json
import re
from pathlib import Path

from rich.console import Console

from rlvr.policy.tiny import write_tiny_model
from rlvr.quickstart import WarmupSettings, warm_up, worked_answer
from rlvr.settings import load_settings
from rlvr.tasks.prm import PrmRecipe
from rlvr.tasks.registry import find_task
from rlvr.tasks.tools.locate import locate, locate_table
from rlvr.tasks.tools.score import Scoring
from tests.benchmarks.implicit_prm import STEPS, WORKED, blame, planted, sample, train_one, write

OPERANDS = re.compile(r"(\d+)\+(\d+)=")


def generator_of(folder, seed, slip):
    """A tiny model that writes the work and slips; its path."""
    if not (folder / "warmup.json").is_file():
        write_tiny_model(folder, seed)
        settings = WarmupSettings(
            worked_share=1, slip=slip, target_accuracy=0.9 * (1 - slip) ** 3, max_steps=2000
        )
        outcome = warm_up(folder, seed, settings, Console(quiet=True))
        (folder / "warmup.json").write_text(json.dumps(outcome))
    return str(folder)


def own_errors(rows):
    """Wrong worked answers with exactly one wrong column sum, and which it is."""
    found = []
    for row in rows:
        match = WORKED.fullmatch(row["response"])
        if row["correct"] or match is None:
            continue
        a, b = map(int, OPERANDS.search(row["prompt"]).groups())
        truth = WORKED.fullmatch(worked_answer(a, b)).groups()[:3]
        wrong = [place for place in range(3) if match.group(place + 1) != truth[place]]
        if len(wrong) == 1:
            found.append((row, wrong[0]))
    return found


def judged_steps(rows):
    """Worked answers with a label for each column sum, and for the box."""
    found = []
    for row in rows:
        match = WORKED.fullmatch(row["response"])
        if match is not None:
            a, b = map(int, OPERANDS.search(row["prompt"]).groups())
            truth = WORKED.fullmatch(worked_answer(a, b)).groups()
            labels = [own == right for own, right in zip(match.groups(), truth, strict=True)]
            found.append({**row, "step_labels": labels})
    return found


def first_errors(rows):
    """Worked answers with the first wrong step, -1 where there is none."""
    found = []
    for row in judged_steps(rows):
        labels = row.pop("step_labels")
        found.append({**row, "label": labels.index(False) if False in labels else -1})
    return found


def second_stage(model, folder, seed):
    recipe = load_settings(
        PrmRecipe,
        Path("recipes/prm/tiny_steps.yaml"),
        [
            f"output={folder / 'dpo_steps'}",
            f"seed={seed}",
            f"model.path={folder / 'dpo' / 'model'}",
            f"reference.path={model}",
            f"data.sources=[{folder / 'steps.jsonl'}]",
        ],
    )
    find_task("prm").train(recipe, resume=True, console=Console(quiet=True))
    return folder / "dpo_steps" / "model"


def run_seed(out, seed, slip, problems, held_out, options):
    folder = out / f"seed{seed}"
    model = generator_of(folder / "generator", seed, slip)
    if not (folder / "held_out.jsonl").is_file():
        sample(model, "train", problems, 8, seed, folder / "train.jsonl")
        sample(model, "held_out", held_out, 8, seed, folder / "held_out.jsonl")
    train_rows = [json.loads(line) for line in (folder / "train.jsonl").open()]
    rows = [json.loads(line) for line in (folder / "held_out.jsonl").open()]
    wrong = [row for row in train_rows if not row["correct"]]
    found = {
        "right": 1 - len(wrong) / len(train_rows),
        "wrong_with_one_wrong_column": len(own_errors(train_rows)) / len(wrong),
    }
    for objective in ("ce", "dpo", "dpo_steps"):
        if objective == "dpo_steps":
            write(folder / "steps.jsonl", judged_steps(train_rows))
            reward_model = second_stage(model, folder, seed)
        else:
            reward_model = train_one(model, folder, objective, seed, options)
        write(folder / "located.jsonl", first_errors(rows))
        how = Scoring(str(reward_model), model, steps=STEPS)
        found[objective] = {"location": locate([folder / "located.jsonl"], how, seed=seed)}
        print(seed, objective, locate_table(found[objective]["location"]), flush=True)
        kinds = {"own": own_errors(rows)}
        kinds |= {kind: planted(rows, seed, kind) for kind in ("alone", "carried", "carry")}
        for kind, cases in kinds.items():
            path = folder / f"{kind}.jsonl"
            write(path, [row for row, _ in cases])
            found[objective][kind] = blame(reward_model, model, cases, path)
            print(seed, objective, kind, json.dumps(found[objective][kind]), flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--slip", type=float, default=0.2)
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("options", nargs="*", help="of the reward model's recipe")
    given = parser.parse_intermixed_args()
    summary = {}
    for seed in map(int, given.seeds.split(",")):
        sizes = given.problems, given.held_out
        summary[seed] = run_seed(given.out, seed, given.slip, *sizes, given.options)
        print(seed, {key: summary[seed][key] for key in list(summary[seed])[:2]}, flush=True)
        (given.out / "summary.json").write_text(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
