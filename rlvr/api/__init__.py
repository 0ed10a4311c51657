"""What ``import rlvr`` offers a Python program; the names stand in ``rlvr/__init__.py``."""
