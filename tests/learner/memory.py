"""A learner that runs out of memory when told to."""


def short_of_memory(learner, times, message="DefaultCPUAllocator: can't allocate memory: 9 bytes"):
    """Let the second micro-batch of the next ``times`` attempts fail as an allocation does."""
    backward, calls = learner.store.backward, []

    def failing(loss, **options):
        calls.append(loss)
        if times and len(calls) % 2 == 0 and len(calls) <= 2 * times:
            raise RuntimeError(message)
        backward(loss, **options)

    learner.store.backward = failing
