"""Reinforcement learning from verifiable rewards: recipe, rollouts, batches, the loop."""
