"""Episodes of several turns: environments, and how they speak in token ids.

What a recipe needs is here; :mod:`rlvr.environments.episode`, which loads the verifier, is not.
"""

from rlvr.environments.environment import Action, Done, Environment, Observation
from rlvr.environments.settings import EnvironmentSettings

__all__ = ["Action", "Done", "Environment", "EnvironmentSettings", "Observation"]
