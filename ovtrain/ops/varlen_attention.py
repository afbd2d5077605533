"""Attention over packed sequences: one signature, four backends; the only home of flash_attn.

    varlen_attention(q, k, v, rows_q, rows_k, backend) -> (Nq, H, d)

q (Nq, H, d); k, v (Nk, H, d). ``rows_q`` and ``rows_k`` are ``Sequences`` of one length: sequence i
of q attends to sequence i of k and to nothing else. Not causal, scale d ** -0.5.

``sdpa`` is the reference and runs anywhere; ``native`` (``native_attention.py``) needs a CPU with
bfloat16 products; ``varlen`` (torch) and ``flash`` need a GPU and half precision. Under
``torch.use_deterministic_algorithms`` backward passes are deterministic, too.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ovtrain.schema.errors import ConfigError

try:
    from ovtrain.ops.native_attention import native_attention
except ImportError:
    native_attention = None
try:
    from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]
except ImportError:
    flash_attn_varlen_func = None
try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None

log = logging.getLogger(__name__)
HALF = (torch.bfloat16, torch.float16)
SHORT = 256


@dataclass(frozen=True)
class Sequences:
    """Rows bounds[i]:bounds[i+1] of a packed tensor are sequence i; it may be empty. ``bounds``
    (B+1,) int32 and ``longest``, an upper bound of the lengths, are flash-attention's
    ``cu_seqlens`` and ``max_seqlen``."""

    bounds: Tensor
    longest: int

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @cached_property
    def lengths(self) -> list[int]:
        """On the host; asked for once per batch, and by ``sdpa`` alone."""
        return self.bounds.diff().tolist()

    def one_each(self) -> Sequences:
        """As many sequences of one row."""
        bounds = torch.arange(len(self.bounds), device=self.bounds.device, dtype=torch.int32)
        return Sequences(bounds, 1)


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows_q: Sequences,
    rows_k: Sequences,
    backend: str = "sdpa",
) -> Tensor:
    """See the module. ``backend`` is a name that ``choose_backend`` returned."""
    if backend == "native" and rows_q is rows_k:
        assert native_attention is not None
        return native_attention(q, k, v, rows_q.bounds)
    if backend in ("sdpa", "native"):  # pooling: one query per sequence
        return _sdpa(q, k, v, rows_q, rows_k)
    if backend == "flash":
        attend, options = (
            flash_attn_varlen_func,
            {"deterministic": torch.are_deterministic_algorithms_enabled()},
        )
    else:
        attend, options = varlen_attn, {}
    assert attend is not None, f"{backend} is not installed"
    bounds = (rows_q.bounds.to(q.device), rows_k.bounds.to(q.device))
    longest = (rows_q.longest, rows_k.longest)
    return attend(q, k, v, *bounds, *longest, **options)  # type: ignore[return-value]


def _sdpa(q: Tensor, k: Tensor, v: Tensor, rows_q: Sequences, rows_k: Sequences) -> Tensor:
    """One SDPA call per run of consecutive sequences of equal lengths: exact, nothing padded."""
    lengths = zip(rows_q.lengths, rows_k.lengths, strict=True)
    out: list[Tensor] = []
    at_q = at_k = 0
    for (len_q, len_k), run in groupby(pair for pair in lengths if pair != (0, 0)):
        count = len(list(run))
        here_q = slice(at_q, at_q + count * len_q)
        here_k = slice(at_k, at_k + count * len_k)
        run_q, run_k, run_v = (
            x[rows].unflatten(0, (count, -1)).transpose(1, 2)  # (count, H, len, d)
            for x, rows in ((q, here_q), (k, here_k), (v, here_k))
        )
        attended = _attend(run_q, run_k, run_v)
        out.append(attended.transpose(1, 2).flatten(0, 1))
        at_q, at_k = here_q.stop, here_k.stop
    return torch.cat(out) if out[1:] else out[0]


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """SDPA; short sequences in half precision on a CPU are written out, scores and softmax in
    float32: two thirds of the time of torch's kernel there (docs/log.md). On long ones it is
    slower, and keeps all scores."""
    if q.device.type != "cpu" or q.dtype not in HALF or k.shape[-2] > SHORT:
        return scaled_dot_product_attention(q, k, v)
    with torch.autocast("cpu", enabled=False):
        scores = (q.float() * q.shape[-1] ** -0.5) @ k.float().transpose(-1, -2)
    return scores.softmax(-1).to(v.dtype) @ v


@cache
def choose_backend(wanted: str, device: str, dtype: torch.dtype, head_dim: int) -> str:
    """``auto`` -> the fastest backend for (device type, dtype, numbers of a head), logged once.

    Raises ConfigError where a backend is asked for by name that cannot run here.
    """
    half = dtype in HALF
    usable = {
        "flash": device == "cuda" and half and flash_attn_varlen_func is not None,
        "varlen": device == "cuda" and half and varlen_attn is not None,
        "native": device == "cpu"
        and dtype == torch.bfloat16
        and head_dim % 32 == 0
        and native_attention is not None,
        "sdpa": True,
    }
    if wanted == "auto":
        chosen = next(name for name, works in usable.items() if works)
    elif not usable.get(wanted, False):
        raise ConfigError(
            f"model.attention={wanted}",
            f"cannot run on {device} in {str(dtype).removeprefix('torch.')}, heads of {head_dim}",
            allowed=", ".join(name for name, works in usable.items() if works),
            fix="use auto",
        )
    else:
        chosen = wanted
    log.info("attention backend: %s (asked for %s, device %s)", chosen, wanted, device)
    return chosen
