"""Typed, frozen settings: the strict base model, YAML recipes and command-line overrides."""

from rlvr.settings.base import Settings
from rlvr.settings.describe import FieldDescription, describe, markdown_table
from rlvr.settings.load import load_settings, parse_yaml, to_yaml

__all__ = [
    "FieldDescription",
    "Settings",
    "describe",
    "load_settings",
    "markdown_table",
    "parse_yaml",
    "to_yaml",
]
