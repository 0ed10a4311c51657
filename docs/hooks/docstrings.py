"""Docstrings are written for readers of the source; the site shows them as Markdown."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`~?(?:[\w.]+\.)?([^`.]+)`")


class Roles(griffe.Extension):
    """``:class:`~package.Name``` becomes ```Name```."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:  # noqa: ANN401
        """Rewrite the docstring of every object, before it is parsed."""
        if obj.docstring:
            obj.docstring.value = _ROLE.sub(r"`\1`", obj.docstring.value)
