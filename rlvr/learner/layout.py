"""Whether a policy's completions share their prompt's positions in an update."""

from rlvr.learner.settings import UpdateSettings
from rlvr.policy.model import Policy, packing_is_exact


def packs(policy: Policy, settings: UpdateSettings) -> bool:
    """What ``learner.layout`` comes to for this model.

    Raises:
        ValueError: Packing is asked for, and does not give this model's numbers.
    """
    packed = settings.layout != "padded" and packing_is_exact(policy)
    if settings.layout == "packed" and not packed:
        raise ValueError(
            "learner.layout = 'packed' gives this model other numbers than one row at a time "
            "(sliding windows, or an attention that takes no block mask); use auto or padded"
        )
    return packed
