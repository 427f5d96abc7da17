"""The command line: `pliant VERB ...`. See `pliant --help`."""

from .main import main

__all__ = ["main"]
