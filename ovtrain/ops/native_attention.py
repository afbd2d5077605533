"""Attention over packed sequences on CPUs that multiply bfloat16: our own kernels, with gradients.

    native_attention(q, k, v, bounds) -> (N, H, d)

q, k, v (N, H, d) bfloat16, d a multiple of 32; bounds (B+1,) int32; each sequence attends to
itself. Scores are never stored; the backward pass makes them anew. Sums are float32, weights and
the gradients of scores are rounded to bfloat16 before they are multiplied, as in torch's kernel,
which is the reference. The same bits every time, whatever the number of threads. An ImportError
says that this machine or this installation has no such kernels.
"""

# The extension is untyped.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ovtrain.ops import _native  # pyright: ignore[reportAttributeAccessIssue]

if not _native.attention_runs_here():
    raise ImportError("this processor has no AVX-512 products of bfloat16")


def native_attention(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor) -> Tensor:
    """See the module."""
    return _Attention.apply(q, k, v, bounds)  # pyright: ignore[reportReturnType]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bounds: Tensor) -> Tensor:
        q, k, v = (_rows(x) for x in (q, k, v))
        out = torch.empty(q.shape, dtype=q.dtype)
        lse = torch.empty(q.shape[1], q.shape[0])
        scale = q.shape[-1] ** -0.5
        _native.attend(q, k, v, bounds, out, lse, scale, torch.get_num_threads())
        ctx.save_for_backward(q, k, v, bounds, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # pyright: ignore
        q, k, v, bounds, out, lse = ctx.saved_tensors
        gradients = [torch.empty(q.shape, dtype=q.dtype) for _ in range(3)]
        scale, threads = q.shape[-1] ** -0.5, torch.get_num_threads()
        given = (q, k, v, bounds, out, lse, _rows(grad))
        _native.attend_backward(*given, *gradients, scale, threads)
        return gradients[0], gradients[1], gradients[2], None


def _rows(x: Tensor) -> Tensor:
    """Of which each row of a head is contiguous."""
    x = x.detach()
    return x if x.stride(-1) == 1 else x.contiguous()
