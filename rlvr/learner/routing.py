"""The routers of a mixture-of-experts policy in the update: their losses, their choices, replay.

Equations: ``rlvr/objective/router_loss.py``; reading and replay: ``rlvr/policy/routers.py``. The
expert shares that the balance loss is relative to are those of the whole optimizer step, under its
own weights: one pass without gradient takes them first, unless the step replays choices, which give
them for nothing.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field

from rlvr.objective import Counts, TokenMean
from rlvr.objective.router_loss import (
    balance_terms,
    choices_differ,
    entropy_terms,
    expert_counts,
    load_shares,
    z_terms,
)
from rlvr.policy import (
    ModelInputs,
    Policy,
    Routing,
    RoutingRequest,
    TokenStats,
    replayed,
    sequence_positions,
)
from rlvr.ranks import Ranks
from rlvr.settings import Settings
from rlvr.types import Batch

READ = RoutingRequest()
READ_EVERYWHERE = RoutingRequest(everywhere=True)


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


class RouterTraining:
    """Reads the routers of a policy during its updates.

    Args:
        policy: A mixture of experts.
        settings: What to do.

    Raises:
        ValueError: The policy is no mixture of experts of a known kind.
    """

    def __init__(self, policy: Policy, settings: RouterSettings) -> None:
        self.settings = settings
        self.routers = policy.watch_routers()
        self.share_ME = load_shares(self._no_counts())
        self.counts_ME = self._no_counts()

    @property
    def gathers_old(self) -> bool:
        """Whether the pass of the old policy is to keep the choices at all positions."""
        return self.settings.against == "old"

    def request(self, inputs: ModelInputs, batch: Batch) -> RoutingRequest:
        """What a pass of the update must say of its routing, and what it replays."""
        if not self.settings.replay or batch.experts is None or not inputs.rows:
            return READ
        lengths = [len(batch.prompt_ids[row]) for row in inputs.rows]
        rows = [batch.experts[row] for row in inputs.rows]
        return RoutingRequest(replay_PMK=replayed(inputs, lengths, rows))

    def known_load(self, batch: Batch, rows: Sequence[int]) -> torch.Tensor | None:
        """Counts [M, E] of a step that replays known choices; None where they have to be taken."""
        if not self.settings.replay or batch.experts is None:
            return None
        counts_ME = self._no_counts()
        for row in rows:
            predicting_NMK = batch.experts[row][len(batch.prompt_ids[row]) - 1 :]
            counts_ME += expert_counts(predicting_NMK, self.routers.experts)
        return counts_ME

    def count(self, stats: TokenStats) -> torch.Tensor:
        """Choices [M, E] of a pass, on the CPU."""
        assert stats.routing is not None
        return expert_counts(stats.routing.experts_NMK, self.routers.experts).cpu()

    def begin(self) -> None:
        """A step's micro-batches begin, possibly once more."""
        self.counts_ME = self._no_counts()

    def loss(
        self,
        stats: TokenStats,
        inputs: ModelInputs,
        columns: Batch,
        counts: Counts,
        measured: Counts,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """A micro-batch's share of the step's router losses, and of their metrics."""
        assert stats.routing is not None
        known_ME = self.known_load(columns, range(len(columns)))
        self.counts_ME += self.count(stats) if known_ME is None else known_ME
        logits_NME = stats.routing.logits_NME
        balance_N, z_N = balance_terms(logits_NME, self.share_ME), z_terms(logits_NME)
        terms = {"router/z": z_N, "router/entropy": entropy_terms(logits_NME)}
        if self.settings.balance:  # else nobody took the shares
            terms["router/balance"] = balance_N
        differ_N = self._differ(stats.routing, inputs, columns)
        if differ_N is not None:
            terms["router/changed"] = differ_N
        mask_BT = columns.mask_BT.to(logits_NME.device)
        laid_out = {n: inputs.scatter(v_N, mask_BT.shape[1]) for n, v_N in terms.items()}
        weights_BT, mean_BT = (TokenMean().weights(mask_BT, c) for c in (counts, measured))
        metrics = {n: float((mean_BT * v_BT.detach()).sum()) for n, v_BT in laid_out.items()}
        loss_N = self.settings.balance * balance_N + self.settings.z * z_N
        loss_BT = inputs.scatter(loss_N, mask_BT.shape[1])
        return (weights_BT.to(loss_BT) * loss_BT).sum(), metrics

    def metrics(self, ranks: Ranks) -> dict[str, float]:
        """How evenly the step's tokens went to experts; collective."""
        share_ME = load_shares(ranks.sum(self.counts_ME))
        relative_ME = share_ME * share_ME.shape[-1]
        return {
            "router/load_max": float(relative_ME.max()),
            "router/load_min": float(relative_ME.min()),
            "router/unused": float((relative_ME == 0).double().mean()),
        }

    def _differ(self, routing: Routing, inputs: ModelInputs, columns: Batch) -> torch.Tensor | None:
        """Share [N] of layers at which the routers prefer other experts than those known."""
        if columns.experts is None:
            return None
        known = [
            chosen[len(prompt) - 1 :]
            for chosen, prompt in zip(columns.experts, columns.prompt_ids, strict=True)
        ]
        known_NMK = torch.cat(
            [known[slot][: int((inputs.row_N == slot).sum())] for slot in range(len(known))]
        ).to(inputs.row_N.device)
        # Positions stand by row and column there, in the order of the layout here.
        order_N = torch.argsort(inputs.row_N * (columns.mask_BT.shape[1] + 1) + inputs.column_N)
        laid_out_NMK = torch.empty_like(known_NMK)
        laid_out_NMK[order_N] = known_NMK
        return choices_differ(routing.experts_NMK, laid_out_NMK).to(routing.logits_NME.device)

    def _no_counts(self) -> torch.Tensor:
        return torch.zeros(len(self.routers.modules), self.routers.experts, dtype=torch.float64)


def experts_by_row(
    stats: TokenStats, inputs: ModelInputs, prompt_lengths: Sequence[int]
) -> list[torch.Tensor]:
    """Choices [prompt + completion - 1, M, K] of each row, from a pass that read everywhere."""
    assert stats.routing is not None
    chosen_PMK = stats.routing.experts_NMK
    where = sequence_positions(inputs, prompt_lengths)
    return [chosen_PMK[own].to("cpu", torch.int16) for own in where]
