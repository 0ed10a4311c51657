"""Parameters: the engine that holds them, the update step, checkpoints."""

from rlvr.learner.checkpoint import (
    CheckpointError,
    checkpoint_path,
    latest_checkpoint,
    load_state,
    random_states,
    restore_random_states,
    save_checkpoint,
)
from rlvr.learner.learner import Learner
from rlvr.learner.preference import PreferenceBatch, PreferenceLearner, adapters_off
from rlvr.learner.settings import LearnerSettings, Schedule

__all__ = [
    "CheckpointError",
    "Learner",
    "LearnerSettings",
    "PreferenceBatch",
    "PreferenceLearner",
    "Schedule",
    "adapters_off",
    "checkpoint_path",
    "latest_checkpoint",
    "load_state",
    "random_states",
    "restore_random_states",
    "save_checkpoint",
]
