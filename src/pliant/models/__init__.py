"""The papers' networks, small to full size, and any model of the user's, by name."""

from pliant.models.registry import build, model_factories

__all__ = ["build", "model_factories"]
