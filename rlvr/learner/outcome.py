"""The update of an explicit reward model: items of labelled responses in, new weights out.

The language model is the engine's policy, with its own rate; the head stands beside it with
another. A step's items are split into micro-batches by a token budget and dealt to the ranks; a
response that several items of a micro-batch share is run once. The loss of the step is the mean
over its items, taken from counts over the whole step, so the gradient does not depend on the split.
"""

import time
from collections.abc import Callable
from statistics import fmean

import torch

from rlvr.learner.budget import Budget
from rlvr.learner.deal import Rows
from rlvr.learner.launch import Launch, build_engine
from rlvr.learner.layout import packs
from rlvr.learner.micro_batches import MicroBatches
from rlvr.learner.models import POLICY, Models
from rlvr.learner.settings import LearnerSettings, OptimizerSettings
from rlvr.policy import Policy, evaluating
from rlvr.ranks import Ranks
from rlvr.rm import Items, OutcomeRewardModel, Responses, RewardLoss

HEAD = "reward_head"

_Numbers = dict[str, list[float]]


class OutcomeLearner:
    """Turns labelled responses into updates of a reward model; every call is collective.

    Args:
        model: Language model and head.
        loss: What it is trained with.
        settings: Optimizer of the language model, and batching.
        head: Optimizer of the head.
        total_updates: Length of the learning-rate schedule.
        launch: The processes of the job and what holds the parameters; None is this process alone.

    Raises:
        ValueError: Packing is asked for, and does not give this model's numbers.
    """

    def __init__(
        self,
        model: OutcomeRewardModel,
        loss: RewardLoss,
        settings: LearnerSettings,
        head: OptimizerSettings,
        *,
        total_updates: int = 1,
        launch: Launch | None = None,
    ) -> None:
        self.model, self.loss, self.settings = model, loss, settings
        self.policy = model.policy
        self.total_updates = total_updates
        self.updates = self.skipped_updates = 0
        _freeze_output_head(model.policy)
        # Before the engine takes parameters apart. A head that reads whole layers projects a packed
        # row once for each completion on it, so there padding is the cheaper way.
        packed = (settings.layout == "packed" or not model.head.all_layers) and packs(
            model.policy, settings
        )
        launch = launch or Launch(Ranks())
        self.ranks = launch.ranks
        models = Models(model.policy, {HEAD: model})
        self.engine = build_engine(models, {POLICY: settings, HEAD: head}, launch)
        self.budget = Budget(settings.tokens_per_micro_batch, self.engine, self.ranks)
        self.micro_batches = MicroBatches(self.engine, self.ranks, self.budget, packed=packed)

    def update(self, items: Items) -> dict[str, float]:
        """One optimizer step; returns its metrics."""
        started = time.perf_counter()
        self.engine.models.train()
        found = self._gather_gradient(items)
        metrics = _metrics(found) | self._step_weights()
        metrics["learner/out_of_memory"] = self.budget.retries
        metrics["time/update"] = time.perf_counter() - started
        return metrics

    def rewards(
        self, responses: Responses, progress: Callable[[int], None] = lambda done: None
    ) -> torch.Tensor:
        """Rewards [M] in float64 of all responses, without gradient and without dropout.

        Every rank has all of them, in the order of the data, however they were dealt.
        ``progress`` hears how many of this rank's are done.
        """
        found_M = torch.zeros(len(responses), dtype=torch.float64)
        single = Items(responses, tuple((row,) for row in range(len(responses))), found_M)
        done = 0
        with torch.no_grad(), evaluating(self.engine.models):
            for micro in self._share(single):
                rewards_U, _ = self._forward(responses, micro)
                if micro:
                    found_M[list(micro)] = rewards_U.cpu().double()
                done += len(micro)
                progress(done)
        return self.ranks.sum(found_M)

    def _gather_gradient(self, items: Items) -> _Numbers:
        """Run the step's micro-batches; numbers of all items to log, in no certain order.

        Raises:
            ValueError: Memory runs out, and again with half the budget.
        """
        found: _Numbers = {}
        for part in self.ranks.gather(self.budget.attempt(lambda: self._run_micro_batches(items))):
            found = _joined(found, part)
        return found

    def _run_micro_batches(self, items: Items) -> _Numbers:
        """This rank's share of the gradient, added up in the engine, and its items' numbers."""
        own: _Numbers = {}
        share = self._share(items)
        for index, micro in enumerate(share):
            rows = _rows_of(items, micro)
            rewards_U, idle = self._forward(items.responses, rows)
            loss = 0.0 * rewards_U.sum()
            if micro:
                loss, numbers = self._micro_loss(items, micro, rows, rewards_U)
                own = _joined(own, numbers)
            if idle is not None:
                loss = loss + 0.0 * idle
            self.engine.backward(loss, last=index == len(share) - 1)
        return own

    def _micro_loss(
        self, items: Items, micro: Rows, rows: Rows, rewards_U: torch.Tensor
    ) -> tuple[torch.Tensor, _Numbers]:
        """The micro-batch's share of the step's loss, and numbers to log."""
        own = [items.rows[item] for item in micro]
        place = {row: index for index, row in enumerate(rows)}
        most = max(map(len, own))
        padded_IK = torch.tensor([[*item, *item[:1] * (most - len(item))] for item in own])
        mask_IK = torch.tensor([[k < len(item) for k in range(most)] for item in own])
        index_IK = torch.tensor([[place[row] for row in item] for item in padded_IK.tolist()])
        device = rewards_U.device
        rewards_IK = rewards_U[index_IK.to(device)]
        targets_IK = items.targets_M[padded_IK].to(rewards_IK)
        loss_I = self.loss(rewards_IK, targets_IK, mask_IK.to(device))
        outcomes_IK = items.responses.outcomes_M[padded_IK]
        numbers = _numbers(rewards_IK.detach().cpu(), outcomes_IK, mask_IK, self.loss)
        numbers["loss"] = loss_I.detach().tolist()
        return loss_I.sum() / len(items), numbers

    def _forward(
        self, responses: Responses, rows: Rows
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Rewards [U] of responses; those of two tokens where there are none to run."""
        prompts, completions = responses.prompt_ids, responses.completion_ids
        if not rows:
            prompts, completions, rows = (prompts[0][:1],), ((0,),), (0,)
        inputs = self.micro_batches.inputs(prompts, completions, rows).to(self.policy.device)
        outputs = self.engine.forward(inputs, run=(HEAD,))
        return outputs.beside[HEAD], outputs.idle

    def _share(self, items: Items) -> list[Rows]:
        """This rank's micro-batches, as places of items."""
        data = items.responses

        def rows_of(item: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
            return [(data.prompt_ids[row], data.completion_ids[row]) for row in items.rows[item]]

        return self.micro_batches.share(rows_of, range(len(items)))

    def _step_weights(self) -> dict[str, float]:
        fraction = self.settings.schedule.fraction(self.updates, self.total_updates)
        result = self.engine.step(fraction)
        self.updates += 1
        self.skipped_updates += result.skipped
        return {
            "learner/lr": self.settings.lr * fraction,
            "learner/grad_norm": result.grad_norms[POLICY],
            "rm/head_grad_norm": result.grad_norms[HEAD],
            "learner/changed": result.changed[POLICY],
            "learner/changed_compute": result.changed_compute[POLICY],
            "learner/updates": self.updates,
            "learner/skipped_updates": self.skipped_updates,
        }


def _freeze_output_head(policy: Policy) -> None:
    """Nothing reads the output head's own weights, which therefore get neither gradient nor decay.

    A head that is tied to the embeddings is trained as these.
    """
    head = policy.causal_lm.get_output_embeddings()
    embeddings = policy.causal_lm.get_input_embeddings()
    if head.weight is not embeddings.weight:
        head.requires_grad_(False)


def _rows_of(items: Items, micro: Rows) -> Rows:
    """The responses of items, each once, in the order of the data."""
    return tuple(sorted({row for item in micro for row in items.rows[item]}))


def _numbers(
    rewards_IK: torch.Tensor, outcomes_IK: torch.Tensor, mask_IK: torch.Tensor, loss: RewardLoss
) -> _Numbers:
    """Rewards by outcome, and of pairs the differences by kind."""
    right_IK = outcomes_IK > 0.5
    found = {
        "right": rewards_IK[mask_IK & right_IK].tolist(),
        "wrong": rewards_IK[mask_IK & ~right_IK].tolist(),
    }
    if loss.unit == "pairs":
        d_I, tie_I = rewards_IK[:, 0] - rewards_IK[:, 1], right_IK[:, 1]
        found |= {"margin": d_I[~tie_I].tolist(), "tie_gap": d_I[tie_I].abs().tolist()}
    return found


def _metrics(found: _Numbers) -> dict[str, float]:
    """Means over the step; what it has none of is left out."""
    names = {"right": "reward_right", "wrong": "reward_wrong"}
    metrics = {f"rm/{names.get(name, name)}": fmean(v) for name, v in found.items() if v}
    if found.get("margin"):
        metrics["rm/accuracy"] = fmean(0.5 if d == 0 else float(d > 0) for d in found["margin"])
    return metrics


def _joined(total: _Numbers, share: _Numbers) -> _Numbers:
    return {name: total.get(name, []) + share.get(name, []) for name in total | share}
