"""Finished models for others to run: written, read back and checked against eval mode."""

from pliant.ship.writer import export

__all__ = ["export"]
