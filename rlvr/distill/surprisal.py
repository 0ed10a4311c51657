"""How improbable a student finds the tokens of traces, the bottleneck that the paper identifies.

The surprisal of a token y in context c is -log p(y | c) in nats, where p is the student's
distribution at temperature 1 over its whole vocabulary. Traces are forced through the student with
their prompts; only the trace's tokens count, including the end token (Kim et al., arXiv:2509.22230;
docs/methods/sft.md). Measure with the student that will learn from the traces, *before* it is
trained on them.

A token counts as improbable if p < ``threshold``. In a trace made by reverse speculative decoding,
no token that the teacher wrote is improbable under the student that judged it; some tokens that the
student wrote itself may be.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from rlvr.data.demonstrations import Demonstration, load_demonstrations
from rlvr.data.templates import load_template
from rlvr.files import write_atomically
from rlvr.policy.loading import load_policy, load_tokenizer
from rlvr.policy.model import Policy
from rlvr.policy.responses import response_logprobs
from rlvr.policy.settings import ModelSettings
from rlvr.policy.vocabulary import check_token_ids

QUANTILES = (0.5, 0.9, 0.99, 0.999)
_WRITERS = {"t": "teacher", "s": "student"}


@dataclass(frozen=True, slots=True)
class Figures:
    """Surprisal of a set of tokens.

    ``improbable`` is the share of tokens with a probability below the threshold, ``nll`` the mean
    and ``quantiles`` the quantiles of the surprisal, both in nats.
    """

    tokens: int
    improbable: float
    nll: float
    most: float
    quantiles: dict[str, float]


@dataclass(frozen=True, slots=True)
class Position:
    """Tokens at positions ``start`` to ``stop`` (excluded) of their traces."""

    start: int
    stop: int
    tokens: int
    improbable: float
    nll: float


@dataclass(frozen=True, slots=True)
class ImprobableToken:
    """A token of the vocabulary: how often it was improbable, and how often it occurs."""

    token: int
    text: str
    improbable: int
    count: int
    nll: float


@dataclass(frozen=True, slots=True)
class Surprisal:
    """The surprisal of a set of traces under a student.

    ``by_writer`` groups the tokens by who wrote them, if the traces say so. ``positions`` is the
    curve along the trace, ``most_improbable`` are the tokens that are improbable most often.
    """

    traces: int
    threshold: float
    all: Figures
    by_writer: dict[str, Figures]
    positions: tuple[Position, ...]
    most_improbable: tuple[ImprobableToken, ...]


@dataclass(frozen=True, slots=True)
class ScoredTraces:
    """Traces and the log-probability [T_i] of each of their tokens under a student."""

    traces: tuple[Demonstration, ...]
    logprobs: tuple[torch.Tensor, ...]
    tokenizer: Any


def score_traces(
    sources: Sequence[Path],
    student: str,
    *,
    template: str = "raw",
    reencode: bool = False,
    tokens_per_micro_batch: int = 4096,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ScoredTraces:
    """Force traces through a student.

    Args:
        sources: Files of traces or of other demonstrations (``rlvr/data/demonstrations.py``).
        student: Folder or Hub id.
        template: How the prompt of a text row becomes tokens; traces hold theirs as ids.
        reencode: Encode the traces' text with the student's tokenizer, because their ids belong to
            another.
        tokens_per_micro_batch: Maximum number of input positions in a micro-batch.
        progress: Called with the number of traces done and the total.

    Raises:
        ValueError: A file or the model is missing, or traces do not fit the student.
    """
    settings = ModelSettings(path=student)
    tokenizer = load_tokenizer(settings)
    traces = load_demonstrations(sources, load_template(template), tokenizer, reencode=reencode)
    policy = load_policy(settings)
    check_fit(policy, traces)
    logprobs = response_logprobs(
        policy,
        [item.prompt_ids for item in traces],
        [item.token_ids for item in traces],
        tokens_per_micro_batch=tokens_per_micro_batch,
        progress=progress,
    )
    return ScoredTraces(tuple(traces), tuple(logprobs), tokenizer)


def check_fit(policy: Policy, traces: Sequence[Demonstration]) -> None:
    """Check that a model knows every token and has room for every sequence.

    Raises:
        ValueError: It does not.
    """
    check_token_ids(
        policy,
        ((item.name, (*item.prompt_ids, *item.token_ids)) for item in traces),
        wrong_token="use the model whose tokenizer made these ids, or encode the text again "
        "(--reencode)",
        too_long="leave it out (data.max_tokens in a recipe)",
    )


def surprisal(
    scored: ScoredTraces, *, threshold: float = 0.01, bins: int = 20, top: int = 20
) -> Surprisal:
    """Compute the surprisal of scored traces.

    Args:
        scored: The traces.
        threshold: Probability below which a token is improbable, in (0, 1).
        bins: Number of points of the curve along the trace, each over an equal range of positions.
        top: How many of the most often improbable tokens to return.

    Raises:
        ValueError: ``threshold`` is outside (0, 1), or ``bins`` is below 1.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold = {threshold} is not between 0 and 1; try 0.01")
    if bins < 1 or top < 0:
        raise ValueError(f"bins = {bins} and top = {top} must be at least 1 and 0")
    nll_N = -torch.cat([row.double() for row in scored.logprobs])
    # Compare log-probabilities, so that a token accepted exactly at the threshold is not
    # improbable.
    low_N = nll_N > -torch.tensor(threshold, dtype=torch.float64).log()
    return Surprisal(
        traces=len(scored.traces),
        threshold=threshold,
        all=_figures(nll_N, low_N),
        by_writer=_by_writer(scored.traces, nll_N, low_N),
        positions=_positions(scored.logprobs, nll_N, low_N, bins),
        most_improbable=_most_improbable(scored, nll_N, low_N, top),
    )


def _figures(nll_N: torch.Tensor, low_N: torch.Tensor) -> Figures:
    ranked = nll_N.sort().values
    at = {str(q): ranked[min(len(ranked) - 1, int(q * len(ranked)))].item() for q in QUANTILES}
    return Figures(
        tokens=len(nll_N),
        improbable=low_N.double().mean().item(),
        nll=nll_N.mean().item(),
        most=ranked[-1].item(),
        quantiles=at,
    )


def _by_writer(
    traces: Sequence[Demonstration], nll_N: torch.Tensor, low_N: torch.Tensor
) -> dict[str, Figures]:
    letters = [item.row.get("writer") for item in traces]
    sizes = [len(item.token_ids) for item in traces]
    known = [
        isinstance(text, str) and len(text) == n for text, n in zip(letters, sizes, strict=True)
    ]
    if not all(known):
        return {}
    written = "".join(letters)  # type: ignore[arg-type]  # all are text, as just checked
    found = {}
    for letter, name in _WRITERS.items():
        mine_N = torch.tensor([other == letter for other in written])
        if mine_N.any():
            found[name] = _figures(nll_N[mine_N], low_N[mine_N])
    return found


def _positions(
    logprobs: Sequence[torch.Tensor], nll_N: torch.Tensor, low_N: torch.Tensor, bins: int
) -> tuple[Position, ...]:
    place_N = torch.cat([torch.arange(len(row)) for row in logprobs])
    longest = int(place_N.max()) + 1
    width = -(-longest // bins)
    found = []
    for start in range(0, longest, width):
        here_N = (place_N >= start) & (place_N < start + width)
        stop = min(longest, start + width)
        shares = (low_N[here_N].double().mean().item(), nll_N[here_N].mean().item())
        found.append(Position(start, stop, int(here_N.sum()), *shares))
    return tuple(found)


def _most_improbable(
    scored: ScoredTraces, nll_N: torch.Tensor, low_N: torch.Tensor, count: int
) -> tuple[ImprobableToken, ...]:
    """The tokens that are improbable most often; ties are sorted by mean surprisal."""
    ids_N = torch.tensor([token for item in scored.traces for token in item.token_ids])
    tokens_U, inverse_N, counts_U = ids_N.unique(return_inverse=True, return_counts=True)
    low_U = torch.zeros(len(tokens_U), dtype=torch.float64).index_add_(0, inverse_N, low_N.double())
    nll_U = torch.zeros_like(low_U).index_add_(0, inverse_N, nll_N) / counts_U
    order = sorted(range(len(tokens_U)), key=lambda u: (-low_U[u].item(), -nll_U[u].item()))
    return tuple(
        ImprobableToken(
            int(tokens_U[u]),
            scored.tokenizer.decode([int(tokens_U[u])]),
            int(low_U[u]),
            int(counts_U[u]),
            nll_U[u].item(),
        )
        for u in order[:count]
        if low_U[u] > 0
    )


def surprisal_table(found: Surprisal) -> str:
    """The statistics as text."""
    share = f"below {found.threshold:g}"
    names = ["", "tokens", share, "NLL", *(f"q{q}" for q in found.all.quantiles), "most"]
    lines = [f"{found.traces} traces", "".join(f"{name:>13}" for name in names)]
    for name, row in {"all": found.all, **found.by_writer}.items():
        cells = [str(row.tokens), f"{row.improbable:.4%}", f"{row.nll:.4f}"]
        cells += [f"{value:.3f}" for value in (*row.quantiles.values(), row.most)]
        lines.append(f"{name:>13}" + "".join(f"{cell:>13}" for cell in cells))
    lines += [
        "",
        "along the trace:",
        "".join(f"{n:>13}" for n in ("positions", "tokens", share, "NLL")),
    ]
    for at in found.positions:
        cells = [
            f"{at.start}-{at.stop - 1}",
            str(at.tokens),
            f"{at.improbable:.4%}",
            f"{at.nll:.4f}",
        ]
        lines.append("".join(f"{cell:>13}" for cell in cells))
    if found.most_improbable:
        lines += ["", f"tokens {share} most often:"]
    for token in found.most_improbable:
        lines.append(
            f"{token.text!r:>16}  {token.improbable} of {token.count}, mean NLL {token.nll:.3f}"
        )
    return "\n".join(lines)


def write_surprisal(found: Surprisal, out: Path, about: Mapping[str, Any]) -> None:
    """Write all statistics as JSON, together with ``about``."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, json.dumps({**about, **asdict(found)}, indent=1, ensure_ascii=False))
