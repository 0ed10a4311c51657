"""Rows that are generated together, one token of each at a time.

Samples of one prompt share its prefill. Rows of several prompts are padded on the left. They leave
the batch as soon as they are finished, so that a long row does not run together with finished
ones. Keys and values are stored in buffers that grow by doubling
(:mod:`rlvr.rollout.growing_layer`).
"""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicCache

from rlvr.policy.model import Policy, names_taken
from rlvr.policy.routers import ANY, RoutingRequest
from rlvr.rollout.engine import Request, Sample
from rlvr.rollout.engine_trial import Caching
from rlvr.rollout.growing_layer import GrowingLayer
from rlvr.rollout.sampling import Sampling, draw, uniform_stream
from rlvr.types import FinishReason

Slot = tuple[int, int]
"""(request index, sample index) of a row."""


def batches(
    requests: Sequence[Request], max_rows: int, widths: Sequence[int]
) -> Iterator[list[Slot]]:
    """Rows sorted by prompt length, longest first, cut into batches; siblings stay adjacent.

    A batch ends where the width of its requests does.
    """
    order = sorted(range(len(requests)), key=lambda i: (-len(requests[i].prompt_ids), i))
    slots = [
        (request, sample) for request in order for sample in range(len(requests[request].seeds))
    ]
    of_slots = [widths[request] for request, _ in slots]
    start = 0
    while start < len(slots):
        same = of_slots[start : start + max_rows].count(of_slots[start])
        yield slots[start : start + same]
        start += same


class RunningBatch:
    """Rows generated together, from prefill until the last is finished."""

    leave_together: ClassVar[int] = 8
    """Finished rows leave once they make up one in this many; with 0 they stay."""

    def __init__(
        self,
        policy: Policy,
        stop_ids: Sequence[int],
        requests: Sequence[Request],
        slots: list[Slot],
        sampling: Sampling,
        caching: Caching,
    ) -> None:
        self.policy, self.sampling, self.slots = policy, sampling, slots
        self.taken = names_taken(policy.causal_lm) - policy.unused
        self.device = policy.device
        self.stop_ids = torch.tensor(stop_ids, device=self.device)
        self.cache = new_cache(policy, caching)
        streams = [uniform_stream(requests[r].seeds[s], sampling.max_tokens) for r, s in slots]
        self.uniforms = torch.from_numpy(np.stack(streams)).to(self.device)
        self.logits = self._prefill([requests[request].prompt_ids for request, _ in slots])
        self.tokens: list[torch.Tensor] = []
        self.logprobs: list[torch.Tensor] = []
        # Rows still running, as indices into ``slots``; tokens and logprobs keep all rows.
        self.active = torch.arange(len(slots), device=self.device)

    def _prefill(self, prompts: list[tuple[int, ...]]) -> torch.Tensor:
        """Run each distinct prompt once and repeat its cache for its rows; return the last logits
        [B, V]."""
        unique = list(dict.fromkeys(prompts))
        width = max(len(prompt) for prompt in unique)
        ids, mask = left_padded(unique, width, self.device)
        padded = any(len(prompt) < width for prompt in unique)
        logits = self._forward(ids, counted(mask), mask if padded else None)
        index = torch.tensor([unique.index(prompt) for prompt in prompts], device=self.device)
        self._select_cache(index)
        self.next_position = mask.sum(-1)[index]
        self.mask = mask[index] if padded else None
        return logits[index]

    def _forward(
        self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        inputs = {"position_ids": positions, "logits_to_keep": 1}
        name = "past_key_values" if "past_key_values" in self.taken else "cache_params"
        with self.policy.compute():
            output = self.policy.causal_lm(
                input_ids=ids,
                attention_mask=mask,
                use_cache=True,
                **{name: self.cache},
                **{key: value for key, value in inputs.items() if key in self.taken},
            )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def run(self) -> Iterator[tuple[int, int, Sample]]:
        """Generate to the end, yielding (request, sample, output) as rows finish."""
        done = self._idle()
        for step in range(self.sampling.max_tokens):
            tokens, logprobs = draw(self.logits, self.uniforms[self.active, step], self.sampling)
            self._record(tokens, logprobs)
            stopped = torch.isin(tokens, self.stop_ids) & ~done
            finished = ~done if step + 1 == self.sampling.max_tokens else stopped
            if bool(finished.any()):
                yield from self._finish(finished, stopped)
            done = done | finished
            if bool(done.all()):
                return
            # Removing rows copies the cache of the others, so several rows leave together.
            if int(done.sum()) * self.leave_together >= len(done):
                tokens, done = self._drop(~done, tokens), done[~done]
            self._step(tokens)

    def _idle(self) -> torch.Tensor:
        """Rows [B] that nobody asked for."""
        return torch.zeros_like(self.active, dtype=torch.bool)

    def _record(self, tokens: torch.Tensor, logprobs: torch.Tensor) -> None:
        for store, values in ((self.tokens, tokens), (self.logprobs, logprobs)):
            column = values.new_zeros(len(self.slots))
            column[self.active] = values
            store.append(column)

    def _finish(
        self, finished: torch.Tensor, stopped: torch.Tensor
    ) -> Iterator[tuple[int, int, Sample]]:
        rows = self.active[finished]
        tokens = torch.stack([column[rows] for column in self.tokens], dim=1).tolist()
        logprobs = torch.stack([column[rows] for column in self.logprobs], dim=1).tolist()
        reasons: list[FinishReason] = [
            "stop" if stop else "length" for stop in stopped[finished].tolist()
        ]
        for row, ids, values, reason in zip(rows.tolist(), tokens, logprobs, reasons, strict=True):
            request, sample = self.slots[row]
            yield request, sample, self._sample(row, tuple(ids), tuple(values), reason)

    def _sample(
        self, row: int, ids: tuple[int, ...], logprobs: tuple[float, ...], reason: FinishReason
    ) -> Sample:
        return Sample(ids, logprobs, reason)

    def _drop(self, keep: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        index = keep.nonzero()[:, 0]
        self.active, self.next_position = self.active[index], self.next_position[index]
        self.mask = None if self.mask is None else self.mask[index]
        self._select_cache(index)
        return tokens[index]

    def _select_cache(self, index: torch.Tensor) -> None:
        for layer in self.cache.layers:
            layer.reorder_cache(index)

    def _step(self, tokens: torch.Tensor) -> None:
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.logits = self._forward(tokens[:, None], self.next_position[:, None], self.mask)
        self.next_position = self.next_position + 1


def left_padded(
    prompts: Sequence[Sequence[int]], width: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask [B, width] of prompts that end at the last column."""
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def counted(mask: torch.Tensor) -> torch.Tensor:
    """Position ids [B, L] that begin behind the padding."""
    return (mask.cumsum(-1) - 1).clamp_min(0)


def new_cache(policy: Policy, caching: Caching) -> Cache:
    """An empty cache for a batch."""
    if caching.kind == "model":
        return DynamicCache(config=policy.causal_lm.config)
    return Cache(layer_class_to_replicate=GrowingLayer)


class UncachedBatch(RunningBatch):
    """Rows whose whole sequence is run for every token, laid out as the learner lays them out."""

    def _prefill(self, prompts: list[tuple[int, ...]]) -> torch.Tensor:
        width = max(map(len, prompts))
        rows = [[*prompt, *[0] * (width - len(prompt))] for prompt in prompts]
        self.ids = torch.tensor(rows, device=self.device)
        self.next_position = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        self.mask = None
        return self._last_logits()

    def _last_logits(self) -> torch.Tensor:
        columns = torch.arange(self.ids.shape[1], device=self.device)
        mask = (columns < self.next_position[:, None]).long()
        with self.policy.compute():
            hidden_RLD = self.policy.backbone(
                input_ids=self.ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp_min(0),
                use_cache=False,
            ).last_hidden_state
            last = hidden_RLD[torch.arange(len(self.ids)), self.next_position - 1]
            logits: torch.Tensor = self.policy.causal_lm.get_output_embeddings()(last)
        return logits * self.policy.logit_scale

    def _select_cache(self, index: torch.Tensor) -> None:
        self.ids = self.ids[index]

    def _step(self, tokens: torch.Tensor) -> None:
        if int(self.next_position.max()) == self.ids.shape[1]:
            self.ids = torch.cat([self.ids, torch.zeros_like(self.ids[:, :1])], dim=1)
        self.ids[torch.arange(len(tokens)), self.next_position] = tokens
        self.next_position = self.next_position + 1
        self.logits = self._last_logits()


class RoutedBatch(RunningBatch):
    """Rows that record the experts to which a mixture sends their tokens."""

    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401
        self.chosen: list[torch.Tensor] = []
        super().__init__(*arguments)

    def _prefill(self, prompts: list[tuple[int, ...]]) -> torch.Tensor:
        logits = super()._prefill(prompts)
        unique = list(dict.fromkeys(prompts))
        of_prompts = self.chosen.pop()
        # Padded on the left: a prompt's own positions are the last ones.
        self.of_prompt = [
            of_prompts[unique.index(prompt), of_prompts.shape[1] - len(prompt) :]
            for prompt in prompts
        ]
        return logits

    def _forward(
        self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        routers = self.policy.watch_routers()
        routers.begin(RoutingRequest())
        logits = super()._forward(ids, positions, mask)
        experts_PMK = routers.read(None).experts_NMK
        by_row = experts_PMK.view(*ids.shape, *experts_PMK.shape[1:]).to("cpu", torch.int16)
        if self.chosen or hasattr(self, "of_prompt"):  # one step: one position of each running row
            of_all = by_row.new_full((len(self.slots), *by_row.shape[2:]), ANY)
            of_all[self.active.cpu()] = by_row[:, 0]
            by_row = of_all
        self.chosen.append(by_row)
        return logits

    def _sample(
        self, row: int, ids: tuple[int, ...], logprobs: tuple[float, ...], reason: FinishReason
    ) -> Sample:
        steps = [of_all[row] for of_all in self.chosen[: len(ids) - 1]]
        experts = torch.cat(
            [self.of_prompt[row], torch.stack(steps)] if steps else [self.of_prompt[row]]
        )
        return Sample(ids, logprobs, reason, experts)
