"""Parameters: the engine that holds them, the update step, checkpoints."""

from rlvr.learner.checkpoint import (
    CheckpointError,
    CheckpointWriter,
    adopt_checkpoint,
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
from rlvr.learner.outcome import OutcomeLearner
from rlvr.learner.preference import PreferenceLearner, adapters_off
from rlvr.learner.preference_batch import PreferenceBatch
from rlvr.learner.reward_model import PRM, PrimeSettings, PrimeTraining, RewardModel
from rlvr.learner.routing import RouterSettings, RouterTraining
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
    "OutcomeLearner",
    "PreferenceBatch",
    "PreferenceLearner",
    "PrimeSettings",
    "PrimeTraining",
    "RewardModel",
    "RouterSettings",
    "RouterTraining",
    "Schedule",
    "adapters_off",
    "adopt_checkpoint",
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
