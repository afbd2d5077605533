"""Matrix products whose inputs are bfloat16 and whose result is float32."""

# torch.backends.mkldnn.matmul is untyped.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def mm_float32(a: Tensor, b: Tensor) -> Tensor:
    """(n, k) @ (k, m) -> (n, m) float32, summed in float32; the inputs are float32 or bfloat16."""
    if a.dtype == torch.float32:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    with _bfloat16_products():  # the inputs are rounded already: nothing is lost
        return a.float() @ b.float()


@contextmanager
def _bfloat16_products() -> Iterator[None]:
    """Let the CPU take products of float32 matrices in bfloat16, where torch can (2.9)."""
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    if matmul is None:
        yield
        return
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
