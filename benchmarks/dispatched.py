"""Counts what a piece of torch code dispatches: launches, and waits of the host for a device.

Nothing has to run on a device for that: an operator whose result's shape or value depends on data
makes the host wait wherever its tensors are on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

NO_WORK = (
    *("view", "_unsafe_view", "t", "transpose", "slice", "select", "detach", "alias"),
    *("expand", "unsqueeze", "squeeze", "as_strided", "permute", "split", "split_with_sizes"),
    *("unbind", "empty", "empty_like", "empty_strided", "new_empty", "lift_fresh"),
    *("is_pinned", "_reshape_alias"),
)
WAITING = (
    *("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim"),
    *("is_nonzero", "equal"),
)


class Dispatched(TorchDispatchMode):
    """``launches``: operators that compute or copy; ``waits``: names of those that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0
        self.waits: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function._schema.name.removeprefix("aten::").rstrip("_")
        masked = name in ("index", "index_put") and any(
            x is not None and x.dtype == torch.bool for x in args[1]
        )
        if name in WAITING or masked:
            self.waits.append(name)
        self.launches += name not in NO_WORK
        return function(*args, **(kwargs or {}))
