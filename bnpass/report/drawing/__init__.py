"""Drawings of networks: SVG, PNG and PDF by a layout of our own; DOT and Mermaid as text."""

from bnpass.report.drawing.files import FORMATS, draw
from bnpass.report.drawing.picture import Marks, Picture, difference, picture

__all__ = ["FORMATS", "Marks", "Picture", "difference", "draw", "picture"]
