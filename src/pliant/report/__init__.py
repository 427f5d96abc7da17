"""A study's result as one HTML file that opens anywhere, without a network."""

from .page import render, write

__all__ = ["render", "write"]
