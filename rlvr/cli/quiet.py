"""What commands do before they import the heavy libraries."""

from rlvr.api.quiet import quiet_libraries

__all__ = ["quiet_libraries"]
