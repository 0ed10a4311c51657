"""Sweeps: one recipe with every combination of some settings, in turn or as a SLURM array."""
