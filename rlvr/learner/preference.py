"""What a policy is trained with from preferences: a mixture of losses of log-probabilities.

Losses are over pairs, over single completions with a label, or over the steps of completions
(``rlvr/preference/losses``, ``rlvr/reward_models/process_losses.py``). This file gives them what
they look at: the policy's log-probabilities and the reference's, KTO's baseline, WPO's weights.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch

from rlvr.data.examples import Examples
from rlvr.learner.offline import Numbers, OfflineLearner, OfflineStep
from rlvr.learner.sequence_logprobs import SamplingWeights, SequenceLogprobs
from rlvr.policy.model import Policy
from rlvr.preference.losses.base import PairLoss, PreferenceLoss, UnpairedLoss, mixed_loss
from rlvr.preference.losses.terms import Labelled, Pairs, Side
from rlvr.preference.losses.unpaired import baseline_of
from rlvr.reward_models.process_losses import StepsLoss


class PreferenceMixture:
    """The loss of a preference run, as the learner takes it.

    Args:
        losses: All over pairs, all over labelled completions, or all over steps.
        reference: Opens the frozen reference as a policy, where log-probabilities under it are
            taken as training goes (the policy itself with its adapters off, or another model).
        ld_alpha: Weight of tokens beyond the shorter side's length (LD-DPO); None is 1.
        weighting: Weigh pairs by how probable the policy finds them (WPO).
    """

    grad_norms: Mapping[str, str] = {}

    def __init__(
        self,
        losses: Sequence[PreferenceLoss],
        *,
        reference: Callable[[], AbstractContextManager[Policy]] | None = None,
        ld_alpha: float | None = None,
        weighting: bool = False,
    ) -> None:
        self.mixture, self.reference, self.weighting = tuple(losses), reference, weighting
        needs_prompt = any(loss.needs_prompt for loss in losses)
        self.statistic = SequenceLogprobs(prompt=needs_prompt, ld_alpha=ld_alpha)

    @property
    def whole_step(self) -> bool:
        """Whether a loss compares the pairs of a step."""
        return any(loss.whole_step for loss in self.mixture)

    def begin(self, learner: OfflineLearner, examples: Examples) -> OfflineStep:
        """Take reference log-probabilities where that is done live, the baseline and weights."""
        needs_reference = any(loss.needs_reference for loss in self.mixture)
        if needs_reference and "reference" not in examples.columns:
            with self._opened_reference() as model:
                reference = reference_column(learner, examples, model)
            examples = examples.with_columns(reference=reference)
        if self.weighting:
            sides_NK = learner.values(examples, statistic=SamplingWeights())
            weights_NK = sides_NK.double().prod(-1, keepdim=True).expand_as(sides_NK)
            examples = examples.with_values("weight", weights_NK)
        prompts = [examples.prompt_ids[own[0]] for own in examples.rows]
        constants = {
            "tokens": float(examples.lengths_NK[:, 0].double().mean()),
            "prompt_tokens": sum(len(ids) - 1 for ids in prompts) / len(examples),
            "baseline": self._baseline(learner, examples),
        }
        return OfflineStep(examples, len(examples), constants)

    def losses(self, micro: OfflineStep, values: torch.Tensor) -> tuple[torch.Tensor, Numbers]:
        """Loss [b] of examples, and numbers of them to log, from log-probabilities [b, K', 2]."""
        if isinstance(self.mixture[0], StepsLoss):
            return self._step_losses(micro.examples, values)
        if isinstance(self.mixture[0], UnpairedLoss):
            return self._labelled_losses(micro, values)
        pairs = self._pairs(micro, values)
        weights_B = None
        if self.weighting:
            weights_B = micro.examples.column("weight")[:, 0].to(values)
        losses = [loss for loss in self.mixture if isinstance(loss, PairLoss)]
        return mixed_loss(losses, pairs, weights_B), _pair_numbers(pairs)

    def metrics(self, numbers: Numbers, step: OfflineStep) -> dict[str, float]:
        """Means over the step's examples; see docs/metrics.md."""
        columns = {name: torch.tensor(v, dtype=torch.float64) for name, v in numbers.items()}
        if "desirable" not in columns:
            return {f"preference/{name}": float(v.mean()) for name, v in columns.items()}
        metrics = {"preference/loss": float(columns["loss"].mean())}
        good = columns["desirable"].bool()
        for name, chosen in (("desirable", good), ("undesirable", ~good)):
            if bool(chosen.any()):
                ratio, logps = (columns[key][chosen].mean() for key in ("log_ratio", "logps"))
                metrics[f"preference/{name}_log_ratio"] = float(ratio)
                metrics[f"preference/{name}_logps"] = float(logps)
        metrics["preference/kl_baseline"] = step.constants["baseline"]
        return metrics

    def _opened_reference(self) -> AbstractContextManager[Policy]:
        assert self.reference is not None, "this loss needs reference log-probabilities"
        return self.reference()

    def _baseline(self, learner: OfflineLearner, examples: Examples) -> float:
        """KTO's z0, from every prompt with the completion of the example before it."""
        if not any(loss.uses_baseline for loss in self.mixture):
            return 0.0
        rows = [own[0] for own in examples.rows]
        mismatched = Examples.of_one(
            [examples.prompt_ids[row] for row in rows],
            [examples.completion_ids[row] for row in (rows[-1], *rows[:-1])],
        )
        policy_N = learner.values(mismatched)[:, 0, 0]
        with self._opened_reference() as model:
            reference_N = learner.values(mismatched, model)[:, 0, 0]
        return baseline_of(policy_N - reference_N)

    def _labelled_losses(
        self, micro: OfflineStep, sums_BKS: torch.Tensor
    ) -> tuple[torch.Tensor, Numbers]:
        desirable_B = micro.examples.column("label")[:, 0].to(sums_BKS.device)
        labelled = Labelled(
            sums_BKS[:, 0, 0],
            micro.examples.column("reference")[:, 0].to(sums_BKS),
            desirable_B,
            micro.constants["baseline"],
        )
        losses = [loss for loss in self.mixture if isinstance(loss, UnpairedLoss)]
        loss_B = torch.stack([loss.weight * loss(labelled) for loss in losses]).sum(0)
        return loss_B, {
            "desirable": desirable_B.tolist(),
            "log_ratio": labelled.log_ratio_B.tolist(),
            "logps": labelled.logps_B.tolist(),
        }

    def _step_losses(
        self, examples: Examples, sums_BKS: torch.Tensor
    ) -> tuple[torch.Tensor, Numbers]:
        labels_BK = examples.column("step_label")[:, 0].to(sums_BKS)
        log_ratio_BK = sums_BKS[..., 0] - examples.column("reference")[:, 0].to(sums_BKS)
        losses = [loss for loss in self.mixture if isinstance(loss, StepsLoss)]
        loss_B = torch.stack([x.weight * x(log_ratio_BK, labels_BK) for x in losses]).sum(0)
        judged_BK = ~labels_BK.isnan()
        agrees_BK = ((log_ratio_BK > 0) == (labels_BK > 0.5)) & judged_BK
        accuracy_B = agrees_BK.sum(-1) / judged_BK.sum(-1).clamp_min(1)
        log_ratio_B = log_ratio_BK.detach().sum(-1)
        return loss_B, {"step_accuracy": accuracy_B.tolist(), "log_ratio": log_ratio_B.tolist()}

    def _pairs(self, micro: OfflineStep, sums_BKS: torch.Tensor) -> Pairs:
        examples = micro.examples
        lengths_BK = examples.lengths_NK.to(sums_BKS)

        def side(k: int) -> Side:
            reference, scores = (
                examples.column(name)[:, k].to(sums_BKS) if name in examples.columns else None
                for name in ("reference", "score")
            )
            return Side(sums_BKS[:, k, 0], lengths_BK[:, k], reference, sums_BKS[:, k, 1], scores)

        return Pairs(
            side(0),
            side(1),
            tokens_per_pair=micro.constants["tokens"],
            prompt_logps_B=sums_BKS[:, 2, 1] if self.statistic.prompt else None,
            prompt_tokens_per_pair=micro.constants["prompt_tokens"],
        )


def reference_column(
    learner: OfflineLearner,
    examples: Examples,
    model: Policy,
    progress: Callable[[int], None] = lambda done: None,
) -> torch.Tensor:
    """Log-probabilities of completions [M], or of their steps [M, S], under a reference."""
    sums_NKS = learner.values(examples, model, progress)[..., 0]
    if examples.step_ends is not None:
        sums_NKS = sums_NKS[:, None]
    sums_NKS = sums_NKS[:, : examples.most]  # without the prompt's
    return examples.with_values("reference", sums_NKS).columns["reference"]


def _pair_numbers(pairs: Pairs) -> Numbers:
    chosen, rejected = pairs.chosen, pairs.rejected
    with_reference = chosen.reference_logps_B is not None
    margin_B = pairs.log_ratio_margin_B if with_reference else pairs.margin_B
    numbers = {
        "chosen_logps": chosen.whole_logps_B,
        "rejected_logps": rejected.whole_logps_B,
        "margin": margin_B,
        "reward_accuracy": (margin_B > 0).to(margin_B.dtype),
    }
    if with_reference:
        numbers["chosen_log_ratio"] = chosen.log_ratio_B
        numbers["rejected_log_ratio"] = rejected.log_ratio_B
    return {name: values_B.tolist() for name, values_B in numbers.items()}


@contextmanager
def adapters_off(policy: Policy) -> Iterator[Policy]:
    """A policy with adapters as its own frozen reference."""
    with policy.reference():
        yield policy
