"""Evaluation: benchmarks, generation, scoring, metrics, comparison, report.

Generation and scoring are separate. ``rlvr eval`` samples every benchmark with one engine and keeps
each sample. ``rlvr score`` grades existing samples without a model, and can be repeated with
another grader. ``rlvr compare`` compares evaluations. The pure modules (``eval.metrics``,
``eval.statistics``, ``eval.swiss``) know nothing about folders and models.
"""
