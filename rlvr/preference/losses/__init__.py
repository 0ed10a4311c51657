"""Preference losses, chosen by name in a recipe (``base.py``); relatives share a file."""
