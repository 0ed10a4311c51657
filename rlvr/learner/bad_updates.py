"""Updates that are no good, and the end of a run that can do nothing else.

A step whose gradient is not finite is not taken. One such step may be an accident; several in a row
mean that the weights give no numbers any more, and every later step would be skipped as well. A
step may also be taken and leave infinite weights behind (a rate of 1e30): nothing undoes it.
"""

from collections.abc import Collection, Mapping

from rlvr.learner.parameter_store import StepResult


class DivergedError(ValueError):
    """Training cannot go on; the message says why, and the run where from it can."""


class BadUpdates:
    """Counts skipped updates, and ends training where it cannot recover.

    Every rank counts the same, because norms and counts of weights are those of all ranks.

    Args:
        most: So many skipped updates in a row end it.

    Attributes:
        skipped: Since the start.
        in_a_row: Of each model that steps, up to now.
    """

    def __init__(self, most: int) -> None:
        self.most, self.skipped = most, 0
        self.in_a_row: dict[str, int] = {}

    def count(self, result: StepResult, models: Collection[str]) -> None:
        """Take note of a step of these models.

        Raises:
            DivergedError: It left infinite weights, or was skipped as others in a row before it.
        """
        if result.bad_weight is not None:
            raise DivergedError(
                f"the update made weights infinite or NaN, first {result.bad_weight!r}; "
                "lower learner.lr"
            )
        self.skipped += result.skipped
        for model in models:
            self.in_a_row[model] = self.in_a_row.get(model, 0) + 1 if result.skipped else 0
        if result.bad_gradient is not None and max(self.in_a_row.values()) >= self.most:
            raise DivergedError(
                f"learner.max_bad_updates = {self.most}: {max(self.in_a_row.values())} updates in "
                f"a row had a gradient that is not finite, this one first in "
                f"{result.bad_gradient!r}, and were not applied; lower learner.lr or "
                "learner.max_grad_norm"
            )

    def check_end(self) -> None:
        """See that the last update of every model was taken, before weights are called final.

        Raises:
            DivergedError: It was not.
        """
        worst = max(self.in_a_row.values(), default=0)
        if worst:
            raise DivergedError(
                f"the run ends with {worst} updates in a row whose gradient was not finite, so its "
                "last weights may give no probabilities; lower learner.lr, or export them by rlvr "
                "export if you know better"
            )

    def state(self) -> dict[str, int]:
        """For a checkpoint: how many were skipped in a row, by model."""
        return dict(self.in_a_row)

    def load_state(self, state: Mapping[str, int]) -> None:
        """Take back what :meth:`state` gave."""
        self.in_a_row = dict(state)
