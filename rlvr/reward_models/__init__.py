"""Reward models as maths: implicit and explicit rewards, their losses, pairs, steps, quality."""
