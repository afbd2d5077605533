"""Numbers as a chart and a table show them: short, round, told from rounding."""

from __future__ import annotations

import math

FLAT = 1e-9
"""A spread that is a smaller share of the values themselves is rounding, no change."""
UNITS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k"))
"""From which size on."""


def number(value: float, digits: int = 3) -> str:
    """Short text of a number, of at most 6 ``digits``: 1234567 -> 1.23M, 0.00012 -> 0.00012; one
    below 10,000 keeps all before its point."""
    if value != value or abs(value) == math.inf:
        return str(value)
    # Rounded before its unit is chosen: 999,700 is 1M, not 1000k.
    shown = float(f"{value:.{digits}g}")
    if abs(shown) >= 1000 and abs(round(value)) < 1e4:
        return str(round(value))
    for limit, unit in UNITS:
        if abs(shown) >= limit:
            return f"{shown / (1e3 if unit == 'k' else limit):g}{unit}"
    return str(int(value)) if float(value).is_integer() else f"{shown:g}"


def flat(low: float, high: float) -> bool:
    """Whether values from ``low`` to ``high`` are one value, but for rounding."""
    return high - low <= max(FLAT * max(abs(low), abs(high)), 1e-300)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside [low, high]."""
    if flat(low, high):
        return [low]
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]
