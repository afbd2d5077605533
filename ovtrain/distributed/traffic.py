"""Counting what collectives carry, at run time: calls and payload bytes by kind.

Counted is what torch's dispatcher hands to a process group on this thread (and on the threads of
its backward passes), whoever called: ovtrain.distributed.collectives, DeepSpeed, torch itself.

Payload, W ranks: an all-reduce, a reduce and a broadcast count the tensor; an all-gather the whole
gathered output (W parts), a reduce-scatter the whole input (W parts). How much of it crosses a
link is a matter of the algorithm: ``ovtrain.costs.links``.
"""

# torch's dispatch modes are only partly typed.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

KINDS = {
    "allreduce_": "all_reduce",
    "allreduce_coalesced_": "all_reduce",
    "_allgather_base_": "all_gather",
    "allgather_": "all_gather",
    "allgather_coalesced_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
    "broadcast_": "broadcast",
    "reduce_": "reduce",
    "gather_": "gather",
    "scatter_": "scatter",
    "alltoall_": "all_to_all",
    "alltoall_base_": "all_to_all",
}
"""torch's operators of the ``c10d`` namespace, and the kinds that they count as. A barrier carries
nothing; an operator that is missing here is an error, never a silent zero. So is torch's other way
into a process group, functional collectives (``_c10d_functional``), which do not come by here."""
_EMPTY = {"barrier", "monitored_barrier_"}


class Traffic(TorchDispatchMode):
    """A context that counts. ``calls`` and ``bytes``: by kind, since it was made."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if "c10d" in func.namespace:
            name = func._schema.name.partition("::")[2]
            if func.namespace != "c10d" or name not in KINDS.keys() | _EMPTY:
                raise NotImplementedError(f"{func}: a collective that is not counted")
            if name not in _EMPTY:
                self.calls[KINDS[name]] += 1
                self.bytes[KINDS[name]] += max(map(_size, args))
        return func(*args, **(kwargs or {}))


def _size(value: Any) -> int:
    """Bytes of the tensors in an argument. The largest argument of a call is its payload: the
    output of a gather, the input of a scatter."""
    return sum(x.numel() * x.element_size() for x in _tensors(value))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
        return
    parts: list[Any] = list(value) if type(value) in (list, tuple) else []
    for part in parts:
        yield from _tensors(part)
