"""Implicit process reward models of the tiny model's own samples: best of 16, planted errors.

    python -m tests.benchmarks.implicit_prm runs/quickstart/tiny-llama OUT --seeds 0,1,2

For every seed: sample 8 answers to each of 400 problems and 16 to each of 200 held-out ones, train
a reward model by cross-entropy and one by DPO (recipes/prm/tiny_ce.yaml), rank the held-out
samples, and corrupt one step of worked answers that were right. A step of a worked answer is a
column sum of two digits, or the box. Everything is written to OUT/summary.json.
"""

import argparse
import json
import random
import re
from pathlib import Path
from statistics import fmean

from rich.console import Console

from reward import grade
from rlvr.data import ArithmeticSource, encode_prompts, load_problems, load_template
from rlvr.data.labelled_responses import load_responses
from rlvr.policy.loading import load_policy, load_tokenizer
from rlvr.policy.settings import ModelSettings
from rlvr.rollout.groups import sample_groups
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.transformers_engine import TransformersEngine
from rlvr.settings import load_settings
from rlvr.tasks.prm import PrmRecipe
from rlvr.tasks.registry import find_task
from rlvr.tasks.tools.rank import rank, rank_table, write_figures
from rlvr.tasks.tools.score import Scoring, score

STEPS = r"\d\d(?=(?:\d\d)*\\boxed)|\\boxed"
WORKED = re.compile(r"(\d\d)(\d\d)(\d\d)\\boxed\{(\d+)\}")


def sample(model, split, problems, samples, seed, out):
    """Sample and label; one JSON line for each answer."""
    settings = ModelSettings(path=model)
    policy, tokenizer = load_policy(settings), load_tokenizer(settings)
    values = {"name": "arithmetic", "digits": 3, "least_operand": 100, "size": 20000}
    if split == "held_out":
        values |= {"size": problems, "split": split}
    source = load_settings(ArithmeticSource, values)
    found = encode_prompts(load_problems(source), load_template("plain"), tokenizer, 16).prompts
    chosen = random.Random(seed).sample(found, problems)
    engine = TransformersEngine(policy, [tokenizer.eos_token_id])
    groups = sample_groups(engine, chosen, samples, Sampling(max_tokens=24), run_seed=seed, step=0)
    rows = []
    for group in groups:
        for item in group.completions:
            text = tokenizer.decode(list(item.token_ids), skip_special_tokens=True)
            verdict = grade(text, group.problem.answer)
            rows.append(
                {
                    "problem_id": group.problem.id,
                    "prompt": tokenizer.decode(list(item.prompt_ids)),
                    "response": text,
                    "answer": group.problem.answer,
                    "correct": verdict.correct,
                    "extracted": verdict.extracted,
                    "finish_reason": item.finish_reason,
                }
            )
    write(out, rows)
    return rows


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def train_one(model, folder, objective, seed, options=()):
    recipe = load_settings(
        PrmRecipe,
        Path("recipes/prm/tiny_ce.yaml"),
        [
            f"output={folder / objective}",
            f"seed={seed}",
            f"model.path={model}",
            f"objective.name={objective}",
            f"data.sources=[{folder / 'train.jsonl'}]",
            f"evaluation.responses={{held_out: [{folder / 'held_out.jsonl'}]}}",
            *options,
        ],
    )
    find_task("prm").train(recipe, resume=True, console=Console(quiet=True))
    return folder / objective / "model"


def planted(rows, seed, kind):
    """Right worked answers with one column sum replaced; the place of the replaced step.

    alone: nothing else changes. carried: the sum's own digit of the box changes with it. carry: its
    first digit is replaced instead.
    """
    generator, found = random.Random(seed), []
    for row in rows:
        match = WORKED.fullmatch(row["response"])
        if not row["correct"] or match is None:
            continue
        columns, total = list(match.groups()[:3]), list(match.group(4))
        place = generator.randrange(3)
        digit = generator.choice([d for d in "0123456789" if d != columns[place][1]])
        columns[place] = columns[place][0] + digit
        if kind == "carry":
            columns[place] = str(1 - int(match.group(place + 1)[0])) + match.group(place + 1)[1]
        if kind == "carried":
            total[-1 - place] = digit
        text = "".join(columns) + f"\\boxed{{{''.join(total)}}}"
        found.append(({**row, "response": text, "correct": False}, place))
    return found


def blame(model, reference, cases, path):
    """How often the lowest step reward falls on the erroneous step; and on each step at all."""
    scored = score(load_responses([path]), Scoring(str(model), reference, steps=STEPS))
    lowest = [min(range(len(s.steps)), key=s.steps.__getitem__) for s in scored]
    places = [place for _, place in cases]
    steps = len(scored[0].steps)
    # What a rule that ignores the error would reach with the same habits.
    habit = [lowest.count(step) / len(lowest) for step in range(steps)]
    chance = sum(habit[step] * places.count(step) / len(places) for step in range(steps))
    hits = fmean(found == place for found, place in zip(lowest, places, strict=True))
    return {"cases": len(cases), "steps": steps, "hits": hits, "chance": 1 / steps,
            "habit_chance": chance, "lowest_by_step": habit}  # fmt: skip


def run_seed(model, out, seed, problems, held_out):
    folder = out / f"seed{seed}"
    if not (folder / "held_out.jsonl").is_file():
        sample(model, "train", problems, 8, seed, folder / "train.jsonl")
        sample(model, "held_out", held_out, 16, seed, folder / "held_out.jsonl")
    rows = [json.loads(line) for line in (folder / "held_out.jsonl").open()]
    found = {}
    for objective in ("ce", "dpo"):
        reward_model = train_one(model, folder, objective, seed)
        how = Scoring(str(reward_model), model, steps=STEPS)
        scored = score(load_responses([folder / "held_out.jsonl"]), how)
        own = {}
        for aggregate in ("min", "sum"):
            ranked = rank(scored, aggregate=aggregate, vote_coefficient=0.05)
            write_figures(ranked, folder / f"{objective}_{aggregate}.json")
            print(f"seed {seed} {objective} {aggregate}\n{rank_table(ranked)}", flush=True)
            own[aggregate] = ranked
        for kind in ("alone", "carried"):
            path, cases = folder / f"planted_{kind}.jsonl", planted(rows, seed, kind)
            write(path, [row for row, _ in cases])
            own[kind] = blame(reward_model, model, cases, path)
            print(kind, own[kind], flush=True)
        found[objective] = own
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--held-out", type=int, default=200)
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    summary = {}
    for seed in seeds:
        summary[seed] = run_seed(given.model, given.out, seed, given.problems, given.held_out)
        (given.out / "summary.json").write_text(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
