"""``python -m rlvr``, and with it ``accelerate launch -m rlvr ...``."""

from rlvr.cli import main

if __name__ == "__main__":
    main()
