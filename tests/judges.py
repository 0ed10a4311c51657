"""Reward functions that are not sure: for tests, and for the benchmark of uncertain rewards."""

import hashlib
import random


def noisy_judge(item, *, draw=0, easy=0.1, hard=1.5, seed=0):
    """The verdict with normal noise: little for half of the responses, much for the others.

    Which half, and the noise of each draw, are functions of the response.
    """
    key = hashlib.sha256(item.response.encode()).digest()
    spread = hard if key[0] % 2 else easy
    noise = random.Random(f"{seed} {draw} {key.hex()} {item.gold}").gauss(0, 1)
    return float(item.grade.correct) + spread * noise


def sure(item):
    """The verdict."""
    return float(item.grade.correct)
