"""The routers of a mixture-of-experts policy in the update: their losses, their choices, replay.

Equations: ``rlvr/objective/router_loss.py``; reading and replay: ``rlvr/policy/routers.py``. The
expert shares that the balance loss is relative to are those of the whole optimizer step, under its
own weights: one pass without gradient takes them first, unless the step replays choices, which give
them for nothing.

Column: ``experts`` holds for each completion the choices [P, M, K] of the engine or of the old
policy, at all positions of prompt and completion but the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from rlvr.lazy import torch
from rlvr.learner.methods.hook import Hook
from rlvr.learner.settings import POLICY
from rlvr.objective.reducers import Counts, TokenMean
from rlvr.objective.router_loss import (
    balance_terms,
    choices_differ,
    entropy_terms,
    expert_counts,
    load_shares,
    z_terms,
)
from rlvr.settings import Settings
from rlvr.types import Batch

if TYPE_CHECKING:
    from rlvr.learner.passes import MicroBatch, Passes
    from rlvr.policy.batching import ModelInputs
    from rlvr.policy.model import Policy
    from rlvr.policy.routers import Routing
    from rlvr.ranks import Ranks


class RouterSettings(Settings):
    """The routers of a mixture-of-experts policy."""

    balance: float = Field(0.01, ge=0)
    """Weight of the load-balancing loss. Above 0 every optimizer step begins with a forward pass
    without gradient that counts where tokens go."""
    z: float = Field(0.001, ge=0)
    """Weight of the squared log-partition of router logits."""
    against: Literal["none", "old", "engine"] = "none"
    """Whose choices of experts the update's are compared with: the policy's at the start of the
    rollout's updates, or those that the engine made as it sampled (engine transformers)."""
    replay: bool = False
    """Send tokens to the experts of ``against`` instead, so that the policy's probabilities move
    with its weights alone and not with the choice."""

    @property
    def trains(self) -> bool:
        """Whether tokens of advantage zero have a gradient through it."""
        return self.balance > 0 or self.z > 0

    @property
    def needs_engine(self) -> bool:
        """Whether the engine must say where it sent tokens."""
        return self.against == "engine"


class RouterHook(Hook):
    """Reads the routers of a policy during its updates.

    Args:
        policy: A mixture of experts.
        settings: What to do.

    Raises:
        ValueError: The policy is no mixture of experts of a known kind.
    """

    name = "router"
    trains = POLICY

    def __init__(self, policy: Policy, settings: RouterSettings) -> None:
        self.settings = settings
        self.every_row, self.needs_experts = settings.trains, settings.needs_engine
        self.routers = policy.watch_routers()
        self.share_ME = load_shares(self._no_counts())
        self.counts_ME = self._no_counts()

    def reads_old(self, batch: Batch) -> bool:
        """The choices at all positions, where the update's are compared with them."""
        return self.settings.against == "old" and "experts" not in batch.columns

    def read_old(self, micro: MicroBatch) -> dict[str, Any]:
        """Choices [prompt + completion - 1, M, K] of each completion."""
        from rlvr.policy.routers import sequence_positions

        chosen_PMK = _routing_of(micro).experts_NMK
        where = sequence_positions(micro.inputs, [len(p) for p in micro.batch.prompt_ids])
        return {"experts": [chosen_PMK[own].to("cpu", torch.int16) for own in where]}

    def options(self, batch: Batch, inputs: ModelInputs) -> dict[str, Any]:
        """What a pass must say of its routing, and what it replays."""
        from rlvr.policy.routers import RoutingRequest, replayed

        if self.reads_old(batch):
            return {"routing": RoutingRequest(everywhere=True)}
        if not self.settings.replay or "experts" not in batch.columns:
            return {"routing": RoutingRequest()}
        lengths = [len(batch.prompt_ids[row]) for row in inputs.rows]
        rows = [batch.columns["experts"][row] for row in inputs.rows]
        return {"routing": RoutingRequest(replay_PMK=replayed(inputs, lengths, rows))}

    def begin_step(self, batch: Batch, rows: Sequence[int], passes: Passes) -> None:
        """Take the shares [M, E] of the step's tokens that each expert gets."""
        if not self.settings.balance:
            return
        counts_ME = self._known_load(batch, rows)
        if counts_ME is None:
            counts_ME = passes.ranks.sum(self._counted(batch, rows, passes))
        self.share_ME = load_shares(counts_ME)

    def begin_attempt(self) -> None:
        """Count anew."""
        self.counts_ME = self._no_counts()

    def add_loss(
        self, loss: torch.Tensor, micro: MicroBatch, counts: Counts, measured: Counts
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The routers' losses."""
        routing, batch = _routing_of(micro), micro.batch
        known_ME = self._known_load(batch, range(len(batch)))
        self.counts_ME += self._count(micro) if known_ME is None else known_ME
        logits_NME = routing.logits_NME
        balance_N, z_N = balance_terms(logits_NME, self.share_ME), z_terms(logits_NME)
        terms = {"router/z": z_N, "router/entropy": entropy_terms(logits_NME)}
        if self.settings.balance:  # else nobody took the shares
            terms["router/balance"] = balance_N
        differ_N = self._differ(routing, micro)
        if differ_N is not None:
            terms["router/changed"] = differ_N
        mask_BT = batch.mask_BT.to(logits_NME.device)
        weights_BT, mean_BT = (TokenMean().weights(mask_BT, c) for c in (counts, measured))
        metrics = {
            name: float((mean_BT * micro.scatter(value_N).detach()).sum())
            for name, value_N in terms.items()
        }
        loss_BT = micro.scatter(self.settings.balance * balance_N + self.settings.z * z_N)
        return loss + (weights_BT.to(loss_BT) * loss_BT).sum(), metrics

    def end_step(self, ranks: Ranks) -> dict[str, float]:
        """How evenly the step's tokens went to experts."""
        share_ME = load_shares(ranks.sum(self.counts_ME))
        relative_ME = share_ME * share_ME.shape[-1]
        return {
            "router/load_max": float(relative_ME.max()),
            "router/load_min": float(relative_ME.min()),
            "router/unused": float((relative_ME == 0).double().mean()),
        }

    def _known_load(self, batch: Batch, rows: Sequence[int]) -> torch.Tensor | None:
        """Counts [M, E] of rows that replay known choices; None where they have to be taken."""
        if not self.settings.replay or "experts" not in batch.columns:
            return None
        counts_ME = self._no_counts()
        for row in rows:
            predicting_NMK = batch.columns["experts"][row][len(batch.prompt_ids[row]) - 1 :]
            counts_ME += expert_counts(predicting_NMK, self.routers.experts)
        return counts_ME

    def _counted(self, batch: Batch, rows: Sequence[int], passes: Passes) -> torch.Tensor:
        """Counts [M, E] of this rank's rows, by a pass under the present weights."""
        from rlvr.policy.routers import RoutingRequest

        counts_ME = self._no_counts()

        def visit(micro: MicroBatch) -> None:
            counts_ME.add_(self._count(micro))

        passes.read(batch, visit, rows=rows, routing=RoutingRequest())
        return counts_ME

    def _count(self, micro: MicroBatch) -> torch.Tensor:
        """Choices [M, E] of a pass, on the CPU."""
        return expert_counts(_routing_of(micro).experts_NMK, self.routers.experts).cpu()

    def _differ(self, routing: Routing, micro: MicroBatch) -> torch.Tensor | None:
        """Share [N] of layers at which the routers prefer other experts than those known."""
        batch, inputs = micro.batch, micro.inputs
        if "experts" not in batch.columns:
            return None
        known = [
            chosen[len(prompt) - 1 :]
            for chosen, prompt in zip(batch.columns["experts"], batch.prompt_ids, strict=True)
        ]
        known_NMK = torch.cat(
            [known[slot][: int((inputs.row_N == slot).sum())] for slot in range(len(known))]
        ).to(inputs.row_N.device)
        # Positions stand by row and column there, in the order of the layout here.
        order_N = torch.argsort(inputs.row_N * (batch.mask_BT.shape[1] + 1) + inputs.column_N)
        laid_out_NMK = torch.empty_like(known_NMK)
        laid_out_NMK[order_N] = known_NMK
        return choices_differ(routing.experts_NMK, laid_out_NMK).to(routing.logits_NME.device)

    def _no_counts(self) -> torch.Tensor:
        return torch.zeros(len(self.routers.modules), self.routers.experts, dtype=torch.float64)


def _routing_of(micro: MicroBatch) -> Routing:
    routing = micro.outputs.stats.routing
    assert routing is not None
    return routing
