"""Typed, frozen settings: the strict base model, YAML recipes and command-line overrides."""

from rlvr.settings.base import Settings
from rlvr.settings.describe import INHERIT, FieldDescription, describe, markdown_table
from rlvr.settings.inherit import read_recipe
from rlvr.settings.load import load_settings, to_yaml
from rlvr.settings.parse import parse_yaml
from rlvr.settings.registered import Registered

__all__ = [
    "INHERIT",
    "FieldDescription",
    "Registered",
    "Settings",
    "describe",
    "load_settings",
    "markdown_table",
    "parse_yaml",
    "read_recipe",
    "to_yaml",
]
