"""A toy in which exploration decides: the better way begins with a rare token.

A response is two tokens. The first is ``direct`` (likely), ``wait`` (rare, but above the noise
threshold) or one of many noise tokens (each below it). After ``direct`` and after noise the answer
is right with a fixed probability, whatever the policy does: a habit that is right now and then.
After ``wait`` the second token must be the right one of several: at first that is rarer than the
habit's luck, but it can be learnt, up to always.
So ``wait`` earns a negative advantage before it pays, and
what decides is whether it is still there when it would.

The policy is two rows of logits, sampled, graded and updated with the objective's own parts
(``rlvr/objective``, ``rlvr/policy/token_stats.py``); accuracy is computed exactly from the logits.

    python -m tests.benchmarks.exploration_toy --out docs/images/lp_reg_toy.png
"""

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch

from rlvr.objective.advantages.group import GroupAdvantage
from rlvr.objective.loss_inputs import LossInputs, Step
from rlvr.objective.objective import Objective
from rlvr.objective.policy_losses.clip import Clip
from rlvr.objective.policy_losses.ratio import Ratio
from rlvr.objective.proxy import Proxy
from rlvr.objective.reducers import Counts, TokenMean
from rlvr.objective.regularisers.entropy import Entropy
from rlvr.objective.regularisers.lp_reg import LpReg
from rlvr.objective.token_statistic import SparseRows, TokenStatistic
from rlvr.policy.token_stats import TokenStats, token_stats

DIRECT, WAIT = 0, 1


@dataclass(frozen=True)
class Toy:
    """The task and how it is trained on."""

    wait: float = 0.1
    noise: float = 0.3
    noise_tokens: int = 300
    luck: float = 0.3
    start: float = 0.1
    options: int = 10
    groups: int = 32
    samples: int = 8
    updates: int = 1
    rate: float = 2.0
    steps: int = 200


def first_logits(toy: Toy) -> torch.Tensor:
    """Logits [3, V] at the start, after anything but wait, and after wait."""
    words = max(2 + toy.noise_tokens, toy.options)
    table = torch.full((3, words), -30.0, dtype=torch.float64)
    first = [1 - toy.wait - toy.noise, toy.wait]
    first += [toy.noise / toy.noise_tokens] * toy.noise_tokens
    table[0, : len(first)] = torch.tensor(first).double().log()
    table[1, 0] = 0.0  # luck, not choice
    rest = (1 - toy.start) / (toy.options - 1)
    table[2, : toy.options] = torch.tensor([toy.start] + [rest] * (toy.options - 1)).log()
    return table


def accuracy(table: torch.Tensor, toy: Toy) -> tuple[float, float, float]:
    """Exact accuracy, probability of ``wait``, of noise."""
    first, after_wait = table[0].softmax(-1), table[2].softmax(-1)
    right = (1 - first[WAIT]) * toy.luck + first[WAIT] * after_wait[0]
    return float(right), float(first[WAIT]), float(first[2:].sum())


def rollout(table: torch.Tensor, toy: Toy, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Responses of a step: states and tokens [B, 2], advantages and old log-probabilities."""
    count = toy.groups * toy.samples
    first = torch.multinomial(table[0].softmax(-1), count, True, generator=generator)
    state = (first == WAIT).long() + 1
    rows = table[state].softmax(-1)
    second = torch.multinomial(rows, 1, True, generator=generator)[:, 0]
    lucky = torch.rand(count, generator=generator, dtype=torch.float64) < toy.luck
    right = torch.where(first == WAIT, second == 0, lucky)
    groups = torch.arange(count) // toy.samples
    advantages = GroupAdvantage()(right.double(), groups)
    states = torch.stack([torch.zeros_like(state), state], 1)
    tokens = torch.stack([first, second], 1)
    return {"states": states, "tokens": tokens, "advantages": advantages[:, None].expand(-1, 2)}


def statistics_of(
    table: torch.Tensor, data: dict[str, torch.Tensor], statistics: list[TokenStatistic]
) -> TokenStats:
    """Token statistics [2B] of the responses under the logits."""
    return token_stats(
        torch.eye(3, dtype=torch.float64)[data["states"].flatten()],
        table.T,
        data["tokens"].flatten(),
        entropy=True,
        statistics=statistics,
        chunk_tokens=4096,
    )


def train_step(
    table: torch.Tensor, objective: Objective, toy: Toy, generator: torch.Generator, number: int
) -> torch.Tensor:
    """One rollout, ``updates`` optimizer steps over parts of it."""
    data = rollout(table, toy, generator)
    parts = [part for part in objective.parts if part.statistics]
    with torch.no_grad():
        asked = [part.old_statistic(data["advantages"].flatten()) for part in parts]
        old = statistics_of(table, data, asked)
    count = len(data["tokens"])
    for part in range(toy.updates):
        rows = slice(count * part // toy.updates, count * (part + 1) // toy.updates)
        mine = {name: column[rows] for name, column in data.items()}
        old_BT = old.logprobs_N.view(-1, 2)[rows]
        columns = {"mask_BT": torch.ones_like(old_BT), "advantages_BT": mine["advantages"]}
        step = Step(old_BT, mine["advantages"], columns["mask_BT"], number=number)
        logits = table.clone().requires_grad_()
        now = _against_old(logits, mine, objective, old, rows)
        found = {name: value_N.view(-1, 2)[rows] for name, value_N in old.columns.items()}
        found |= {name: value_N.view(-1, 2) for name, value_N in now.columns.items()}
        terms = LossInputs(
            logprobs_BT=now.logprobs_N.view(-1, 2),
            old_logprobs_BT=old_BT,
            entropy_BT=now.entropy_N.view(-1, 2),
            prepared=objective.prepare(step),
            columns=found,
            **columns,
        )
        loss, _ = objective(terms, Counts.of(terms.mask_BT))
        (gradient,) = torch.autograd.grad(loss, logits)
        table = table - toy.rate * gradient
    return table


def _against_old(
    logits: torch.Tensor,
    mine: dict[str, torch.Tensor],
    objective: Objective,
    old: TokenStats,
    rows: slice,
) -> TokenStats:
    """Statistics under the logits, with what the objective compares with the old policy."""

    def kept(name: str) -> SparseRows:
        return old.sparse[name].within(2 * rows.start, 2 * rows.stop)

    asked = [part.statistic(None, kept) for part in objective.parts]
    return statistics_of(logits, mine, [statistic for statistic in asked if statistic])


def arms(rho: float) -> dict[str, Objective]:
    """What is compared."""
    cap, proxy = Ratio(cap=10.0), Proxy(kappa=0.02)

    def lp_reg(kl: str) -> Objective:
        return Objective(cap, (LpReg(kl=kl, rho=rho, proxy=proxy),), TokenMean())

    return {
        "GRPO": Objective(Clip(), (), TokenMean()),
        "Lp-Reg, sampled": lp_reg("sampled"),
        "Lp-Reg, full": lp_reg("full"),
        "entropy 0.005": Objective(Clip(), (Entropy(coefficient=0.005),), TokenMean()),
        "entropy 0.02": Objective(Clip(), (Entropy(coefficient=0.02),), TokenMean()),
        "entropy 0.1": Objective(Clip(), (Entropy(coefficient=0.1),), TokenMean()),
    }


def run(objective: Objective, toy: Toy, seed: int) -> list[tuple[float, float, float]]:
    """Accuracy, wait and noise before each step and after the last."""
    table, generator = first_logits(toy), torch.Generator().manual_seed(seed)
    curve = [accuracy(table, toy)]
    for number in range(toy.steps):
        table = train_step(table, objective, toy, generator, number)
        curve.append(accuracy(table, toy))
    return curve


def draw(curves: dict[str, list[list[tuple[float, float, float]]]], path: Path) -> None:
    """Mean over seeds with the range, accuracy, wait and noise beside each other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.8))
    for index, (axis, title) in enumerate(
        zip(axes, ("accuracy", "probability of `wait`", "probability of noise"), strict=True)
    ):
        for name, runs in curves.items():
            values = torch.tensor([[point[index] for point in curve] for curve in runs])
            (line,) = axis.plot(values.mean(0), label=name, linewidth=1.6)
            low, high = values.min(0).values, values.max(0).values
            axis.fill_between(range(len(low)), low, high, alpha=0.15, color=line.get_color())
        axis.set_title(title)
        axis.set_xlabel("step")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rho", type=float, default=0.3)
    parser.add_argument("--out", type=Path)
    for name, value in vars(Toy()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = vars(parser.parse_args())
    seeds, rho, out = options.pop("seeds"), options.pop("rho"), options.pop("out")
    toy = Toy(**options)
    curves = {
        name: [run(objective, toy, seed) for seed in range(seeds)]
        for name, objective in arms(rho).items()
    }
    for name, runs in curves.items():
        last = [curve[-1] for curve in runs]
        means = [round(statistics.fmean(point[i] for point in last), 3) for i in range(3)]
        reached = [next((k for k, p in enumerate(curve) if p[0] > 0.9), None) for curve in runs]
        row = {
            "arm": name,
            "accuracy_wait_noise": means,
            "step_of_0.9": reached,
            "least_wait": round(min(p[1] for curve in runs for p in curve), 4),
            "most_noise": round(max(p[2] for curve in runs for p in curve), 3),
        }
        print(json.dumps(row))
    if out is not None:
        draw(curves, out)


if __name__ == "__main__":
    main()
