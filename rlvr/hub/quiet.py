"""Keep the Hub's client from talking beside our own messages."""

import warnings


def quiet_hub(*, bars: bool) -> None:
    """Errors only; ``bars`` keeps the client's own progress bars."""
    from huggingface_hub.utils import disable_progress_bars, logging

    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module="huggingface_hub")
    if not bars:
        disable_progress_bars()
