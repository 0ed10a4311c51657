"""Post-training of language models by reinforcement learning from verifiable rewards.

The rooms, from the top down: ``train`` (the loops), ``learner`` (parameters), ``rollout`` (text
out), ``policy`` (the model as a function), ``objective`` (pure maths), ``data`` (problems in),
``settings`` and ``types``. A room imports only rooms below it; import-linter checks that.
"""

__version__ = "0.1.0"
