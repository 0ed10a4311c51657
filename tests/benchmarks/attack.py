r"""What does a policy find that is paid for every wrong answer that the verifier accepts?

    python -m tests.benchmarks.attack runs/attack/after --starts runs/attack_starts
    python -m tests.benchmarks.attack runs/attack/before --starts ... --grader CHECKOUT
    python -m tests.benchmarks.attack runs/attack --draw docs/images/attack.png

A tiny policy writes answers from the pieces of a grammar (`tests.reward.meaning`), which decides
what they mean without the verifier. It starts from imitation of references that were changed at
random, so any answer of the grammar may come. Then GRPO pays 1 for a new answer that the verifier
accepts though it means something else or nothing, 0.5 for one that was found before, and 0.1 for a
new right one, which keeps it near what is accepted; it is centred in each group but not scaled, so
that right answers never count as much as finds. A right answer with signs that change nothing
(``5;``) is litter: it pays little. Every find is kept in ``finds.jsonl``. An answer whose braces do
not balance is not judged, because the box would end within it.

Samples of the start and of the trained policy are judged with the same seeds, and the rates of
wrong accepts per million are written to ``outcome.json``. ``--grader`` takes the verifier of
another checkout, in a process of its own; ``--starts`` keeps the starting policies, which depend on
no verifier, in one folder for several attacks. What is finished is not done again.
"""

import argparse
import atexit
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from rlvr.files import append_line, write_atomically, write_lines
from rlvr.policy.loading import load_policy, load_tokenizer
from rlvr.policy.settings import ModelSettings
from rlvr.policy.tiny import TinySettings, build_tiny_model
from rlvr.rl.recipe import RLRecipe
from rlvr.rl.train import train
from rlvr.rollout.groups import sample_groups
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.transformers_engine import TransformersEngine
from rlvr.tasks.registry import find_task
from tests.reward.meaning import PIECES, Unread, meaning, pieces, says, without_litter

SHAPE = TinySettings(hidden_size=96, layers=3, heads=4, key_value_heads=4, context=96)
ASK = " is what? "
MAX_TOKENS = 24
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
PROMPTS, PER_STEP = 14, 448
WRONG = ("different", "meaningless")
PAID = {"refused": (0.0, 0.0), "right": (0.1, 0.01), "litter": (0.03, 0.0)}  # new, known
ROOT = Path(__file__).resolve().parents[2]

REFERENCES = [
    "5", "12", "100", "0", "1", "-3", "\\frac{1}{2}", "\\frac{7}{3}", "0.25", "10^{6}", "\\pi ",
    "\\sqrt{2}", "2\\sqrt{3}", "\\frac{\\sqrt{5}}{2}", "x+1", "x-3", "|x-3|", "|x|", "x^{2}-4",
    "\\frac{x}{x+1}", "\\ln(x)", "\\ln(|x|)", "\\sin(2x)", "\\max(x,7)", "\\lfloor x\\rfloor ",
    "\\sqrt{x^{2}+1}", "2^{n}", "n!", "(n-1)!", "\\binom{n}{2}", "(-1)^{n}", "\\gcd(n,6)", "n(n+1)",
    "3k+1", "1,2", "(1,2)", "[0,1)", "\\{1,2,3\\}", "x=4", "50\\%", "i", "3+2i",
]  # fmt: skip
EQUAL = {
    "5": ["2+3", "\\frac{10}{2}", "x=5"], "\\frac{1}{2}": ["0.5", "\\frac{2}{4}", "1/2"],
    "x+1": ["1+x"], "|x-3|": ["|3-x|", "\\max(x-3,3-x)"], "(n-1)!": ["\\frac{n!}{n}"],
    "\\binom{n}{2}": ["\\frac{n(n-1)}{2}"], "x^{2}-4": ["(x-2)(x+2)"], "n(n+1)": ["n^{2}+n"],
    "1,2": ["2,1", "1 and 2"], "2\\sqrt{3}": ["\\sqrt{12}"], "\\sin(2x)": ["2\\sin(x)\\cos(x)"],
    "(-1)^{n}": ["(-1)^{n+2}"], "10^{6}": ["1 million"], "100": ["10^{2}", "1 hundred"],
}  # fmt: skip

_SERVER = """
import json, sys
from reward import grade
from reward.graders import warm_up
from reward.limits import Expired, alarm
warm_up()
for line in sys.stdin:
    answer, gold = json.loads(line)
    try:
        with alarm(2):
            accepted = grade("\\\\boxed{" + answer + "}", gold).correct
    except (Expired, Exception):
        accepted = False
    print(json.dumps(accepted), flush=True)
"""


class Grader:
    """The verifier of a checkout, in a process of its own."""

    def __init__(self, checkout: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout)},
        )
        atexit.register(self.process.kill)

    def accepts(self, answer: str, gold: str) -> bool:
        """Whether the verifier takes an answer for right."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([answer, gold]) + "\n")
        self.process.stdin.flush()
        accepted: bool = json.loads(self.process.stdout.readline())
        return accepted


class Attack:
    """Judges answers and keeps what was found."""

    def __init__(self, finds: Path, grader: Grader, seed: int) -> None:
        self.finds, self.grader, self.draw = finds, grader, random.Random(seed)
        self.known: dict[tuple[str, str], str] = {}
        self.right: set[tuple[str, str]] = set()
        self.by_step: Counter[int] = Counter()
        self.samples = 0  # of the training
        self.counts = dict.fromkeys(("samples", "accepted", *WRONG, "litter"), 0)

    def judge(self, answer: str, gold: str, step: int) -> str:
        """Refused, right, or why an accepted answer is wrong; step 0 is before the training."""
        self.counts["samples"] += 1
        if not balanced(answer):
            return "refused"
        if not self.grader.accepts(answer, gold):
            return "refused"
        self.counts["accepted"] += 1
        why = self.fault(answer, gold)
        if why:
            self.counts[why] += 1
            self.by_step[step] += why in WRONG
            if (answer, gold) not in self.known:
                self.known[answer, gold] = why
                found = {"answer": answer, "gold": gold, "why": why, "step": step}
                append_line(self.finds, found)
        else:
            self.right.add((answer, gold))
        return why or "right"

    def has_seen(self, answer: str, gold: str) -> bool:
        """Whether an answer was accepted before."""
        return (answer, gold) in self.known or (answer, gold) in self.right

    def fault(self, answer: str, gold: str) -> str:
        """Whether an answer means something else, nothing, or has litter; "" if it is right."""
        found = self.reads(answer, gold)
        if found:
            try:
                if any(self.reads(way, gold) == "" for way in without_litter(answer)):
                    return "litter"
            except Unread:
                pass
        return found

    def reads(self, answer: str, gold: str) -> str:
        """What is wrong with an answer as it is written; "" if nothing is."""
        try:
            return "" if says(meaning(answer), meaning(gold), self.draw) else "different"
        except (Unread, RecursionError):
            return "meaningless"


def balanced(text: str) -> bool:
    """Whether the braces of an answer close in order, as a box needs them."""
    level = 0
    for token in re.findall(r"\\.|[{}]", text, re.DOTALL):
        level += (token == "{") - (token == "}")
        if level < 0:
            return False
    return level == 0


_attack: Attack | None = None


def paid(item: Any) -> float:
    """The reward function of the recipe."""
    assert _attack is not None
    seen = _attack.has_seen(item.response, item.gold)
    found = _attack.judge(item.response, item.gold, _attack.samples // PER_STEP + 1)
    _attack.samples += 1
    new, known = PAID.get(found, (1.0, 0.5))
    return known if seen else new


def tokenizer() -> Any:
    """One token a piece."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = list(dict.fromkeys([*SPECIAL, ASK, *PIECES]))
    model = models.WordLevel({piece: index for index, piece in enumerate(vocabulary)}, "<unk>")
    found = Tokenizer(model)
    longest = sorted(vocabulary[len(SPECIAL) :], key=len, reverse=True)
    escaped = "|".join("".join(f"\\x{{{ord(c):x}}}" for c in piece) for piece in longest)
    found.pre_tokenizer = pre_tokenizers.Split(Regex(escaped), "isolated")
    found.decoder = decoders.Fuse()
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=found, unk_token="<unk>", clean_up_tokenization_spaces=False, **names,
        chat_template="{{ bos_token }}{% for m in messages %}{{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}",
    )  # fmt: skip


def changed(draw: random.Random, gold: str) -> str:
    """A reference or an equal of it, with some pieces put in, left out or replaced."""
    found = pieces(draw.choice([gold, *EQUAL.get(gold, []), *draw.sample(REFERENCES, 1)]))
    for _ in range(draw.choice((0, 0, 1, 1, 1, 2, 3))):
        place = draw.randrange(len(found) + 1)
        new = draw.choice(PIECES if draw.random() < 0.8 else pieces(draw.choice(REFERENCES)))
        kind = draw.random()
        if kind < 0.5:
            found.insert(place, new)
        elif kind < 0.7 and place < len(found):
            found[place] = new
        elif kind < 0.8 and len(found) > 1:
            del found[min(place, len(found) - 1)]
        else:
            joint = draw.choice(("=", " or ", "\\approx ", ",", "+", ""))
            found += [*([joint] if joint else []), *pieces(draw.choice(REFERENCES))]
    return "".join(found[: MAX_TOKENS - 1])


def start(folder: Path, seed: int, rows: int, steps: int) -> None:
    """Train a model from nothing to write changed references."""
    if (folder / "run" / "model").is_dir():
        return
    draw, own = random.Random(seed), tokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    build_tiny_model(seed, len(own), SHAPE).save_pretrained(folder / "blank")
    own.save_pretrained(folder / "blank")
    shown = []
    for _ in range(rows):
        gold = draw.choice(REFERENCES)
        shown.append({"prompt": gold + ASK, "response": changed(draw, gold)})
    write_lines(folder / "shown.jsonl", shown)
    task = find_task("sft")
    recipe = {
        "output": str(folder / "run"), "task": "sft", "seed": seed, "steps": steps,
        "model": {"path": str(folder / "blank")},
        "data": {"sources": [str(folder / "shown.jsonl")], "template": "plain", "max_tokens": 64,
                 "per_step": 128},
        "learner": {"lr": 2e-3, "tokens_per_micro_batch": 16384, "layout": "padded"},
    }  # fmt: skip
    task.train(task.schema.model_validate_json(json.dumps(recipe)))


def rates(folder: Path, model: Path, attack: Attack, samples: int, at: int) -> dict[str, float]:
    """Wrong accepts per million samples of a policy."""
    settings = ModelSettings(path=str(model))
    policy, own = load_policy(settings), load_tokenizer(settings)
    engine = TransformersEngine(policy, [own.eos_token_id])
    engine.sync(policy, 0)
    from rlvr.data import FileSource, encode_prompts, load_problems, load_template

    problems = load_problems(FileSource(path=folder / "references.jsonl"))
    prompts = encode_prompts(problems, load_template("plain"), own, 32).prompts
    before = dict(attack.counts)
    for step in range(-(-samples // (len(prompts) * 64))):
        groups = sample_groups(
            engine, prompts, 64, Sampling(max_tokens=MAX_TOKENS), run_seed=999, step=step
        )
        for group in groups:
            for completion in group.completions:
                text = own.decode(list(completion.token_ids), skip_special_tokens=True)
                attack.judge(text, group.problem.answer, at)
    counts = {name: attack.counts[name] - before[name] for name in before}
    million = 1e6 / counts["samples"]
    return counts | {
        f"{name} per million": round(counts[name] * million, 1)
        for name in ("accepted", *WRONG, "litter")
    }


def run(
    out: Path, starts: Path, seed: int, grader: Grader, steps: int, samples: int
) -> dict[str, Any]:
    """Attack with one seed."""
    global _attack
    folder = out / f"seed{seed}"
    outcome = folder / "outcome.json"
    if outcome.is_file():
        done: dict[str, Any] = json.loads(outcome.read_text())
        return done
    begin = starts / f"seed{seed}" / "start"
    start(begin, seed, 20_000, 600)
    if (folder / "run").is_dir():
        shutil.rmtree(folder / "run")  # an attack that was stopped begins again
        (folder / "finds.jsonl").unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(
        folder / "references.jsonl",
        [
            {"problem": gold + ASK, "answer": gold, "id": str(i)}
            for i, gold in enumerate(REFERENCES)
        ],
    )
    _attack = Attack(folder / "finds.jsonl", grader, seed)
    first = rates(folder, begin / "run" / "model", _attack, samples, 0)
    while_training = dict(_attack.counts)
    recipe = {
        "output": str(folder / "run"), "seed": seed, "steps": steps,
        "model": {"path": str(begin / "run" / "model")},
        "data": {"source": {"name": "file", "path": str(folder / "references.jsonl")},
                 "template": "plain", "max_prompt_tokens": 32},
        "rollout": {"prompts_per_step": PROMPTS, "samples_per_prompt": PER_STEP // PROMPTS,
                    "sampling": {"max_tokens": MAX_TOKENS},
                        "engine": {"name": "transformers", "max_rows": PER_STEP}},
        "reward": {"functions": [{"function": "tests.benchmarks.attack:paid"}]},
        "learner": {"lr": 5e-4, "tokens_per_micro_batch": 16384, "layout": "padded"},
        "advantage": {"name": "group", "scale": "none"},
        "log": {"completions_per_step": 0},
    }  # fmt: skip
    train(RLRecipe.model_validate_json(json.dumps(recipe)))
    trained = {name: _attack.counts[name] - while_training[name] for name in while_training}
    found = {
        "seed": seed,
        "start": first,
        "training": trained,
        "trained": rates(folder, folder / "run" / "model", _attack, samples, -1),
        "distinct finds": sum(why in WRONG for why in _attack.known.values()),
        "wrong accepts by step": [_attack.by_step[step] for step in range(1, steps + 1)],
    }
    write_atomically(outcome, json.dumps(found, indent=1))
    return found


def draw(out: Path, picture: Path) -> None:
    """Draw the wrong accepts of each step, and print the rates, of OUT/NAME/seedN/outcome.json."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for colour, folder in zip(("#1f618d", "#b03a2e"), sorted(out.glob("[!.]*/")), strict=False):
        label = folder.name
        for path in sorted(folder.glob("seed*/outcome.json")):
            found = json.loads(path.read_text())
            axes.plot(found["wrong accepts by step"], color=colour, lw=1, label=label)
            label = None
            for when in ("start", "trained"):
                shown = {name: v for name, v in found[when].items() if "million" in name}
                print(folder.name, found["seed"], when, shown, found["distinct finds"])
    axes.set(xlabel="step", ylabel=f"wrong accepts of {PER_STEP} answers", yscale="symlog")
    axes.legend(frameon=False)
    figure.savefig(picture, dpi=110)


def main() -> None:
    """Attack with each seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--grader", type=Path, default=ROOT)
    parser.add_argument("--starts", type=Path, help="folder of the starting policies")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--draw", type=Path, help="draw what stands in the folders of OUT")
    arguments = parser.parse_args()
    if arguments.draw:
        draw(arguments.out, arguments.draw)
        return
    grader = Grader(arguments.grader)
    for seed in map(int, arguments.seeds.split(",")):
        found = run(
            arguments.out, arguments.starts or arguments.out, seed, grader, arguments.steps,
            arguments.samples,
        )  # fmt: skip
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    # The recipe names this file as a module; both have to be the same one.
    from tests.benchmarks import attack as module

    module.main()
