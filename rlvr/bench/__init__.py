"""Benchmarks: where the seconds of a step go, compared with the limits of the machine."""
