"""What commands do before they import the heavy libraries."""

import os


def quiet_libraries() -> None:
    """Keep other libraries' bars and notices out of our progress display."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    from transformers.utils import logging

    if not torch.accelerator.is_available():
        # Saying so spares DeepSpeed, which accelerate imports, a warning at every start.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
