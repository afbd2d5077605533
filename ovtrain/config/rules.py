"""Rules for single values, each with the words a user is told. NaN and infinity break them all."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """``allowed`` completes the sentence "key=value; allowed: ..."."""

    allowed: str
    holds: Callable[[float], bool]


FINITE = Rule("a finite number", lambda _: True)
POSITIVE = Rule("a positive number", lambda x: x > 0)
NOT_NEGATIVE = Rule("0 or more", lambda x: x >= 0)
SHARE = Rule("above 0 to 1", lambda x: 0 < x <= 1)
SHARE_OR_NONE = Rule("a share, 0 to 1", lambda x: 0 <= x <= 1)
BELOW_ONE = Rule("0 to below 1", lambda x: 0 <= x < 1)
PERCENTILE = Rule("above 0 to 100", lambda x: 0 < x <= 100)
QUALITY = Rule("1 to 100", lambda x: 1 <= x <= 100)
CRF = Rule("0 (lossless) to 51", lambda x: 0 <= x <= 51)


def broken(section: object, prefix: str, rules: Mapping[Rule, tuple[str, ...]]) -> list[str]:
    """A sentence for each field of ``section`` that breaks its rule. A field that is None is
    left out: there, null has a meaning of its own."""
    found: list[str] = []
    for rule, keys in rules.items():
        for key in keys:
            value = getattr(section, key)
            if value is not None and not (math.isfinite(value) and rule.holds(value)):
                found.append(f"{prefix}{key}={value}; allowed: {rule.allowed}")
    return found


def _shown(value: object) -> str:
    return "null" if value is None else str(value)


def not_among(section: object, prefix: str, choices: Mapping[str, Collection[object]]) -> list[str]:
    """A sentence for each field of ``section`` whose value is none of its choices."""
    return [
        f"{prefix}{key}={getattr(section, key)}; allowed: {', '.join(map(_shown, allowed))}"
        for key, allowed in choices.items()
        if getattr(section, key) not in allowed
    ]
