"""Training an explicit outcome reward model from labels of whole responses.

    rlvr train recipes/reward_model/tiny_win_tie.yaml

Pairs, lists or single responses are made of labelled responses. Held-out ones are scored from time
to time, and with ``evaluation.keep_best`` the run's model folder holds the model that was best on
them. A checkpoint also holds the head, where the best evaluation stands, and CaPE's targets of the
epoch that is under way, so that a run that goes on in its midst has the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from rlvr.lazy import torch
from rlvr.learner.settings import OptimizerSettings
from rlvr.policy.settings import ModelSettings
from rlvr.reward_models.calibration import Cape
from rlvr.reward_models.head_settings import HeadSettings, LastToken
from rlvr.reward_models.outcome_losses import AnyRewardLoss, PointwiseCrossEntropy
from rlvr.reward_models.pairs import PairSettings
from rlvr.runs.base_recipe import OfflineRecipe, impossible_names, without_hub
from rlvr.runs.labelled import LabelledData, LabelledEvaluation, as_examples, labelled_responses
from rlvr.runs.offline_task import OfflineTask

if TYPE_CHECKING:
    from rich.console import Console

    from rlvr.data.examples import Examples
    from rlvr.learner.launch import Launch
    from rlvr.learner.offline import OfflineLearner
    from rlvr.policy.model import Policy
    from rlvr.reward_models.heads import OutcomeRewardModel
    from rlvr.runs.clock import Clock
    from rlvr.runs.offline_run import OfflineRun
    from rlvr.runs.parent import Branch

HELD_OUT = "held_out"
"""Name of the evaluation set that ``data.hold_out`` makes."""

_UNITS = {"pairs": "pairs", "responses": "responses", "lists": "problems with all their responses"}


class RewardModelData(LabelledData):
    """Where labelled responses come from and how they become tokens."""

    per_step: int = Field(64, ge=1)
    """Items of an optimizer step: pairs, single responses, or (ldr) prompts with all of theirs."""
    part: Literal["response", "prompt"] = "response"
    """What the model reads. prompt leaves the response out: what is learned from its label is the
    pass rate of the policy that sampled it, which problems can be chosen by."""
    hold_out: float = Field(0.0, ge=0, lt=1)
    """Share of the problems, with all their responses, that is not trained on and makes the
    evaluation set held_out."""


class RewardModelEvaluation(LabelledEvaluation):
    """Held-out responses that the reward model is measured on from time to time."""

    keep_best: str | None = None
    """Name of a set: what is exported in the end is the model that was best on it, instead of the
    last. Best is the lowest log-loss, or where the loss leaves the level of rewards open the
    highest AUC within prompts."""
    patience: int | None = Field(None, ge=1)
    """Stop after so many evaluations in a row that were not the best; null trains to the end."""


class RewardModelRecipe(OfflineRecipe):
    """Training an explicit outcome reward model: the recipe of ``task: reward_model``."""

    task: Literal["reward_model"]
    """What is trained: a scalar reward of whole responses, from the verifier's labels."""
    seed: int = Field(0, ge=0, lt=2**64)
    """Which pairs and held-out problems, order of the data, initialisation of head and adapters."""
    model: ModelSettings
    """The language model under the head. A folder that holds a head goes on from it."""
    data: RewardModelData
    """The labelled responses."""
    head: HeadSettings = LastToken()
    """What reads a reward off the hidden states."""
    head_lr: float | None = Field(None, gt=0)
    """Peak learning rate of the head, which starts from nothing; null is ``learner.lr``."""
    loss: AnyRewardLoss = PointwiseCrossEntropy()
    """What it is trained with."""
    pairs: PairSettings = PairSettings()
    """Which pairs, where the loss takes pairs."""
    calibration: Cape | None = None
    """Go on with a model that was trained by cross-entropy, and stopped early, until its
    probabilities are calibrated; null trains on the labels."""
    evaluation: RewardModelEvaluation = RewardModelEvaluation()
    """Held-out responses."""

    @property
    def head_optimizer(self) -> OptimizerSettings:
        """The head's: as the language model's, but for the rate."""
        shared = {
            name: getattr(self.learner, name)
            for name in OptimizerSettings.model_fields
            if name != "lr"
        }
        return OptimizerSettings(lr=self.head_lr or self.learner.lr, **shared)

    def faults(self) -> list[str]:
        """Combinations of valid settings that cannot work, each with its remedy."""
        return [
            *self._loss_faults(),
            *self._evaluation_faults(),
            *super().faults(),
            *without_hub(self, "reward models"),
        ]

    def _loss_faults(self) -> list[str]:
        faults, loss = [], self.loss
        if self.pairs != PairSettings() and loss.unit != "pairs":
            faults.append(
                f"pairs are given, but the loss {loss.name!r} takes none; leave them out, or use "
                "bradley_terry"
            )
        if self.calibration is not None and loss.name == "ce" and loss.tau != 1:
            faults.append(
                f"calibration wants probabilities, which loss.tau = {loss.tau} does not give; use 1"
            )
        if self.calibration is not None and loss.name != "ce":
            faults.append(
                f"calibration makes soft labels, which the loss {loss.name!r} does not take; use ce"
            )
        if self.data.part == "prompt" and loss.name != "ce":
            faults.append(
                f"data.part = 'prompt' gives all responses to a prompt one reward, so the loss "
                f"{loss.name!r} has nothing to compare; use ce"
            )
        return faults

    def _evaluation_faults(self) -> list[str]:
        faults, sets = [], self.evaluation.responses
        if self.data.hold_out and HELD_OUT in sets:
            faults.append(
                f"data.hold_out makes an evaluation set {HELD_OUT!r}, which evaluation.responses "
                "names too; rename that, or leave hold_out out"
            )
        names = [*sets, *([HELD_OUT] if self.data.hold_out else [])]
        best = self.evaluation.keep_best
        if best is not None and best not in names:
            faults.append(
                f"evaluation.keep_best = {best!r} is not one of the evaluation sets {names}; name "
                "one, or set data.hold_out"
            )
        if self.evaluation.patience is not None and best is None:
            faults.append(
                "evaluation.patience counts from the best evaluation, which evaluation.keep_best "
                "has to name the set of"
            )
        return faults + impossible_names(sets, "evaluation.responses")


@dataclass(frozen=True, slots=True)
class Best:
    """The best evaluation so far: its value (lower is better) and step, and how many came since."""

    value: float | None = None
    step: int | None = None
    since: int = 0

    def with_evaluation(self, value: float, step: int) -> Best:
        """What it is after another evaluation; the earlier of equal ones stays."""
        if self.value is None or value < self.value:
            return Best(value, step)
        return replace(self, since=self.since + 1)


class RewardModelTask(OfflineTask[RewardModelRecipe]):
    """A run that trains an explicit reward model."""

    schema = RewardModelRecipe
    prefix = "rm"
    too_long = "lower data.max_prompt_tokens or data.max_response_tokens"

    def __init__(self, recipe: RewardModelRecipe) -> None:
        super().__init__(recipe)
        self.best = Best()
        self.soft_epoch: int | None = None
        """The epoch that ``soft_M`` are the targets of."""
        self.soft_M: torch.Tensor | None = None

    def count(self) -> tuple[int, list[str]]:
        """How many examples there are, and lines about them."""
        from rlvr.data.labelled_responses import load_responses

        responses = load_responses(self.recipe.data.sources)
        whole = as_examples(responses, [((), ())] * len(responses))
        training, held_out = self._split(whole, [repr(x.messages) for x in responses])
        examples = self._items(training)
        return len(examples), [
            f"responses: {len(whole)} to {len(set(whole.groups))} problems, {sum(whole.labels)} of "
            "them right",
            *(f"{name}: {len(own)} responses held out" for name, own in held_out.items()),
            f"{_UNITS[self.recipe.loss.unit]}: {len(examples)}",
        ]

    def load(
        self,
        tokenizer: Any,  # noqa: ANN401
        console: Console,
    ) -> tuple[Examples, dict[str, Examples]]:
        """Training examples, and held-out responses by name.

        Raises:
            ValueError: They cannot be read, nothing can be learned from them, or a held-out prompt
                is trained on.
        """
        from rlvr.runs.log import notify

        recipe, data = self.recipe, self.recipe.data
        whole = labelled_responses("data", data.sources, data, tokenizer, console)
        training, held_out = self._split(whole, [repr(ids) for ids in whole.prompt_ids])
        held_out |= {
            name: labelled_responses(name, sources, data, tokenizer, console)
            for name, sources in recipe.evaluation.responses.items()
        }
        _check_no_leak(training, held_out)
        if data.part == "prompt":
            training = _prompts_alone(training)
            held_out = {name: _prompts_alone(own) for name, own in held_out.items()}
        examples = self._items(training)
        unit = _UNITS[recipe.loss.unit]
        notify(console, f"data: {len(examples)} {unit} from {len(training)} responses")
        return examples, held_out

    def _split(
        self, whole: Examples, prompts: Sequence[str]
    ) -> tuple[Examples, dict[str, Examples]]:
        """What is trained on, and the set that ``data.hold_out`` makes, by its name."""
        from rlvr.reward_models.items import split

        if not self.recipe.data.hold_out:
            return whole, {}
        training, held_out = split(whole, prompts, self.recipe.data.hold_out, self.recipe.seed)
        return training, {HELD_OUT: held_out}

    def _items(self, training: Examples) -> Examples:
        from rlvr.reward_models.items import make_items

        return make_items(training, self.recipe.loss, self.recipe.pairs, self.recipe.seed)

    def learner(self, policy: Policy, launch: Launch, checkpoint: Path | None) -> OfflineLearner:
        """Language model and head, each with its own rate."""
        from rlvr.learner.head_rewards import reward_model_learner

        return reward_model_learner(
            self._model(policy, checkpoint),
            self.recipe.loss,
            self.recipe.learner,
            self.recipe.head_optimizer,
            total_updates=self.recipe.steps,
            launch=launch,
            seed=self.recipe.seed,
        )

    def _model(self, policy: Policy, checkpoint: Path | None) -> OutcomeRewardModel:
        """The head on a language model: from a checkpoint, from the model's folder, or fresh.

        Raises:
            ValueError: The folder's head is another than the recipe's, or calibration has none to
                go on from.
        """
        from rlvr.reward_models.heads import OutcomeRewardModel, has_head, load_head

        recipe, bias = self.recipe, self.recipe.loss.absolute
        folder = checkpoint or Path(recipe.model.path).expanduser()
        if not has_head(folder):
            if recipe.calibration is not None:
                raise ValueError(
                    f"calibration goes on with a reward model that was trained by cross-entropy, "
                    f"and model.path = {recipe.model.path!r} holds no head; train one first, with "
                    "evaluation.keep_best and without calibration"
                )
            return OutcomeRewardModel(policy, recipe.head, bias=bias)
        model = load_head(policy, folder, bias=bias)
        if model.settings != recipe.head:
            raise ValueError(
                f"{str(folder)!r} holds the head {model.settings.model_dump()}, "
                f"and head is {recipe.head.model_dump()}; set head to the former"
            )
        return model

    def next(self, run: OfflineRun, clock: Clock) -> tuple[Examples, dict[str, float]]:
        """The coming examples, with the targets that this epoch trains on."""
        cape = self.recipe.calibration
        if cape is None:
            return super().next(run, clock)
        epoch = run.sampler.drawn // len(run.data)  # from 0, in which the step begins
        soft = cape.is_soft(epoch)
        examples = run.data
        with clock("targets", counted=False), run.watch("targets"):
            if soft:
                examples = examples.with_columns(target=self._targets(run, cape, epoch))
        return examples.select(run.sampler.next(self.recipe.data.per_step)), {
            "rm/soft": float(soft)
        }

    def _targets(self, run: OfflineRun, cape: Cape, epoch: int) -> torch.Tensor:
        """Targets [M] of a soft epoch, made when it begins; collective."""
        from rlvr.learner.head_rewards import response_rewards

        if self.soft_epoch != epoch:
            run.log.phase("making targets")
            p_M = response_rewards(run.learner, run.data).sigmoid()
            self.soft_M = cape.targets(p_M, run.data.columns["label"])
            self.soft_epoch = epoch
        assert self.soft_M is not None
        return self.soft_M

    def before_evaluation(self, run: OfflineRun) -> None:
        """Measure again where a kill came before the first checkpoint.

        The evaluation is on record then, and the best is not.
        """
        from rlvr.runs.frame import measure

        forgotten = self.recipe.evaluation.keep_best is not None and self.best.step is None
        if forgotten and run.ranks.broadcast(run.log.evaluated(run.step)):
            measure(self, run)

    def measure(self, run: OfflineRun, name: str, examples: Examples) -> dict[str, float]:
        """Ranking, best of N, spread, and where the loss fixes the level of rewards calibration."""
        from rlvr.learner.head_rewards import response_rewards
        from rlvr.reward_models.calibration import calibration
        from rlvr.reward_models.measures import best_and_spread, rate_error
        from rlvr.reward_models.quality import ranking

        rewards = response_rewards(run.learner, examples).tolist()
        rated = rewards, examples.labels, examples.groups
        metrics = ranking(*rated).metrics | best_and_spread(*rated)
        if self.recipe.loss.absolute:
            calibrated = asdict(calibration(rewards, examples.columns["label"].tolist()))
            metrics |= {key: value for key, value in calibrated.items() if key != "bins"}
            metrics["rate_mse"] = rate_error(*rated)
            run.log.calibration(run.step, name, calibrated)
        return metrics

    def measured(self, run: OfflineRun, metrics: dict[str, float]) -> None:
        """Have the model folder hold this model, where it is the best."""
        name = self.recipe.evaluation.keep_best
        if name is None:
            return
        measure = "nll" if self.recipe.loss.absolute else "auc_within"
        value = metrics.get(f"eval/{name}/{measure}")
        if value is None:
            raise ValueError(
                f"evaluation.keep_best = {name!r}: none of its problems has both right and wrong "
                "responses, so there is no best; hold out more problems, or sample more of each"
            )
        before = self.best
        self.best = before.with_evaluation(value if measure == "nll" else -value, run.step)
        if self.best.step != before.step:
            run.log.phase("exporting")
            _export(run)

    @property
    def stopped(self) -> bool:
        """Whether patience is at its end."""
        patience = self.recipe.evaluation.patience
        return patience is not None and self.best.since >= patience

    def model_writers(self, run: OfflineRun) -> list[Callable[[Path], None]]:
        """The head's."""
        return [_head_writer(run, copy=run.checkpoints.background)]

    def state(self) -> dict[str, Any]:
        """Where the best evaluation stands, and the targets of a soft epoch."""
        return {
            "best": asdict(self.best),
            "soft_epoch": self.soft_epoch,
            "soft": None if self.soft_M is None else self.soft_M.tolist(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        self.best, self.soft_epoch = Best(**state["best"]), state["soft_epoch"]
        if state["soft"] is not None:
            self.soft_M = torch.tensor(state["soft"], dtype=torch.float64)

    def branch_from(self, state: dict[str, Any], branch: Branch, *, same_data: bool) -> None:
        """Take over the targets of the present epoch; the best evaluation is sought anew."""
        if same_data and not branch.changed(self.recipe, "calibration"):
            self.load_state({**state, "best": asdict(Best())})

    def finish(self, run: OfflineRun) -> None:
        """Export the last model, unless the best was exported; draw how calibration went."""
        if self.recipe.evaluation.keep_best is None:
            run.log.phase("exporting")
            _export(run)
        else:
            run.log.notify(f"best after step {self.best.step}: {abs(self.best.value or 0):.4f}")
        if run.ranks.first:
            self._draw_reliability(run)

    def _draw_reliability(self, run: OfflineRun) -> None:
        """Draw, for each set, the first evaluation and that of the exported model in one."""
        from rlvr.files import read_lines, write_atomically
        from rlvr.reward_models.calibration import Bin
        from rlvr.reward_models.reliability import reliability_svg

        rows = read_lines(run.folder / "calibration.jsonl").objects
        for name in dict.fromkeys(row["set"] for row in rows):
            by_step = {row["step"]: row["bins"] for row in rows if row["set"] == name}
            steps = sorted(step for step in by_step if step <= run.step)
            last = self.best.step if self.best.step in steps else steps[-1]
            shown = {
                f"after step {step}": [Bin(**values) for values in by_step[step]]
                for step in dict.fromkeys((steps[0], last))
            }
            svg = reliability_svg(shown, f"Probabilities on {name}")
            write_atomically(run.folder / f"reliability_{name}.svg", svg)


def _prompts_alone(responses: Examples) -> Examples:
    return replace(responses, completion_ids=tuple(() for _ in responses.completion_ids))


def _check_no_leak(training: Examples, held_out: Mapping[str, Examples]) -> None:
    """By tokens: ids of problems may be the same in files that have nothing to do with each other.

    Raises:
        ValueError: A prompt is on both sides.
    """
    seen = set(training.prompt_ids)
    for name, own in held_out.items():
        both = zip(own.groups, own.prompt_ids, strict=True)
        shared = {group for group, ids in both if ids in seen}
        if shared:
            raise ValueError(
                f"{len(shared)} prompts of the evaluation set {name!r} are trained on, such as "
                f"problem {min(shared)!r}: its figures would say nothing; give other problems, or "
                "hold some out by data.hold_out"
            )


def _head_writer(run: OfflineRun, *, copy: bool = False) -> Callable[[Path], None]:
    from rlvr.learner.head_rewards import HEAD
    from rlvr.reward_models.heads import OutcomeRewardModel, head_writer

    model = run.learner.store.models.auxiliary[HEAD]
    assert isinstance(model, OutcomeRewardModel)
    return head_writer(model, keep=run.ranks.first, copy=copy)


def _export(run: OfflineRun) -> None:
    """Write the model folder, head and all, whole or not at all; collective."""
    from rlvr.runs.model_folder import export

    export(run.policy, run.tokenizer, run.folder, run.ranks, beside=_head_writer(run))
