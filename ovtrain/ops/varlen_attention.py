"""Attention over packed sequences: one signature, three backends; the only home of flash_attn.

    varlen_attention(q, k, v, cu_q, cu_k, max_q, max_k, backend) -> (Nq, H, d)

q (Nq, H, d); k, v (Nk, H, d); cu_q, cu_k (B+1,) int32 as in flash-attn: rows cu_q[i]:cu_q[i+1] of q
attend to rows cu_k[i]:cu_k[i+1] of k and to nothing else. Not causal, scale d ** -0.5.

``sdpa`` is the reference and runs anywhere; ``varlen`` (torch) and ``flash`` need a GPU.
"""

from __future__ import annotations

import logging
from functools import cache
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ovtrain.schema.errors import ConfigError

log = logging.getLogger(__name__)
SHORT = 192


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    backend: str = "sdpa",
) -> Tensor:
    """See the module. ``backend`` is a name that ``choose_backend`` returned."""
    if backend == "flash":
        from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

        return flash_attn_varlen_func(q, k, v, cu_q, cu_k, max_q, max_k)
    if backend == "varlen":
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k)  # type: ignore[return-value]
    return _sdpa(q, k, v, cu_q, cu_k)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor) -> Tensor:
    """One SDPA call per run of consecutive sequences of equal lengths: exact, nothing padded."""
    lengths = zip(cu_q.diff().tolist(), cu_k.diff().tolist(), strict=True)
    out: list[Tensor] = []
    at_q = at_k = 0
    for (len_q, len_k), run in groupby(lengths):
        count = len(list(run))
        rows_q = slice(at_q, at_q + count * len_q)
        rows_k = slice(at_k, at_k + count * len_k)
        run_q, run_k, run_v = (
            x[rows].unflatten(0, (count, -1)).transpose(1, 2)  # (count, H, len, d)
            for x, rows in ((q, rows_q), (k, rows_k), (v, rows_k))
        )
        attended = _attend(run_q, run_k, run_v)
        out.append(attended.transpose(1, 2).flatten(0, 1))
        at_q, at_k = rows_q.stop, rows_k.stop
    return torch.cat(out)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """SDPA; short sequences in half precision on a CPU are computed in float32, where torch's
    backward is up to four times as fast there (docs/log.md). On long ones it is slower."""
    if q.device.type != "cpu" or q.dtype == torch.float32 or k.shape[-2] > SHORT:
        return scaled_dot_product_attention(q, k, v)
    with torch.autocast("cpu", enabled=False):
        return scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)


def _flash_installed() -> bool:
    try:
        import flash_attn  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    return True


def _varlen_installed() -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: F401
    except ImportError:
        return False
    return True


@cache
def choose_backend(wanted: str, device: str, dtype: torch.dtype) -> str:
    """``auto`` -> the fastest backend for (device type, dtype), logged once.

    Raises ConfigError where a backend is asked for by name that cannot run here.
    """
    half = dtype in (torch.bfloat16, torch.float16)
    usable = {
        "flash": device == "cuda" and half and _flash_installed(),
        "varlen": device == "cuda" and half and _varlen_installed(),
        "sdpa": True,
    }
    if wanted == "auto":
        chosen = next(name for name, works in usable.items() if works)
    elif not usable.get(wanted, False):
        raise ConfigError(
            f"model.attention={wanted}",
            f"cannot run on {device} in {str(dtype).removeprefix('torch.')}",
            allowed=", ".join(name for name, works in usable.items() if works),
            fix="use auto",
        )
    else:
        chosen = wanted
    log.info("attention backend: %s (asked for %s, device %s)", chosen, wanted, device)
    return chosen
