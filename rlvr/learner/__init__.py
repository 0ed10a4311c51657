"""Parameters: the engine that holds them, the update step, checkpoints."""
