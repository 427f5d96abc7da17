"""What pliant raises. Every message names the cause (what was found, where) and the remedy (what to do)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PliantError(Exception):
    """Base of everything pliant raises on purpose. `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(PliantError, ValueError):
    """Something the user gave (a file, key, value, shape) cannot be used."""

    exit_code = 2


class SettingError(InputError):
    """A method's or recipe's field has an impossible value."""


class NoMatchError(InputError):
    """A method would change nothing in this model: almost always a wrong selector or the wrong model."""


class ConflictError(InputError):
    """Two methods cannot work together, or want the same place in the model."""


class TraceError(InputError):
    """The model's forward could not be followed; name the places with `where=` instead."""


class CheckpointError(InputError):
    """A checkpoint is damaged, from another version, or made with another stack."""


class ContractError(PliantError):
    """A line of the training loop is missing, so a method was silently doing nothing."""


class FinalizeError(PliantError):
    """The finished model does not compute what the trained one computes in eval mode."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """A clause that names the nearest right spellings of `name`, or all choices when none is near.

    >>> nearest("bath_norm", ["batch_norm", "elu"])
    "did you mean 'batch_norm'?"
    >>> nearest("zzz", ["batch_norm", "elu"])
    'choose from: batch_norm, elu'
    """
    known = sorted(set(choices))
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "choose from: " + ", ".join(known) if known else "there is nothing to choose from"
