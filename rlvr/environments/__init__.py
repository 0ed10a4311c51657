"""Episodes of several turns: environments, and how they speak in token ids."""

from rlvr.environments.environment import Action, Done, Environment, Observation
from rlvr.environments.episode import Environments, environment_class, opened_all
from rlvr.environments.settings import EnvironmentSettings

__all__ = [
    "Action",
    "Done",
    "Environment",
    "EnvironmentSettings",
    "Environments",
    "Observation",
    "environment_class",
    "opened_all",
]
