"""Parameters: the engine that holds them, the update step, checkpoints."""

from rlvr.learner.checkpoint import (
    CheckpointError,
    CheckpointWriter,
    checkpoint_path,
    find_fault,
    latest_checkpoint,
    load_state,
    random_states,
    restore_random_states,
    save_checkpoint,
    written_by,
)
from rlvr.learner.critic import CRITIC, CriticSettings, CriticTraining
from rlvr.learner.launch import Launch, join
from rlvr.learner.learner import Learner
from rlvr.learner.models import Models
from rlvr.learner.preference import PreferenceLearner, adapters_off
from rlvr.learner.preference_batch import PreferenceBatch
from rlvr.learner.reward_model import PRM, PrimeSettings, PrimeTraining, RewardModel
from rlvr.learner.settings import LearnerSettings, OptimizerSettings, Schedule

__all__ = [
    "CRITIC",
    "PRM",
    "CheckpointError",
    "CheckpointWriter",
    "CriticSettings",
    "CriticTraining",
    "Launch",
    "Learner",
    "LearnerSettings",
    "Models",
    "OptimizerSettings",
    "PreferenceBatch",
    "PreferenceLearner",
    "PrimeSettings",
    "PrimeTraining",
    "RewardModel",
    "Schedule",
    "adapters_off",
    "checkpoint_path",
    "find_fault",
    "join",
    "latest_checkpoint",
    "load_state",
    "random_states",
    "restore_random_states",
    "save_checkpoint",
    "written_by",
]
