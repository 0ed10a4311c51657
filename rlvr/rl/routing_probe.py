"""How a mixture of experts routes a fixed set of problems, measured with every evaluation.

The probe is the first problems of the training data and of each evaluation set, each followed by
its reference answer: texts that never change, unlike rollouts. Measures of the training problems
and of held-out ones stand side by side, so that one sees whether the pathways that a run makes for
what it trains on are shared by what it does not. Definitions: ``rlvr/policy/pathways.py``. They are
to be looked at, not a rule to stop by.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean

import torch

from rlvr.data import Prompt
from rlvr.learner.learner import Learner
from rlvr.objective.router_loss import expert_counts, load_shares
from rlvr.policy.batching import padded_inputs, plan_padded
from rlvr.policy.model import Policy, evaluating
from rlvr.policy.pathways import Pathway, consistency, mean_distance, pathway, pooled_weights
from rlvr.policy.routers import RoutingRequest, sequence_positions
from rlvr.rl.recipe import PathwaySettings


class Probe:
    """Fixed texts by name, as token ids, and the measures of a policy on them.

    Args:
        settings: How much is looked at.
        problems: Prompts by name.
        tokenizer: Encodes the responses.

    Raises:
        ValueError: ``settings.response`` is no format of an answer.
    """

    def __init__(
        self,
        settings: PathwaySettings,
        problems: Mapping[str, Sequence[Prompt]],
        tokenizer: object,
    ) -> None:
        self.settings = settings
        self.texts = {
            name: [_sequence(prompt, settings.response, tokenizer) for prompt in prompts]
            for name, given in problems.items()
            if len(prompts := given[: settings.problems]) > 1
        }

    def measure(self, learner: Learner) -> dict[str, float]:
        """Distance, consistency, entropy, load and loss by name; collective."""
        metrics: dict[str, float] = {}
        for name, texts in self.texts.items():
            measured = self._measure(learner, texts)
            metrics |= {f"eval/{name}/{figure}": value for figure, value in measured.items()}
        return metrics

    def _measure(
        self, learner: Learner, texts: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
    ) -> dict[str, float]:
        policy, chosen = learner.policy, learner.policy.watch_routers().chosen
        rows = _embeddings(policy)
        paths: list[Pathway] = []
        agreement, entropy, nll = [], [], []
        counts_ME = torch.zeros(len(rows), rows[0].shape[0], dtype=torch.float64)
        for logits_PME, logprob in _routings(learner, texts):
            weights_ME = pooled_weights(logits_PME)
            paths.append(pathway(weights_ME, chosen))
            agreement.append(consistency(weights_ME, rows, chosen))
            p_PME = logits_PME.double().softmax(-1)
            entropy.append(float(-(p_PME * p_PME.log()).sum(-1).mean()))
            nll.append(-logprob)
            counts_ME += expert_counts(logits_PME.topk(chosen, -1).indices, counts_ME.shape[-1])
        return {
            "pathway_distance": mean_distance(paths, self.settings.pairs),
            "pathway_consistency": fmean(agreement),
            "router_entropy": fmean(entropy),
            "load_max": float((load_shares(counts_ME) * counts_ME.shape[-1]).max()),
            "answer_loss": fmean(nll),
        }


def _sequence(
    prompt: Prompt,
    response: str,
    tokenizer: object,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    try:
        text = response.format(answer=prompt.problem.answer)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"evaluation.pathways.response = {response!r} is no text with {{answer}} in it "
            "(write other braces twice)"
        ) from error
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
    return tuple(prompt.ids), tuple(ids)


def _routings(
    learner: Learner, texts: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
) -> list[tuple[torch.Tensor, float]]:
    """Router logits [P, M, E] and mean log-probability of the response, of every text.

    Every process runs all of them: they are few, and equally many passes are then run everywhere.
    """
    prompts, responses = zip(*texts, strict=True)
    lengths = [len(prompt) + len(response) for prompt, response in texts]
    by_row: dict[int, tuple[torch.Tensor, float]] = {}
    with torch.no_grad(), evaluating(learner.store.models):
        for micro in plan_padded(lengths, learner.budget.tokens):
            inputs = padded_inputs(prompts, responses, micro).to(learner.policy.device)
            stats = learner.store.forward(inputs, routing=RoutingRequest(everywhere=True)).stats
            assert stats.routing is not None
            logits_PME = stats.routing.logits_NME
            where = sequence_positions(inputs, [len(prompts[row]) for row in micro])
            for slot, (row, positions) in enumerate(zip(micro, where, strict=True)):
                logprob = float(stats.logprobs_N[inputs.row_N == slot].mean())
                by_row[row] = (logits_PME[positions].cpu(), logprob)
    return [by_row[row] for row in range(len(texts))]


def _embeddings(policy: Policy) -> list[torch.Tensor]:
    """Every router's rows [E, D] by layer, as the experts' embeddings."""
    rows = []
    for router in policy.watch_routers().modules:
        weight = next(router.parameters())
        with policy.gathered([weight]):
            rows.append(weight.detach().double().cpu().clone())
    return rows
