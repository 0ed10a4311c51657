"""``python -m rlvr``, and with it ``accelerate launch -m rlvr ...``."""

from rlvr.lazy import working_directory_last

working_directory_last()

from rlvr.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
