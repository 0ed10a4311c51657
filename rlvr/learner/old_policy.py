"""What an update must know of the policy that it starts from.

One pass without gradient gives it all: log-probabilities where a rollout has several updates, the
entropies that a ranking of the whole step needs, and the proxy distributions of Lp-Reg. With one
update per rollout the old policy is the current one, so that the training pass itself gives what
depends on the token alone, and this pass is spared unless entropies are ranked.
"""

from dataclasses import replace
from typing import Any

import torch

from rlvr.learner.routing import experts_by_row
from rlvr.objective import Objective
from rlvr.policy import ModelInputs, ProxyRequest, ProxyRows, TokenStats
from rlvr.ranks import Ranks
from rlvr.types import Batch

Entries = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class OldPolicy:
    """Gathers a rollout's columns under the policy that its updates start from.

    Args:
        objective: Says what is needed.
        batch: The rollout; columns that are there already are not gathered again.
        moves: Whether the policy moves within the rollout: several updates.
        against_learner: Whether ratios are taken against the learner's own probabilities.
        values: Whether a critic's values are wanted, too.
        experts: Whether the choices of a mixture's routers are.
    """

    def __init__(
        self,
        objective: Objective,
        batch: Batch,
        *,
        moves: bool,
        against_learner: bool = True,
        values: bool = False,
        experts: bool = False,
    ) -> None:
        self._batch = batch
        self.filter = objective.noise_filter if moves and batch.log_kept_mass_BT is None else None
        sampled = batch.rollout_logprobs_BT is not None  # stand for those of an unmoved policy
        wanted = (moves and against_learner) or self.filter is not None
        wanted |= objective.needs_step_logprobs and not sampled
        self.logprobs = wanted and batch.old_logprobs_BT is None
        self.entropy = objective.needs_step_entropy and batch.old_entropy_BT is None
        self._divergence = self.filter is not None and objective.needs_proxy_kl
        empty = torch.zeros_like(batch.mask_BT)
        names = ["old_logprobs_BT"] * self.logprobs + ["old_entropy_BT"] * self.entropy
        names += ["log_kept_mass_BT", "kept_BT"] * (self.filter is not None)
        names += ["old_values_BT"] * values
        self._columns = {name: empty.clone() for name in names}
        self._rows: list[Entries | None] = [None] * len(batch)
        self.experts = experts and batch.experts is None
        self._experts: list[torch.Tensor | None] = [None] * len(batch)

    @property
    def needed(self) -> bool:
        """Whether there is anything to gather."""
        return bool(self._columns) or self.experts

    def request(self, inputs: ModelInputs) -> ProxyRequest | None:
        """What a micro-batch's pass must say of proxy distributions."""
        if self.filter is None:
            return None
        keep_at_N = None
        if self._divergence:  # a gate can open at tokens whose advantage is not zero alone
            advantages_BT = self._batch.advantages_BT[list(inputs.rows)].to(inputs.row_N.device)
            keep_at_N = advantages_BT[inputs.row_N, inputs.column_N] != 0
        return ProxyRequest(self.filter, keep_at_N=keep_at_N)

    def add(
        self, inputs: ModelInputs, stats: TokenStats, values_N: torch.Tensor | None = None
    ) -> None:
        """Take in a micro-batch's statistics and values."""
        found = {
            "old_logprobs_BT": stats.logprobs_N,
            "old_entropy_BT": stats.entropy_N,
            "log_kept_mass_BT": stats.log_kept_mass_N,
            "kept_BT": stats.kept_N,
            "old_values_BT": values_N,
        }
        for name, column_BT in self._columns.items():
            column_N = found[name]
            assert column_N is not None
            laid_out_BT = inputs.scatter(column_N.to(stats.logprobs_N), column_BT.shape[1])
            column_BT[list(inputs.rows)] = laid_out_BT.to(column_BT)
        if stats.proxy_rows is not None:
            for row, entries in zip(
                inputs.rows, _by_completion(inputs, stats.proxy_rows), strict=True
            ):
                self._rows[row] = entries
        if self.experts:
            lengths = [len(self._batch.prompt_ids[row]) for row in inputs.rows]
            for row, chosen in zip(
                inputs.rows, experts_by_row(stats, inputs, lengths), strict=True
            ):
                self._experts[row] = chosen

    def batch(self, ranks: Ranks) -> Batch:
        """The rollout with what all ranks gathered; collective."""
        fields: dict[str, Any] = {name: ranks.sum(c_BT) for name, c_BT in self._columns.items()}
        if self._divergence:
            fields["proxy_rows"] = self._rows_of_all(ranks)
        if self.experts:
            fields["experts"] = self._experts_of_all(ranks)
        return replace(self._batch, **fields)

    def _experts_of_all(self, ranks: Ranks) -> tuple[torch.Tensor, ...]:
        if ranks.count > 1:
            mine = {str(r): x.tolist() for r, x in enumerate(self._experts) if x is not None}
            for found in ranks.gather(mine):
                for row, chosen in found.items():
                    self._experts[int(row)] = torch.tensor(chosen, dtype=torch.int16)
        experts = tuple(chosen for chosen in self._experts if chosen is not None)
        assert len(experts) == len(self._batch), "every completion was run on some rank"
        return experts

    def _rows_of_all(self, ranks: Ranks) -> tuple[Entries, ...]:
        if ranks.count > 1:
            mine = {
                str(row): [column_S.tolist() for column_S in entries]
                for row, entries in enumerate(self._rows)
                if entries is not None
            }
            for found in ranks.gather(mine):
                for row, (columns, words, logprobs) in found.items():
                    dtype = self._batch.mask_BT.dtype
                    values = torch.tensor(logprobs, dtype=dtype)
                    places = torch.tensor([columns, words], dtype=torch.long)
                    self._rows[int(row)] = (places[0], places[1], values)
        rows = tuple(entries for entries in self._rows if entries is not None)
        assert len(rows) == len(self._batch), "every completion was run on some rank"
        return rows


def _by_completion(inputs: ModelInputs, rows: ProxyRows) -> list[Entries]:
    """Entries by completion of a micro-batch, positions as columns."""
    slot_S = inputs.row_N[rows.position_S]
    order = slot_S.argsort(stable=True)
    sizes = torch.bincount(slot_S, minlength=len(inputs.rows)).tolist()
    columns = (inputs.column_N[rows.position_S], rows.token_S, rows.logprob_S)
    parts = [column_S[order].cpu().split(sizes) for column_S in columns]
    return list(zip(*parts, strict=True))


def proxy_rows_of(inputs: ModelInputs, entries: tuple[Entries, ...]) -> ProxyRows:
    """The batch's entries as those of a micro-batch's N positions."""
    width = int(inputs.column_N.max()) + 1
    position_BT = torch.zeros(len(inputs.rows), width, dtype=torch.long)
    position_BT[inputs.row_N.cpu(), inputs.column_N.cpu()] = torch.arange(len(inputs.row_N))
    mine = [entries[row] for row in inputs.rows]
    position_S = torch.cat(
        [position_BT[slot, column_S] for slot, (column_S, _, _) in enumerate(mine)]
    )
    order = position_S.argsort(stable=True)
    columns = (position_S, torch.cat([e[1] for e in mine]), torch.cat([e[2] for e in mine]))
    device = inputs.row_N.device
    return ProxyRows(*(column_S[order].to(device) for column_S in columns))
