"""Matrix products whose inputs are bfloat16 and whose result is float32."""

# torch.backends.mkldnn.matmul is untyped.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ovtrain.ops.buffers import Buffers


def mm_float32(a: Tensor, b: Tensor, buffers: Buffers) -> Tensor:
    """(n, k) @ (m, k).T -> (n, m) float32, summed in float32; the inputs are float32 or bfloat16.
    On a CPU the result is overwritten by the next call."""
    if a.is_cuda:
        return torch.mm(a, b.T, out_dtype=torch.float32)
    out = buffers.empty("float32 product", (len(a), len(b)), torch.float32)
    if a.dtype == torch.float32:
        return torch.mm(a, b.T, out=out)
    wide = [
        buffers.empty(f"float32 {name}", tuple(x.shape), torch.float32).copy_(x)
        for name, x in (("a", a), ("b", b))
    ]
    with products_in("bf16"):  # the inputs are rounded already: nothing is lost
        return torch.mm(wide[0], wide[1].T, out=out)


@contextmanager
def products_in(precision: str, device_type: str = "cpu") -> Iterator[None]:
    """Take products of float32 matrices in "bf16" (CPU) or in nothing less than float32 ("ieee"),
    whatever the process has set, where torch can be told so (2.9)."""
    backend = torch.backends.cuda if device_type == "cuda" else torch.backends.mkldnn
    matmul = getattr(backend, "matmul", None)
    if matmul is None or not hasattr(matmul, "fp32_precision"):
        yield
        return
    before = matmul.fp32_precision
    matmul.fp32_precision = precision
    try:
        yield
    finally:
        matmul.fp32_precision = before
