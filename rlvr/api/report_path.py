"""The path of a report, which a notebook shows as the report itself."""

from html import escape
from pathlib import PosixPath

_FRAME_HEIGHT = 720


class ReportPath(PosixPath):
    """Path of an HTML page, which a notebook shows as the page itself."""

    def _repr_html_(self) -> str | None:
        if self.suffix != ".html" or not self.is_file():
            return None
        page = escape(self.read_text(encoding="utf-8"), quote=True)
        style = f'style="width: 100%; height: {_FRAME_HEIGHT}px; border: 0"'
        return f'<iframe srcdoc="{page}" {style}></iframe>'
