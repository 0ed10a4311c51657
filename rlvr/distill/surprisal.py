"""How improbable a student finds the tokens of traces: the bottleneck that the method names.

For a token y at context c the surprisal is -log p(y | c) in nats, with p the student's
distribution at temperature 1 over its whole vocabulary. Traces are forced through the student with
their own prompts; only the trace's tokens count, the end token with them (Kim et al.,
arXiv:2509.22230; docs/methods/sft.md). Measured with the student that
the traces are meant for, *before* it is trained on them.

A token counts as improbable where p < ``threshold``. A trace that reverse speculative decoding made
has no such token among those the teacher wrote, when it is scored by the student that vetoed; of
what the student wrote itself some may be.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from rlvr.data.demonstrations import Demonstration, load_demonstrations
from rlvr.data.templates import load_template
from rlvr.jsonl import write_atomically
from rlvr.policy import ModelSettings, Policy, load_policy, load_tokenizer, response_logprobs

QUANTILES = (0.5, 0.9, 0.99, 0.999)
_WRITERS = {"t": "teacher", "s": "student"}


@dataclass(frozen=True, slots=True)
class Figures:
    """Surprisal of a set of tokens.

    ``improbable`` is the share with a probability below the threshold, ``nll`` the mean in nats,
    ``quantiles`` surprisals in nats by their rank.
    """

    tokens: int
    improbable: float
    nll: float
    most: float
    quantiles: dict[str, float]


@dataclass(frozen=True, slots=True)
class Position:
    """Tokens that stand ``start`` (included) to ``stop`` places into their traces."""

    start: int
    stop: int
    tokens: int
    improbable: float
    nll: float


@dataclass(frozen=True, slots=True)
class Word:
    """A token of the vocabulary: how often it was improbable, out of how often it stands there."""

    token: int
    text: str
    improbable: int
    count: int
    nll: float


@dataclass(frozen=True, slots=True)
class Surprisal:
    """What a student makes of a set of traces.

    ``by_writer`` parts the tokens by who wrote them, where the traces say so. ``positions`` is the
    curve along the trace, ``words`` what is improbable most often.
    """

    traces: int
    threshold: float
    all: Figures
    by_writer: dict[str, Figures]
    positions: tuple[Position, ...]
    words: tuple[Word, ...]


@dataclass(frozen=True, slots=True)
class Scored:
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
) -> Scored:
    """Force traces through a student.

    Args:
        sources: Files of traces, or of other demonstrations (``rlvr/data/demonstrations.py``).
        student: Folder or Hub id.
        template: How the prompt of a row of text becomes tokens; traces have theirs as ids.
        reencode: The traces' ids belong to another tokenizer: encode their text by the student's.
        tokens_per_micro_batch: Most input positions run at once.
        progress: Told how many traces are done, out of how many.

    Raises:
        ValueError: No such files or model, or traces that do not fit the student.
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
    return Scored(tuple(traces), tuple(logprobs), tokenizer)


def check_fit(policy: Policy, traces: Sequence[Demonstration]) -> None:
    """See that a model knows every token and has room for every sequence.

    Raises:
        ValueError: It does not.
    """
    words = policy.causal_lm.get_input_embeddings().num_embeddings
    limit = policy.context_length
    for item in traces:
        top = max(*item.prompt_ids, *item.token_ids)
        if top >= words:
            raise ValueError(
                f"{item.name} holds token {top}, but the model has {words} embeddings: its ids "
                "belong to another tokenizer; use the model that they were made for, or encode "
                "the text again (--reencode)"
            )
        if limit is not None and len(item) > limit:
            raise ValueError(
                f"{item.name} has {len(item)} tokens with its prompt, more than the model's "
                f"context of {limit}; leave it out (data.max_tokens in a recipe)"
            )


def surprisal(
    scored: Scored, *, threshold: float = 0.01, bins: int = 20, words: int = 20
) -> Surprisal:
    """Figures of scored traces.

    Args:
        scored: The traces.
        threshold: Probability below which a token is improbable, in (0, 1).
        bins: Points of the curve along the trace, by equal numbers of places.
        words: Tokens of the vocabulary to name.

    Raises:
        ValueError: A threshold outside (0, 1), or no bins.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold {threshold} is no probability between 0 and 1; try 0.01")
    if bins < 1 or words < 0:
        raise ValueError(f"bins = {bins} and words = {words} must be at least 1 and 0")
    nll_N = -torch.cat([row.double() for row in scored.logprobs])
    # Compared as log-probabilities, so that what a generator accepted at the threshold stays in.
    low_N = nll_N > -torch.tensor(threshold, dtype=torch.float64).log()
    return Surprisal(
        traces=len(scored.traces),
        threshold=threshold,
        all=_figures(nll_N, low_N),
        by_writer=_by_writer(scored.traces, nll_N, low_N),
        positions=_positions(scored.logprobs, nll_N, low_N, bins),
        words=_words(scored, nll_N, low_N, words),
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
    written = "".join(letters)  # type: ignore[arg-type]  # text, as was just seen
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


def _words(
    scored: Scored, nll_N: torch.Tensor, low_N: torch.Tensor, count: int
) -> tuple[Word, ...]:
    """The tokens that are improbable most often; of equal ones the more surprising first."""
    ids_N = torch.tensor([token for item in scored.traces for token in item.token_ids])
    tokens_U, inverse_N, counts_U = ids_N.unique(return_inverse=True, return_counts=True)
    low_U = torch.zeros(len(tokens_U), dtype=torch.float64).index_add_(0, inverse_N, low_N.double())
    nll_U = torch.zeros_like(low_U).index_add_(0, inverse_N, nll_N) / counts_U
    order = sorted(range(len(tokens_U)), key=lambda u: (-low_U[u].item(), -nll_U[u].item()))
    return tuple(
        Word(
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
    """The figures as text."""
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
        "".join(f"{n:>13}" for n in ("places", "tokens", share, "NLL")),
    ]
    for at in found.positions:
        cells = [
            f"{at.start}-{at.stop - 1}",
            str(at.tokens),
            f"{at.improbable:.4%}",
            f"{at.nll:.4f}",
        ]
        lines.append("".join(f"{cell:>13}" for cell in cells))
    if found.words:
        lines += ["", f"tokens {share} most often:"]
    for word in found.words:
        lines.append(
            f"{word.text!r:>16}  {word.improbable} of {word.count}, mean NLL {word.nll:.3f}"
        )
    return "\n".join(lines)


def write_surprisal(found: Surprisal, out: Path, about: Mapping[str, Any]) -> None:
    """Write all figures as JSON, with what they are about."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, json.dumps({**about, **asdict(found)}, indent=1, ensure_ascii=False))
