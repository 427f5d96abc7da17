"""Numbers and counts as a reader wants to see them."""

from __future__ import annotations

import math
from collections.abc import Sequence

NONE = "–"
"""What stands where there is no number."""


def finite(value: object) -> float | None:
    """`value` as a float, or None when it is missing or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def number(value: object, unit: str = "") -> str:
    """A value in its unit's usual precision: whole steps, four decimals below ten, else four digits.

    >>> number(1234.4, "steps"), number(0.93125, "accuracy"), number(None)
    ('1,234', '0.9313', '–')
    """
    v = finite(value)
    if v is None:
        return NONE
    size = abs(v)
    if unit == "steps":
        text = f"{size:,.0f}" if size >= 10 or size == round(size) else f"{size:.1f}"
    elif size >= 1000:
        text = f"{size:,.0f}"
    elif size >= 10:
        text = f"{size:.4g}"
    else:
        text = f"{size:.4f}"
    return ("−" if v < 0 and text.strip("0.,") else "") + text


def signed(value: object, unit: str = "") -> str:
    """`number` with its sign always shown, except for zero."""
    text = number(value, unit)
    v = finite(value)
    return "+" + text if v is not None and v > 0 and text.strip("0.,") else text


def interval(bounds: Sequence[object] | None, unit: str = "", sign: bool = True) -> str:
    """ "a to b"; a bound that is missing or infinite is said to be open."""
    if not bounds:
        return NONE
    lo, hi = (finite(b) for b in bounds)
    write = signed if sign else number
    if lo is None and hi is None:
        return "unbounded"
    if lo is None:
        return f"up to {write(hi, unit)}"
    if hi is None:
        return f"{write(lo, unit)} or more"
    return f"{write(lo, unit)} to {write(hi, unit)}"


def probability(value: object) -> str:
    """A p value: three decimals, or "< 0.001"."""
    v = finite(value)
    if v is None:
        return NONE
    return "< 0.001" if v < 0.001 else f"{v:.3f}"


def duration(seconds: object) -> str:
    """Seconds in the largest unit that keeps two digits.

    >>> duration(0.025), duration(8.3), duration(200), duration(7200)
    ('25 ms', '8.3 s', '3.3 min', '2.0 h')
    """
    v = finite(seconds)
    if v is None:
        return NONE
    for size, name in ((3600.0, "h"), (60.0, "min")):
        if v >= size * 1.5:
            return f"{v / size:.1f} {name}"
    return f"{v:.1f} s" if v >= 1 else f"{1e3 * v:.0f} ms"


def rate(value: object) -> str:
    """A learning rate, shortest form."""
    v = finite(value)
    return NONE if v is None else f"{v:g}"


def ratio(value: object) -> str:
    """A factor, "1.25×"."""
    v = finite(value)
    return NONE if v is None else f"{v:.2f}×"


def several(items: Sequence[str]) -> str:
    """Items as English says them.

    >>> several(["a"]), several(["a", "b"]), several(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    if len(items) < 2:
        return "".join(items)
    return ", ".join(items[:-1]) + " and " + items[-1]


def plural(count: int, noun: str) -> str:
    """A count with its noun.

    >>> plural(1, "pair"), plural(3, "pair")
    ('1 pair', '3 pairs')
    """
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def shorten(text: str, length: int = 22) -> str:
    """`text`, or its beginning and an ellipsis."""
    flat = " ".join(text.split())
    return flat if len(flat) <= length else flat[: length - 1] + "…"
