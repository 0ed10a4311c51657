"""Keep other libraries' bars and notices out of the progress display."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


def quiet_libraries() -> None:
    """Quieten them for the rest of the process, as commands do before they load anything heavy."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    from transformers.utils import logging

    if not torch.accelerator.is_available():
        # Saying so spares DeepSpeed, which accelerate imports, a warning at every start.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.disable_progress_bar()
    logging.set_verbosity_error()


@contextmanager
def as_found() -> Iterator[None]:
    """Quieten them, and leave the process as it was found: also torch's random state.

    A run seeds torch's own generators, and a program that draws from them goes on as if there had
    been no run. A GPU that nobody has used yet is not touched for that.
    """
    import torch
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    drawn = torch.get_rng_state()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    quiet_libraries()
    try:
        yield
    finally:
        torch.set_rng_state(drawn)
        torch.cuda.set_rng_state_all(on_gpus)
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
