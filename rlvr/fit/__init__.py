"""``rlvr fit``: settings with which a model fits into the memory there is, least harm first."""
