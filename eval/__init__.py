"""Numbers people can trust: benchmarks, generation, scoring, metrics, comparison, report.

Generation and scoring are apart. ``rlvr eval`` samples every benchmark with one engine and keeps
each sample; ``rlvr score`` grades what is there, needs no model, and may be done again with another
grader; ``rlvr compare`` sets evaluations side by side. The pure parts (``eval.metrics``,
``eval.statistics``, ``eval.swiss``) know nothing of folders and models.
"""
