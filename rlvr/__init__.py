"""Post-training of language models by reinforcement learning from verifiable rewards.

From Python, with the same settings, checks and files as the command line (docs/python.md)::

    import rlvr

    run = rlvr.train("./model", rows, rewards=[my_reward], steps=20, learner={"lr": 1e-5})
    print(run.metrics["reward/mean"])
    run.report()

The rooms, from the top down: ``cli`` and ``api``; ``report``, ``hub``, ``bench``; ``rl`` and
``tasks`` (the loops); ``runs`` (what every run has); ``learner`` (parameters); ``rollout`` (text
out); ``policy`` (the model as a function); ``objective`` and ``preference`` (pure maths); ``data``
(problems in); ``settings`` and ``types``. A room imports only rooms below it; import-linter checks
that. docs/architecture.md says more.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from reward import Grade as Grade
    from reward.functions import RewardInput as RewardInput
    from rlvr.api.measuring import EvaluationResult as EvaluationResult
    from rlvr.api.measuring import evaluate as evaluate
    from rlvr.api.measuring import grade as grade
    from rlvr.api.others import generate_traces as generate_traces
    from rlvr.api.others import list_settings as list_settings
    from rlvr.api.others import tiny_model as tiny_model
    from rlvr.api.recorded_run import RecordedRun as RecordedRun
    from rlvr.api.recorded_run import load as load
    from rlvr.api.training import train as train
    from rlvr.runs.callers import StopTraining as StopTraining

# Where a name is found when it is first asked for: importing rlvr loads nothing.
_MODULES = {
    "EvaluationResult": "rlvr.api.measuring",
    "Grade": "reward",
    "RecordedRun": "rlvr.api.recorded_run",
    "RewardInput": "reward.functions",
    "StopTraining": "rlvr.runs.callers",
    "evaluate": "rlvr.api.measuring",
    "generate_traces": "rlvr.api.others",
    "grade": "rlvr.api.measuring",
    "list_settings": "rlvr.api.others",
    "load": "rlvr.api.recorded_run",
    "tiny_model": "rlvr.api.others",
    "train": "rlvr.api.training",
}
__all__ = [
    "EvaluationResult",
    "Grade",
    "RecordedRun",
    "RewardInput",
    "StopTraining",
    "__version__",
    "evaluate",
    "generate_traces",
    "grade",
    "list_settings",
    "load",
    "tiny_model",
    "train",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _MODULES:
        raise AttributeError(
            f"module 'rlvr' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    import warnings
    from importlib import import_module

    with warnings.catch_warnings():
        # Of tqdm, which other libraries load: our own progress needs no widgets.
        warnings.filterwarnings("ignore", message="IProgress not found")
        value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
