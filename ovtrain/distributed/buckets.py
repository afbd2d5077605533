"""Sums of gradients over data ranks, bucket by bucket, beside the backward pass.

Parameters get their gradients from the last to the first. As soon as those of a bucket are there,
its sum over ranks begins; at the end of the pass little is left to wait for. Buckets begin in one
order on all ranks, whatever order autograd ends them in.
"""

# torch.nn is only partly typed.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ovtrain.costs.buckets import PLAIN_BUCKET, cut_into_buckets
from ovtrain.distributed.collectives import Later, reduce_later


class GradientBuckets:
    """``numel``: a bucket is full with so many numbers, whole parameters."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        group: dist.ProcessGroup,
        numel: int = PLAIN_BUCKET,
    ) -> None:
        backwards = list(reversed(parameters))
        sizes = [p.numel() for p in backwards]
        self._buckets = [[backwards[i] for i in b] for b in cut_into_buckets(sizes, numel)]
        self._home = {p: n for n, bucket in enumerate(self._buckets) for p in bucket}
        self._group = group
        self._missing = list[int]()
        self._begun = list[Later]()
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._note)

    def arm(self) -> None:
        """The next backward pass completes the gradients."""
        self._missing = [len(bucket) for bucket in self._buckets]
        self._begun = []

    def wait(self) -> None:
        """Until every gradient is the sum over ranks."""
        while len(self._begun) < len(self._buckets):
            self._begin()
        for bucket, sum_ in zip(self._buckets, self._begun, strict=True):
            parts = torch.split(sum_.wait(), [p.numel() for p in bucket])
            for parameter, part in zip(bucket, parts, strict=True):
                assert parameter.grad is not None
                parameter.grad.copy_(part.view_as(parameter))
        self._missing, self._begun = [], []

    def _note(self, parameter: Tensor) -> None:
        if not self._missing:
            return
        self._missing[self._home[parameter]] -= 1  # type: ignore[index]
        begun = len(self._begun)
        while begun < len(self._buckets) and not self._missing[begun]:
            self._begin()
            begun += 1

    def _begin(self) -> None:
        bucket = self._buckets[len(self._begun)]
        for parameter in bucket:
            if parameter.grad is None:  # took no part in the pass
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in bucket if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        self._begun.append(reduce_later(flat, self._group))
