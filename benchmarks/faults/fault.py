"""What a kind of fault is: how it is injected, what must be said of it, and what may come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .case import Case

Work = Callable[["Case"], None]
EXACT, NAMED, WRONG, HANG = "exact resume", "named stop", "wrong", "hang"
OUTCOMES = (EXACT, NAMED, WRONG, HANG)
BAD = (WRONG, HANG)
FAILED, REFUSED, SAVED, FINISHED = 1, 2, 75, 0
"""Exit statuses of a start."""
MOUNT, SOCKETS = "mount file systems", "take sockets of other processes"
"""Rights."""


def nothing(case: Case) -> None:
    """No step of this kind."""


@dataclass(frozen=True)
class Fault:
    """``prepare``: before the first start, of data and hooks. ``inject``: while that one runs.
    ``statuses``: how it may end; ``says``: patterns that its output, or its logs, must then hold,
    ``{name}`` being a fact of the case (a start that ends with 0 need not say anything, unless 0
    is all that it may end with). ``after``: once it has ended. ``refused``: patterns of the next
    start, which must end with status 2; ``mend`` then does what it asks for. ``then_says``: of the
    last start, which must end with 0 and leave what an undisturbed run leaves. ``check``: what else
    is wrong, in words. ``lasting``: hook and settings are the run's own, not the fault of one
    start. ``close``: losses to 1e-5 on another world size, not bits. ``needs``: a right that not
    every process has (campaign.RIGHTS). ``not_under``: layouts that it makes no sense for.
    ``turns``: runs of it in a round of the campaign."""

    name: str
    family: str
    inject: Work
    statuses: tuple[int, ...]
    says: tuple[str, ...] = ()
    prepare: Work = nothing
    after: Work | None = None
    refused: tuple[str, ...] = ()
    mend: Work = nothing
    then_says: tuple[str, ...] = ()
    check: Callable[[Case], list[str]] = lambda case: []
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    lasting: bool = False
    close: bool = False
    real: bool = False
    needs: str = ""
    not_under: frozenset[str] = frozenset()
    turns: int = 2
    bound_s: float = 90.0
