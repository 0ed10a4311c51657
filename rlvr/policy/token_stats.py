"""Log-probability, entropy and other statistics of given tokens, straight from hidden states.

This is the only place that turns hidden states into probabilities. The logits of a batch,
[tokens x vocabulary], are the largest tensor of an update by far (4096 tokens x 49k words in fp32
are 0.8 GB, and a plain softmax loss holds several of them), so they are formed C tokens at a time
and formed again in the backward pass. With z = h W^T / temperature and p = softmax(z):

    logprob  = z_y - logsumexp(z)               d logprob / dz = e_y - p
    entropy  = -sum_v p_v log p_v               d entropy / dz = -p (log p + entropy)

so one recomputed chunk yields all gradients in closed form; the first few chunks are kept instead,
which saves short batches their second pass. Whatever else a loss wants to read off p it brings
along as a :class:`~rlvr.objective.token_statistic.TokenStatistic`, which sees the same chunks.

On a GPU, passes without such a statistic can take a Triton kernel instead, whose logits never leave
the chip (``rlvr/policy/head_kernel.py``; ``rlvr/policy/head_choice.py`` chooses).

Not here: soft-capped or otherwise transformed logits (``Policy`` refuses such models at load).
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from rlvr.objective.token_statistic import SparseRows, TokenStatistic
from rlvr.policy.routers import Routing

# Logits in a chunk: enough to keep matrix multiplies efficient. 16 MiB in fp32 on a CPU, where more
# gains no speed and the C allocator keeps what larger buffers leave behind; 128 MiB on a GPU.
_CHUNK_LOGITS = {"cpu": 2**22}
_CHUNK_LOGITS_ELSEWHERE = 2**25
# Log-probabilities kept for the backward pass, 128 MiB in fp32: what fits is not formed again.
KEPT_LOGITS = 2**25
# Of a token whose logit is minus infinity, where entropies are taken: e^x is 0, and 0 x is too.
_LEAST_LOGPROB = -1e4


_NOTHING: Mapping[str, Any] = MappingProxyType({})


class TokenStats(NamedTuple):
    """Statistics of N tokens, in nats.

    ``logprobs_N`` and ``entropy_N`` carry gradients. ``columns`` [N] and ``sparse`` are what the
    statistics that were asked for found, by name. ``routing`` is what a mixture's routers did,
    where asked for.
    """

    logprobs_N: torch.Tensor
    entropy_N: torch.Tensor | None = None
    columns: Mapping[str, torch.Tensor] = _NOTHING
    sparse: Mapping[str, SparseRows] = _NOTHING
    routing: Routing | None = None


def token_stats(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_N: torch.Tensor,
    *,
    temperature: float = 1.0,
    bias_V: torch.Tensor | None = None,
    entropy: bool = False,
    statistics: Sequence[TokenStatistic] = (),
    chunk_tokens: int | None = None,
    logits: Literal["chunked", "kernel"] = "chunked",
) -> TokenStats:
    """Statistics of ``targets_N`` under softmax(hidden @ weight^T / temperature).

    Args:
        hidden_ND: Final hidden states at the positions that predict the targets.
        weight_VD: The output head.
        targets_N: Token ids.
        temperature: The sampling temperature, > 0; it enters here exactly as it entered sampling.
        bias_V: The head's bias, where it has one.
        entropy: Also return the entropy over the whole vocabulary.
        statistics: Also return what these read; made for this pass alone.
        chunk_tokens: C, tokens per chunk; None chooses by vocabulary size.
        logits: kernel reads log-probability and entropy by the Triton kernel, unless there are
            ``statistics`` or ``chunk_tokens``; all else is in chunks.

    Raises:
        ValueError: ``temperature`` is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature {temperature} is not positive; sample greedily elsewhere")
    if logits == "kernel" and not statistics and chunk_tokens is None:
        from rlvr.policy.head_kernel import head_logprobs_and_entropy

        hidden_ND = hidden_ND.to(_compute_dtype(hidden_ND))
        found = head_logprobs_and_entropy(
            hidden_ND, weight_VD, targets_N, temperature=temperature, bias_V=bias_V
        )
        return TokenStats(found[0], found[1] if entropy else None)
    chunk = chunk_tokens or default_chunk(weight_VD.shape[0], hidden_ND.device.type)
    room = KEPT_LOGITS // weight_VD.shape[0] if torch.is_grad_enabled() else 0
    readers = _Readers(statistics)
    logprobs_N, entropy_N, *columns = _ChunkedStats.apply(
        hidden_ND,
        weight_VD,
        bias_V,
        targets_N,
        temperature,
        entropy,
        readers,
        chunk,
        room,
    )
    return TokenStats(
        logprobs_N,
        entropy_N if entropy else None,
        dict(zip(readers.owners, columns, strict=True)),
        {name: rows for each in statistics for name, rows in each.sparse().items()},
    )


class TokenHead(nn.Module):
    """A model's output head, read through :func:`token_stats`.

    It holds the head's own parameters and is a module of its own because that is where an engine
    that shards parameters looks for the ones a computation needs, forward and backward.

    Args:
        head: The output head, a linear layer.

    Attributes:
        logits: What :func:`token_stats` is told.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.weight = head.weight
        self.bias = getattr(head, "bias", None)
        self.logits: Literal["chunked", "kernel"] = "chunked"

    def forward(
        self,
        hidden_ND: torch.Tensor,
        targets_N: torch.Tensor,
        **options: Any,  # noqa: ANN401
    ) -> TokenStats:
        """Statistics of ``targets_N``; options as :func:`token_stats`."""
        assert isinstance(self.weight, torch.Tensor)
        options = {"bias_V": self.bias, "logits": self.logits, **options}
        return token_stats(hidden_ND, self.weight, targets_N, **options)


def default_chunk(vocabulary: int, device: str) -> int:
    """Tokens whose logits are formed at once where nothing else is asked for."""
    return max(1, _CHUNK_LOGITS.get(device, _CHUNK_LOGITS_ELSEWHERE) // vocabulary)


def _compute_dtype(hidden: torch.Tensor) -> torch.dtype:
    """The dtype of the head's matrix multiply: autocast's where it is on, as nn.Linear does."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return hidden.dtype


def _log_softmax_chunk(
    hidden_CD: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    temperature: float,
) -> torch.Tensor:
    """log softmax of one chunk [C, V], in at least fp32, using one buffer."""
    logits_CV = torch.nn.functional.linear(hidden_CD, weight_VD, bias_V)
    logits_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
    if temperature != 1.0:
        logits_CV /= temperature
    logits_CV -= torch.logsumexp(logits_CV, dim=-1, keepdim=True)
    return logits_CV


class _Readers:
    """The statistics of a pass; ``owners`` says whose each column is, in order."""

    def __init__(self, statistics: Sequence[TokenStatistic]) -> None:
        self.statistics = statistics
        self.owners: dict[str, TokenStatistic] = {}
        self._chunks: dict[str, list[torch.Tensor]] = {}

    def read(self, logp_CV: torch.Tensor, logprobs_C: torch.Tensor, start: int) -> None:
        """Take in a chunk."""
        for each in self.statistics:
            for name, column_C in each.read(logp_CV, logprobs_C, start).items():
                assert self.owners.setdefault(name, each) is each, f"{name} is read twice"
                self._chunks.setdefault(name, []).append(column_C)

    def columns(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """All columns [N], and those of them that carry no gradient; chunks are let go."""
        columns = {name: torch.cat(chunks) for name, chunks in self._chunks.items()}
        self._chunks = {}
        constant = [n for n in columns if n not in self.owners[n].differentiable]
        return list(columns.values()), [columns[name] for name in constant]

    def gradients(
        self, grads_N: Sequence[torch.Tensor | None], logp_CV: torch.Tensor, start: int
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Of each column that has one, its gradient by a chunk's logits."""
        part = slice(start, start + len(logp_CV))
        return [
            each.gradient(name, grad_N[part], logp_CV, start)
            for (name, each), grad_N in zip(self.owners.items(), grads_N, strict=True)
            if grad_N is not None
        ]


class _ChunkedStats(torch.autograd.Function):
    """The chunked forward and its closed-form backward; formulas in the module docstring."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_N: torch.Tensor,
        temperature: float,
        entropy: bool,
        readers: _Readers,
        chunk: int,
        room: int,
    ) -> tuple[torch.Tensor, ...]:
        dtype = _compute_dtype(hidden_ND)
        device = hidden_ND.device.type
        statistics_dtype = torch.promote_types(dtype, torch.float32)
        count = targets_N.shape[0]
        logprobs_N = hidden_ND.new_empty(count, dtype=statistics_dtype)
        entropy_N = torch.empty_like(logprobs_N) if entropy else logprobs_N.new_empty(0)
        weight, bias = weight_VD.to(dtype), None if bias_V is None else bias_V.to(dtype)
        ctx.kept_chunks, ctx.impossible = {}, False
        with torch.autocast(device, enabled=False):
            for start in range(0, max(1, count), chunk):  # columns are named even where N is 0
                part = slice(start, start + chunk)
                logp_CV = _log_softmax_chunk(hidden_ND[part].to(dtype), weight, bias, temperature)
                if start + len(logp_CV) <= room:
                    ctx.kept_chunks[start] = logp_CV
                logprobs_N[part] = logp_CV.gather(-1, targets_N[part, None])[:, 0]
                readers.read(logp_CV, logprobs_N[part], start)
                if entropy:
                    entropy_C = _entropy(logp_CV)
                    if bool(entropy_C.isnan().any()):  # 0 times the infinity of impossible tokens
                        ctx.impossible = True
                        entropy_C = _entropy(logp_CV.clamp_min_(_LEAST_LOGPROB))
                    entropy_N[part] = entropy_C
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N, entropy_N)
        ctx.temperature, ctx.chunk, ctx.dtype, ctx.entropy = temperature, chunk, dtype, entropy
        ctx.readers = readers
        columns, constants = readers.columns()
        ctx.mark_non_differentiable(*constants)
        ctx.set_materialize_grads(False)
        return logprobs_N, entropy_N, *columns

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        grad_logprobs_N: torch.Tensor | None,
        grad_entropy_N: torch.Tensor | None,
        *grads_N: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, targets_N, entropy_N = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        if not ctx.entropy:
            grad_entropy_N = None
        grad_hidden = torch.zeros_like(hidden_ND) if needs_hidden else None
        grad_weight: torch.Tensor | None = None
        grad_bias = torch.zeros_like(bias_V) if needs_bias else None
        asked = any(grad is not None for grad in (grad_logprobs_N, grad_entropy_N, *grads_N))
        weight = weight_VD.to(ctx.dtype)
        # Added up over chunks in float32 at least, and rounded once.
        total_dtype = torch.promote_types(weight_VD.dtype, torch.float32)
        bias = None if bias_V is None else bias_V.to(ctx.dtype)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for start in range(0, targets_N.shape[0] if asked else 0, ctx.chunk):
                part = slice(start, start + ctx.chunk)
                hidden_CD = hidden_ND[part].to(ctx.dtype)
                # Used up: it is overwritten below.
                logp_CV = ctx.kept_chunks.pop(start, None)
                if logp_CV is None:
                    logp_CV = _log_softmax_chunk(hidden_CD, weight, bias, ctx.temperature)
                if ctx.impossible:
                    logp_CV.clamp_min_(_LEAST_LOGPROB)
                others = ctx.readers.gradients(grads_N, logp_CV, start)
                grad_CV = _logit_gradient(
                    logp_CV,
                    targets_N[part],
                    None if grad_logprobs_N is None else grad_logprobs_N[part],
                    None if grad_entropy_N is None else grad_entropy_N[part],
                    entropy_N[part],
                )
                for index_R, gradient_RV in others:
                    grad_CV.index_add_(0, index_R, gradient_RV)
                if ctx.temperature != 1.0:
                    grad_CV /= ctx.temperature
                grad_CV = grad_CV.to(ctx.dtype)
                if grad_hidden is not None:
                    grad_hidden[part] = grad_CV @ weight
                if needs_weight:
                    grad_weight = _add_product(grad_weight, grad_CV, hidden_CD, total_dtype)
                if grad_bias is not None:
                    grad_bias += grad_CV.sum(0)
        if needs_weight and grad_weight is None:
            grad_weight = torch.zeros_like(weight_VD)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight_VD.dtype)
        return grad_hidden, grad_weight, grad_bias, *(None,) * 6


def _entropy(logp_CV: torch.Tensor) -> torch.Tensor:
    return -logp_CV.exp().mul_(logp_CV).sum(-1)


def _logit_gradient(
    logp_CV: torch.Tensor,
    targets_C: torch.Tensor,
    grad_logprobs_C: torch.Tensor | None,
    grad_entropy_C: torch.Tensor | None,
    entropy_C: torch.Tensor,
) -> torch.Tensor:
    """Gradient of log-probability and entropy by z, [C, V]; ``logp_CV`` may be overwritten."""
    if grad_logprobs_C is None and grad_entropy_C is None:
        return torch.zeros_like(logp_CV)
    p_CV = logp_CV.exp()
    if grad_entropy_C is None:
        assert grad_logprobs_C is not None
        grad_CV = p_CV.mul_(-grad_logprobs_C[:, None])
    else:
        # -g_H p (log p + H) - g_l p  =  -p (g_H (log p + H) + g_l)
        factor_CV = logp_CV.add_(entropy_C[:, None]).mul_(grad_entropy_C[:, None])
        if grad_logprobs_C is not None:
            factor_CV += grad_logprobs_C[:, None]
        grad_CV = p_CV.mul_(factor_CV).neg_()
    if grad_logprobs_C is not None:
        grad_CV.scatter_add_(-1, targets_C[:, None], grad_logprobs_C[:, None])
    return grad_CV


def _add_product(
    total_VD: torch.Tensor | None,
    grad_CV: torch.Tensor,
    hidden_CD: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """total + grad^T hidden in ``dtype``, in place where that can be; None is 0, never filled."""
    if total_VD is None:
        return (grad_CV.T @ hidden_CD).to(dtype)
    if dtype == grad_CV.dtype:
        return total_VD.addmm_(grad_CV.T, hidden_CD)
    return total_VD.add_(grad_CV.T @ hidden_CD)
