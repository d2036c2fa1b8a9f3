"""Gradient maps for programs that do not know this package."""

from nablanets.interop.exporting import Exported, export

__all__ = ["Exported", "export"]
