"""Generation with the learner's own module: exact, no second copy of the weights, no sync.

Samples of one prompt share its prefill. Rows are batched by prompt length, padded on the left, and
leave the batch as soon as they are finished, so that a long straggler runs alone rather than beside
finished rows. Keys and values live in buffers that grow by doubling: appending a token writes one
column instead of copying the whole cache.

Left out: continuous refilling and paged memory, which is what vLLM is for.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from transformers.cache_utils import Cache, DynamicLayer

from rlvr.policy import Policy, RoutingRequest
from rlvr.policy.routers import ANY
from rlvr.rollout.engine import Assembly, Engine, Finished, Progress, Request, Sample
from rlvr.rollout.sampling import Sampling, draw, uniform_stream
from rlvr.settings import Settings
from rlvr.types import FinishReason


class TransformersEngineSettings(Settings):
    """Generate with the learner's own weights through transformers."""

    name: Literal["transformers"] = "transformers"
    max_rows: int = Field(256, ge=1)
    """Most completions generated side by side."""

    @property
    def overlaps(self) -> bool:
        """No: it generates with the very weights that are being updated."""
        return False


class TransformersEngine(Engine):
    """An :class:`~rlvr.rollout.engine.Engine` over a policy in this process.

    Args:
        policy: The learner's policy; its current weights are used at every call.
        stop_ids: Token ids that end a completion.
        settings: Batch size.

    Attributes:
        keeps_experts: Have every sample tell which experts of a mixture its tokens went to.
    """

    overlaps = False

    def __init__(
        self,
        policy: Policy,
        stop_ids: Sequence[int],
        settings: TransformersEngineSettings | None = None,
    ) -> None:
        self.policy = policy
        self.stop_ids = tuple(stop_ids)
        self.settings = settings or TransformersEngineSettings()
        self.keeps_experts = False
        self._version = 0

    @property
    def policy_version(self) -> int:
        """Version of the weights, as it was published last."""
        return self._version

    def publish(self, policy: Policy, version: int) -> dict[str, float]:
        """Note the version; the weights are the learner's own and need no copying."""
        assert policy is self.policy, "this engine generates with the policy it was made for"
        self._version = version
        return {}

    def load(self) -> dict[str, float]:
        """Nothing to do: the weights are the learner's own."""
        return {}

    def close(self) -> None:
        """Nothing to free: the weights belong to the learner."""

    @torch.no_grad()
    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        progress: Progress | None = None,
        finished: Finished | None = None,
    ) -> list[list[Sample]]:
        """See :class:`~rlvr.rollout.engine.Engine`.

        Raises:
            ValueError: A prompt leaves no room for a token in the model's context.
        """
        self._check_context(requests, sampling)
        assembly = Assembly(requests, progress, finished)
        training = self.policy.training
        self.policy.eval()
        try:
            for slots in _batches(requests, self.settings.max_rows):
                kind = _RoutedBatch if self.keeps_experts else _RunningBatch
                batch = kind(self.policy, self.stop_ids, requests, slots, sampling)
                for request, sample, output in batch.run():
                    assembly.add(request, sample, output)
        finally:
            self.policy.train(training)
        return assembly.outputs

    def _check_context(self, requests: Sequence[Request], sampling: Sampling) -> None:
        limit = self.policy.context_length
        longest = max((len(request.prompt_ids) for request in requests), default=0)
        if limit is not None and longest + sampling.max_tokens > limit:
            raise ValueError(
                f"a prompt of {longest} tokens with max_tokens {sampling.max_tokens} exceeds the "
                f"model's context of {limit}; lower max_tokens or data.max_prompt_tokens"
            )


Slot = tuple[int, int]
"""(request index, sample index) of a row."""

# Finished rows leave the batch once they are one in this many.
_LEAVE_TOGETHER = 8


def _batches(requests: Sequence[Request], max_rows: int) -> Iterator[list[Slot]]:
    """Rows sorted by prompt length, longest first, cut into batches; siblings stay adjacent."""
    order = sorted(range(len(requests)), key=lambda i: (-len(requests[i].prompt_ids), i))
    slots = [
        (request, sample) for request in order for sample in range(len(requests[request].seeds))
    ]
    for start in range(0, len(slots), max_rows):
        yield slots[start : start + max_rows]


class _RunningBatch:
    """Rows generated side by side, from prefill until the last is finished."""

    def __init__(
        self,
        policy: Policy,
        stop_ids: Sequence[int],
        requests: Sequence[Request],
        slots: list[Slot],
        sampling: Sampling,
    ) -> None:
        self.policy, self.sampling, self.slots = policy, sampling, slots
        self.device = policy.device
        self.stop_ids = torch.tensor(stop_ids, device=self.device)
        self.cache = Cache(layer_class_to_replicate=GrowingLayer)
        streams = [uniform_stream(requests[r].seeds[s], sampling.max_tokens) for r, s in slots]
        self.uniforms = torch.from_numpy(np.stack(streams)).to(self.device)
        self.logits = self._prefill([requests[request].prompt_ids for request, _ in slots])
        self.tokens: list[torch.Tensor] = []
        self.logprobs: list[torch.Tensor] = []
        # Rows still running, as indices into ``slots``; tokens and logprobs keep all rows.
        self.active = torch.arange(len(slots), device=self.device)

    def _prefill(self, prompts: list[tuple[int, ...]]) -> torch.Tensor:
        """Run each distinct prompt once, then repeat its cache for its rows; last logits [B, V]."""
        unique = list(dict.fromkeys(prompts))
        width = max(len(prompt) for prompt in unique)
        ids = torch.zeros(len(unique), width, dtype=torch.long)
        mask = torch.zeros(len(unique), width, dtype=torch.long)
        for row, prompt in enumerate(unique):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        mask = mask.to(self.device)
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        padded = any(len(prompt) < width for prompt in unique)
        logits = self._forward(ids.to(self.device), positions, mask if padded else None)
        index = torch.tensor([unique.index(prompt) for prompt in prompts], device=self.device)
        self._select_cache(index)
        self.next_position = mask.sum(-1)[index]
        self.mask = mask[index] if padded else None
        return logits[index]

    def _forward(
        self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        with self.policy.compute():
            output = self.policy.causal_lm(
                input_ids=ids,
                position_ids=positions,
                attention_mask=mask,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def run(self) -> Iterator[tuple[int, int, Sample]]:
        """Generate to the end, yielding (request, sample, output) as rows finish."""
        done = torch.zeros_like(self.active, dtype=torch.bool)
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
            # Leaving the batch copies the cache of those who stay, so rows leave together.
            if int(done.sum()) * _LEAVE_TOGETHER >= len(done):
                tokens, done = self._drop(~done, tokens), done[~done]
            self._step(tokens)

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
            layer.batch_select_indices(index)

    def _step(self, tokens: torch.Tensor) -> None:
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.logits = self._forward(tokens[:, None], self.next_position[:, None], self.mask)
        self.next_position = self.next_position + 1


class _RoutedBatch(_RunningBatch):
    """Rows that keep the experts to which a mixture sends their tokens."""

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
        if self.chosen or hasattr(self, "of_prompt"):  # a step: one position of each running row
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


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer in buffers that double when full."""

    def __init__(self, **_: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.length = 0

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [B, heads, new, head size] and return views of all so far."""
        start, self.length = self.length, self.length + key_states.shape[2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys = self.values = None
        self.keys = self._append(self.keys, key_states, start)
        self.values = self._append(self.values, value_states, start)
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def _append(
        self, buffer: torch.Tensor | None, states: torch.Tensor, start: int
    ) -> torch.Tensor:
        if buffer is None or buffer.shape[2] < self.length:
            batch, heads, _, size = states.shape
            grown = states.new_empty(batch, heads, max(2 * start, self.length + 32), size)
            if buffer is not None:
                grown[:, :, :start] = buffer[:, :, :start]
            buffer = grown
        buffer[:, :, start : self.length] = states
        return buffer

    def get_seq_length(self) -> int:
        """Positions held."""
        return self.length

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep (or repeat) rows; the copy is of the filled part only."""
        self._map(lambda filled: filled.index_select(0, indices))

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        for name in ("keys", "values"):
            buffer = getattr(self, name)
            filled = function(buffer[:, :, : self.length])
            grown = filled.new_empty(*filled.shape[:2], buffer.shape[2], filled.shape[3])
            grown[:, :, : self.length] = filled
            setattr(self, name, grown)
