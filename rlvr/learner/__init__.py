"""Parameters: the engine that holds them, the update step, checkpoints."""

from rlvr.learner.checkpoint import (
    CheckpointError,
    CheckpointWriter,
    checkpoint_path,
    latest_checkpoint,
    load_state,
    random_states,
    restore_random_states,
    save_checkpoint,
    written_by,
)
from rlvr.learner.launch import Launch, join
from rlvr.learner.learner import Learner
from rlvr.learner.models import Models
from rlvr.learner.settings import LearnerSettings, OptimizerSettings, Schedule

__all__ = [
    "CheckpointError",
    "CheckpointWriter",
    "Launch",
    "Learner",
    "LearnerSettings",
    "Models",
    "OptimizerSettings",
    "Schedule",
    "checkpoint_path",
    "join",
    "latest_checkpoint",
    "load_state",
    "random_states",
    "restore_random_states",
    "save_checkpoint",
    "written_by",
]
